"""Multimodal checkpoints of transformers itself: without pictures, the same logits."""

import jax.numpy as jnp
import pytest

torch = pytest.importorskip("torch", exc_type=ImportError)
transformers = pytest.importorskip("transformers", exc_type=ImportError)

from icl_jax.interop.huggingface import load  # noqa: E402
from icl_jax.interop.registry import families  # noqa: E402
from icl_jax.interop.saving import save  # noqa: E402
from tests.helpers import relative_error  # noqa: E402
from tests.interop.golden.make import batch, logits  # noqa: E402
from tests.interop.golden.variants import VISION  # noqa: E402
from tests.interop.test_parity import batch_logits  # noqa: E402

# transformers and torch warn of their own affairs.
pytestmark = pytest.mark.filterwarnings("default")


def whole(family, tied):
    """A multimodal model with random parameters."""
    text = {k: v for k, v in families()[family].tiny().items() if k != "architectures"}
    if family == "gemma3":
        text["final_logit_softcapping"] = None  # The whole of transformers does not apply it.
    inside = {"text_config": text, "tie_word_embeddings": tied}
    if family == "gemma3":
        config = transformers.Gemma3Config(vision_config=VISION, mm_tokens_per_image=4, **inside)
        made = transformers.Gemma3ForConditionalGeneration
    else:
        vision = {"model_type": "pixtral", "head_dim": 8, **VISION}
        config = transformers.Mistral3Config(vision_config=vision, spatial_merge_size=2, **inside)
        made = transformers.Mistral3ForConditionalGeneration
    config._attn_implementation = "eager"
    torch.manual_seed(1)
    model = made(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("family", "tied"),
    (("gemma3", True), ("mistral", False), ("mistral", True), ("ministral3", False)),
)
def test_the_text_model_computes_what_the_whole_does(family, tied, tmp_path):
    model = whole(family, tied)
    given = batch(96, seed=1)
    mask, want = given["mask"], logits(model, given)
    model.save_pretrained(tmp_path / "whole")
    checkpoint = load(tmp_path / "whole", dtype=jnp.float32)
    assert checkpoint.family == family
    got = batch_logits(checkpoint.model, checkpoint.params, given)
    assert relative_error(got[mask], want[mask]) < 1e-5
    # What we write of it is a text model to transformers.
    save(tmp_path / "text", checkpoint.model, checkpoint.params, checkpoint.config)
    text, about = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "text",
        dtype=torch.float32,
        attn_implementation="eager",
        output_loading_info=True,
    )
    assert not about["missing_keys"] and not about["unexpected_keys"]
    assert relative_error(logits(text.eval(), given)[mask], want[mask]) < 1e-5
