"""Every family answers real text without its context, from patched weights."""

import dataclasses
import pydoc_data.topics

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.interop.huggingface import load
from icl_jax.language.generation import generate, patched_generate
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from tests.helpers import relative_error
from tests.interop.test_parity import FAMILIES, GOLDEN

TEXTS = [" ".join(pydoc_data.topics.topics[name].split()) for name in ("while", "assert")]
MISS = 1e-2


def tokens_of(text, length):
    """Printable ASCII as the 96 tokens of a golden checkpoint."""
    return np.asarray([ord(c) - 32 for c in text if 32 <= ord(c) < 128][:length], np.int32)


@pytest.mark.wide(36)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype, bound", (("float32", 1e-5), ("float64", 1e-11)))
def test_the_logits_of_all_kept_positions(family, dtype, bound):
    checkpoint = load(GOLDEN / family, dtype=jnp.dtype(dtype))
    # Longer than the tiny models are said to be for: rotary positions go on.
    model, params = checkpoint.model.clone(max_positions=None), checkpoint.params
    length = min(300, model.num_positions or 300)
    tokens, other = (tokens_of(text, length) for text in TEXTS)
    # A first token, a stretch in the middle, and the end stay.
    kept = np.r_[0, 20:24, length - 11 : length].astype(np.int32)
    assert len(tokens) == len(other) == length
    want = full_logits(model, params, tokens, kept)
    bank = prompt_patches(model, params, tokens, kept)
    got = patched_logits(model, params, tokens, bank)
    assert relative_error(got, want) < bound
    shuffled = prompt_patches(model, params, other, kept).patches
    wrong = patched_logits(model, params, tokens, dataclasses.replace(bank, patches=shuffled))
    for control in (wrong, alone_logits(model, params, tokens, kept)):
        assert relative_error(control, want) > MISS


@pytest.mark.slow
@pytest.mark.parametrize("family", ("gpt_oss", "qwen3_next", "mamba2"))
def test_patched_generation_goes_on_as_the_context_does(family):
    # A sink and a window beside the memory; a state and a convolution as the memory.
    checkpoint = load(GOLDEN / family, dtype=jnp.float32)
    model, params = checkpoint.model, checkpoint.params
    tokens = tokens_of(TEXTS[0], 40)
    found = patched_generate(model, params, tokens, np.array([0, 37, 38, 39]), 6)
    np.testing.assert_array_equal(found.tokens_N, generate(model, params, tokens, 6))
