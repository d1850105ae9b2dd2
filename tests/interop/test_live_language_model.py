"""The small model that we train, in the hands of transformers, and back."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", exc_type=ImportError)
transformers = pytest.importorskip("transformers", exc_type=ImportError)

from experiments.language import language_model  # noqa: E402
from icl_jax.interop.huggingface import load  # noqa: E402
from icl_jax.interop.spans import read_prompts  # noqa: E402
from icl_jax.interop.tokenizer import load_tokenizer  # noqa: E402
from icl_jax.language.prompt import full_logits  # noqa: E402
from tests.experiments.test_language_model import CONFIG  # noqa: E402
from tests.helpers import relative_error  # noqa: E402

# transformers and torch warn of their own affairs.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("language_model") / "run"
    language_model.run(CONFIG, workdir)
    return workdir


@pytest.fixture(scope="module")
def theirs(folder):
    model, about = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "checkpoint", dtype=torch.float32, output_loading_info=True
    )
    assert not about["missing_keys"] and not about["unexpected_keys"]
    return model.eval()


def test_transformers_reads_the_trained_model_and_its_tokenizer(folder, theirs):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "checkpoint")
    checkpoint = load(folder / "checkpoint")
    ours = load_tokenizer(folder / "checkpoint")
    for prompt in read_prompts(folder / "prompts.jsonl", ours, vocab_size=300):
        text = ours.decode(prompt.tokens)
        np.testing.assert_array_equal(tokenizer(text)["input_ids"], prompt.tokens)
        with torch.no_grad():
            ids = torch.as_tensor(prompt.tokens[None], dtype=torch.long)
            want = theirs(ids).logits[0].numpy()
        every = np.arange(len(prompt.tokens))
        got = full_logits(checkpoint.model, checkpoint.params, prompt.tokens, every)
        assert relative_error(got, want) < 1e-5


def test_what_transformers_writes_again_is_the_same_model(folder, theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    before, after = load(folder / "checkpoint"), load(tmp_path)
    tokens_T = jnp.arange(3, 40)
    np.testing.assert_array_equal(
        after.model.apply({"params": after.params}, tokens_T),
        before.model.apply({"params": before.params}, tokens_T),
    )
