"""The comparison with transformers and peft themselves, where they are installed."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", exc_type=ImportError)
transformers = pytest.importorskip("transformers", exc_type=ImportError)
pytest.importorskip("peft", exc_type=ImportError)

from icl_jax.interop.huggingface import load, make_tiny  # noqa: E402
from icl_jax.interop.peft import adapter_policy, save_adapter  # noqa: E402
from icl_jax.interop.registry import families  # noqa: E402
from icl_jax.interop.saving import save  # noqa: E402
from icl_jax.language.generation import generate  # noqa: E402
from icl_jax.language.prompt import full_logits  # noqa: E402
from icl_jax.language.weights import prompt_weights  # noqa: E402
from tests.helpers import relative_error  # noqa: E402
from tests.interop.golden.make import (  # noqa: E402
    batch,
    chosen_experts,
    logits,
    random_model,
    wide_logits,
)
from tests.interop.other_options import variant  # noqa: E402
from tests.interop.test_decoder_options import VARIANTS  # noqa: E402
from tests.interop.test_parity import batch_experts, batch_logits  # noqa: E402
from tests.interop.test_wider_options import VARIANTS as WIDER  # noqa: E402

FAMILIES = sorted(families())
DECODERS = [family for family in FAMILIES if family != "bert"]
EXPERTS = ("gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next")
GENERATED = ("llama", "gemma3", "gpt2", "gpt_neo", "bloom", "gpt_oss", "qwen3_next", "mamba2")
#: Families that an adapter is written for.
ADAPTED = [family for family in DECODERS if family not in (*EXPERTS, "mamba2")]
TOKENS = np.random.default_rng(5).integers(3, 96, 30).astype(np.int32)
KEPT = np.array([0, 26, 27, 28, 29])

# transformers and torch warn of their own affairs.
pytestmark = pytest.mark.filterwarnings("default")


def theirs(folder, tokens, adapter=None):
    """What transformers makes of a folder: the last position's logits, in float64."""
    made = transformers.AutoModelForCausalLM
    model, about = made.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    # Nothing of ours is missing there, and nothing is unknown.
    assert not about["missing_keys"] and not about["unexpected_keys"]
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        found = model.eval()(torch.as_tensor(tokens[None], dtype=torch.long)).logits
    return found[0, -1].double().numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_new_weights_and_new_prompts(family, tmp_path):
    model = random_model(family, seed=1)
    given = batch(96, seed=1)
    mask = given["mask"]
    model.save_pretrained(tmp_path)
    with chosen_experts(model) as experts:
        wanted = {"float32": logits(model, given), "float64": wide_logits(model, given)}
    for dtype, bound in (("float32", 1e-5), ("float64", 1e-10)):
        checkpoint = load(tmp_path, dtype=jnp.dtype(dtype))
        got = batch_logits(checkpoint.model, checkpoint.params, given)
        assert relative_error(got[mask], wanted[dtype][mask]) < bound
        assert bool(experts) == (family in EXPERTS)
        if experts:
            choice = batch_experts(checkpoint.model, checkpoint.params, given)
            same = np.stack(experts).reshape(choice.shape)
            np.testing.assert_array_equal(choice[:, mask], same[:, mask])


@pytest.mark.parametrize(("family", "changes"), (*VARIANTS, *WIDER))
def test_options_that_the_tiny_models_do_not_have(family, changes, tmp_path):
    config = variant(family, changes)
    model = random_model(family, seed=2, given=config)
    given = batch(96, seed=2)
    want = wide_logits(model, given)
    model.save_pretrained(tmp_path)
    # As transformers writes the configuration today, and as it is found in older files.
    for text in ((tmp_path / "config.json").read_text(), json.dumps(config)):
        (tmp_path / "config.json").write_text(text)
        checkpoint = load(tmp_path, dtype=jnp.float64)
        got = batch_logits(checkpoint.model, checkpoint.params, given)
        assert relative_error(got[given["mask"]], want[given["mask"]]) < 1e-10


def test_transformers_reads_the_encoder_that_we_write(tmp_path):
    checkpoint = make_tiny("bert", tmp_path, jax.random.key(3))
    model, about = transformers.AutoModel.from_pretrained(
        tmp_path,
        dtype=torch.float32,
        attn_implementation="eager",
        add_pooling_layer=False,
        output_loading_info=True,
    )
    assert not about["missing_keys"] and not about["unexpected_keys"]
    given = batch(96, seed=3)
    got = batch_logits(checkpoint.model, checkpoint.params, given)
    want = logits(model.eval(), given)
    assert relative_error(got[given["mask"]], want[given["mask"]]) < 1e-5


@pytest.mark.parametrize("family", DECODERS)
def test_transformers_reads_what_we_write(family, tmp_path):
    checkpoint = make_tiny(family, tmp_path / "tiny", jax.random.key(3))
    want = full_logits(checkpoint.model, checkpoint.params, TOKENS, [29])[0]
    assert relative_error(theirs(tmp_path / "tiny", TOKENS), want) < 1e-5


@pytest.mark.parametrize("family", GENERATED)
def test_greedy_generation_is_the_same(family, tmp_path):
    checkpoint = make_tiny(family, tmp_path / "tiny", jax.random.key(3))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    with torch.no_grad():
        want = model.generate(
            torch.as_tensor(TOKENS[None], dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )[0, len(TOKENS) :].numpy()
    got = generate(checkpoint.model, checkpoint.params, TOKENS, 12)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("family", DECODERS)
def test_an_exported_checkpoint_answers_without_the_context(family, tmp_path):
    checkpoint = make_tiny(family, tmp_path / "tiny", jax.random.key(3))
    model, params = checkpoint.model, checkpoint.params
    want = full_logits(model, params, TOKENS, [29])[0]
    weights = prompt_weights(model, params, TOKENS, KEPT)
    save(tmp_path / "patched", model, weights.params, checkpoint.config)
    assert relative_error(theirs(tmp_path / "patched", TOKENS[KEPT]), want) < 1e-4
    assert relative_error(theirs(tmp_path / "tiny", TOKENS[KEPT]), want) > 1e-2


@pytest.mark.parametrize("family", ADAPTED)
def test_an_adapter_answers_without_the_context(family, tmp_path):
    checkpoint = make_tiny(family, tmp_path / "tiny", jax.random.key(3))
    model, params = checkpoint.model, checkpoint.params
    want = full_logits(model, params, TOKENS, [29])[0]
    policy = adapter_policy(checkpoint)
    weights = prompt_weights(model, params, TOKENS, KEPT, output=policy)
    save_adapter(tmp_path / "adapter", checkpoint, weights.patches)
    got = theirs(tmp_path / "tiny", TOKENS[KEPT], tmp_path / "adapter")
    assert relative_error(got, want) < 1e-4


def test_peft_still_takes_no_adapter_of_mamba_2(tmp_path):
    from peft import LoraConfig, get_peft_model

    make_tiny("mamba2", tmp_path / "tiny", jax.random.key(3))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tiny")
    config = LoraConfig(r=1, target_modules=["backbone.layers.0.mixer.out_proj"])
    with pytest.raises(ValueError, match="out_proj.*incompatible"):
        get_peft_model(model, config)
