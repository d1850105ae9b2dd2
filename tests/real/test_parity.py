"""Real trained models here and in ``transformers``: the same logits, and the same token ids."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", exc_type=ImportError)
transformers = pytest.importorskip("transformers", exc_type=ImportError)

from experiments.language.real_models import SOURCES  # noqa: E402
from icl_jax.interop.huggingface import load  # noqa: E402
from icl_jax.interop.tokenizer import load_tokenizer  # noqa: E402
from icl_jax.language.prompt import full_logits  # noqa: E402
from tests.helpers import relative_error  # noqa: E402

# transformers and torch warn of their own affairs.
pytestmark = [pytest.mark.real, pytest.mark.filterwarnings("default")]

TEXTS = (
    "The capital of France is Paris, and the capital of Italy is",
    "def mean(values):\n    return sum(values) / len(values)\n",
    "Größe, naïveté, 日本 and 1234 apples: naturally!",
)


@pytest.mark.parametrize("name", SOURCES)
def test_logits_and_token_ids_are_those_of_transformers(models, name):
    folder = models(name)
    ours, tokenizer = load(folder, dtype=jnp.float32), load_tokenizer(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    reference = transformers.AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        tokens_T = tokenizer.encode(text).tokens_T
        np.testing.assert_array_equal(tokens_T, reference(text)["input_ids"])
        with torch.no_grad():
            want_TV = theirs(torch.as_tensor(tokens_T[None], dtype=torch.long)).logits[0].numpy()
        got_TV = full_logits(ours.model, ours.params, tokens_T, np.arange(len(tokens_T)))
        # 18 and 30 layers: 1.4e-6 and 8e-7 are measured.
        assert relative_error(got_TV, want_TV) < 5e-6
