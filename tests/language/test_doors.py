"""Every function that takes a prompt refuses the same mistakes, in its own name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.language.activations import attend
from icl_jax.language.attribution import attribute
from icl_jax.language.generation import generate, patched_generate, token_agreement
from icl_jax.language.observed import observe, observed_generate
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.language.weights import prompt_weights
from tests.language.models import MODELS, VOCAB, params_of

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 12).astype(np.int32)
MODEL, PARAMS = MODELS["rotary"], params_of("rotary")
LEARNED, LEARNED_PARAMS = MODELS["learned_positions"], params_of("learned_positions")


def patched(model, params, tokens, kept):
    bank = prompt_patches(MODEL, PARAMS, TOKENS, [2, 11])
    return patched_logits(model, params, tokens, bank)


#: By name: a function of model, parameters, tokens and kept positions.
KEEPING = {
    "full_logits": full_logits,
    "alone_logits": alone_logits,
    "prompt_patches": prompt_patches,
    "prompt_weights": prompt_weights,
    "attribute": attribute,
    "patched_generate": lambda *run: patched_generate(*run, 3),
}
READING = {
    **KEEPING,
    "patched_logits": patched,
    "generate": lambda model, params, tokens, _: generate(model, params, tokens, 3),
    "observed_generate": lambda model, params, tokens, _: observed_generate(
        model, params, tokens, 3
    ),
    "observe": lambda model, params, tokens, _: observe(model, params, tokens),
    "attend": lambda model, params, tokens, _: attend(model, params, tokens, 2),
}


@pytest.mark.parametrize("name", KEEPING)
@pytest.mark.parametrize(
    ("kept", "message"),
    (
        ([5, 2], "kept_K must be strictly increasing"),
        ([2, 2], "kept_K must be strictly increasing"),
        (np.array([8, 3], np.uint8), "kept_K must be strictly increasing"),
        ([2, -1], "kept position -1 is outside the sequence"),
        ([999], "kept position 999 is outside the sequence"),
        ([], r"kept_K must be a non-empty 1-D array of positions, got shape \(0,\)"),
    ),
)
def test_kept_positions_that_cannot_be(name, kept, message):
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        KEEPING[name](MODEL, PARAMS, TOKENS, kept)


@pytest.mark.parametrize("name", READING)
def test_tokens_that_cannot_be(name):
    def read(tokens):
        return READING[name](MODEL, PARAMS, tokens, [2, 11])

    for outside in (VOCAB, -1):
        with pytest.raises(ValueError, match=rf"{name}: tokens_T must lie in \[0, 48\), the voc"):
            read(np.where(np.arange(12) == 4, outside, TOKENS))
    with pytest.raises(TypeError, match=f"{name}: tokens_T must be integers, got float"):
        read(TOKENS.astype(np.float32))
    with pytest.raises(ValueError, match=f"{name}: tokens_T is empty"):
        read(TOKENS[:0])


@pytest.mark.parametrize("name", READING)
def test_a_prompt_longer_than_the_model_is_meant_for(name):
    writes = 3 if "generate" in name else 0
    room = MODEL.clone(max_positions=12 + writes)
    tight = MODEL.clone(max_positions=11 + writes)
    READING[name](room, PARAMS, TOKENS, [2, 11])
    message = f"{name}: {12 + writes} tokens are needed, and the model is meant for at most "
    with pytest.raises(ValueError, match=message + rf"{11 + writes} .*clone\(max_positions=None\)"):
        READING[name](tight, PARAMS, TOKENS, [2, 11])
    # Ten million tokens are refused before anything of their size is asked for.
    with pytest.raises(ValueError, match="the model is meant for at most"):
        READING[name](room, PARAMS, np.zeros(10**7, np.int32), [2, 11])


def test_position_ids_that_cannot_be():
    ids = np.arange(12)
    calls = {
        "generate": lambda *run, **ids: generate(*run, 3, **ids),
        "observe": observe,
    }
    for name, call in calls.items():
        for bad in (ids[::-1], ids - 1, 0 * ids):
            with pytest.raises(ValueError, match=f"{name}: positions_T must be non-neg.* increas"):
                call(MODEL, PARAMS, TOKENS, positions_T=bad)
        for bad in (ids.astype(np.uint32), ids.astype(np.float32)):
            with pytest.raises(TypeError, match=f"{name}: positions_T must hold signed integers"):
                call(MODEL, PARAMS, TOKENS, positions_T=bad)
        with pytest.raises(ValueError, match=f"{name}: .* positions are needed.* only 64"):
            call(LEARNED, LEARNED_PARAMS, TOKENS, positions_T=ids + 53)
        with pytest.raises(ValueError, match=f"{name}: .* positions are needed.* at most 64"):
            call(MODEL.clone(max_positions=64), PARAMS, TOKENS, positions_T=ids + 53)


def test_a_position_to_look_at_is_one_of_the_prompts():
    for bad in (12, 999, -1):
        with pytest.raises(ValueError, match=f"attend: position must be one.* 0 to 11, got {bad}"):
            attend(MODEL, PARAMS, TOKENS, bad)


def test_a_token_outside_the_vocabulary_is_no_number_inside_jit():
    tokens = jnp.asarray(TOKENS).at[4].set(VOCAB)
    for kept in ([4, 11], [2, 11]):
        found = jax.jit(lambda tokens, kept=kept: full_logits(MODEL, PARAMS, tokens, kept))(tokens)
        # Whoever stands at it or behind it has read it (and others may: 0 times NaN is NaN).
        assert np.all(np.isnan(found[np.array(kept) >= 4]))


def test_a_nan_in_a_weight_is_refused_where_one_position_is_looked_at():
    gains = {name: leaf.at[0].set(jnp.nan) for name, leaf in PARAMS["norm_final"].items()}
    with pytest.raises(ValueError, match="attend: the logits of row .* are not finite"):
        attend(MODEL, {**PARAMS, "norm_final": gains}, TOKENS, 2)


def test_token_ids_may_be_a_torch_tensor():
    torch = pytest.importorskip("torch")
    tokens = torch.as_tensor(TOKENS.astype(np.int64))
    got = full_logits(MODEL, PARAMS, tokens, [2, 11])
    np.testing.assert_array_equal(got, full_logits(MODEL, PARAMS, TOKENS, [2, 11]))


def test_texts_without_a_token_do_not_agree():
    with pytest.raises(ValueError, match="token_agreement: expected_N and actual_N are both empty"):
        token_agreement(np.zeros(0, int), np.zeros(0, int))
    assert token_agreement(np.array([1, 2]), np.array([1])) == 0.5


def test_an_agreement_is_of_two_texts():
    text_N = np.array([1, 2])
    with pytest.raises(ValueError, match="token_agreement: actual_N must have 1 axes"):
        token_agreement(text_N, np.stack([text_N, text_N]))  # Was 2.0.
