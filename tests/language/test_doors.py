"""Every function that takes a prompt refuses the same mistakes, in its own name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.language.activations import attend
from icl_jax.language.attribution import attribute
from icl_jax.language.compile import compile_context
from icl_jax.language.generation import generate, token_agreement
from icl_jax.language.observed import observe
from icl_jax.language.prompt import full_logits
from icl_jax.language.sampling import Sampling, draw_token
from icl_jax.language.study import own_queries, self_study
from tests.language.doors import CALLED, KEEPING, MODEL, PARAMS, READING, RUN, TOKENS, WRITING
from tests.language.models import MODELS, VOCAB, params_of

LEARNED, LEARNED_PARAMS = MODELS["learned_positions"], params_of("learned_positions")


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
    message = message.replace("kept", CALLED.get(name, "kept"))
    with pytest.raises(ValueError, match=f"{name}: {message}"):
        KEEPING[name](MODEL, PARAMS, TOKENS, kept)


@pytest.mark.parametrize("name", KEEPING)
def test_kept_positions_that_are_no_integers(name):
    called = CALLED.get(name, "kept")
    for kept in ([0, True], [False, True]):
        with pytest.raises(TypeError, match=f"{name}: {called}_K must hold integer positions, got"):
            KEEPING[name](MODEL, PARAMS, TOKENS, kept)
    # Of one prompt; and of all prefixes, where none are named.
    if name not in ("prompt_weights", "prefix_logits"):
        with pytest.raises(ValueError, match=f"{name}: kept must hold .* of each of the 1 .* None"):
            KEEPING[name](MODEL, PARAMS, TOKENS[None], None)


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
    for bad, got in (
        ([1, 2, True, *TOKENS[3:]], r"bool \(True\)"),
        (list("abcdefghijkl"), r"str \('a'\)"),
        (None, r"NoneType \(None\)"),
    ):
        with pytest.raises(TypeError, match=f"{name}: tokens_T must be integers, got {got}"):
            read(bad)


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
    for bad in (12, 999, -1, True, 1.0, None):
        with pytest.raises(ValueError, match=f"attend: position must be one.* 0 to 11, got {bad}"):
            attend(MODEL, PARAMS, TOKENS, bad)
    with pytest.raises(ValueError, match="attend: position must be one of the prompt's"):
        jax.eval_shape(lambda position: attend(MODEL, PARAMS, TOKENS, position), 1.0)


def test_a_row_to_attribute_is_one_of_the_kept():
    for bad in (1.5, True, 2, -3, "0"):
        with pytest.raises(ValueError, match=f"attribute: row must be one of the 2 .* got {bad}"):
            attribute(MODEL, PARAMS, TOKENS, [2, 11], row=bad)


@pytest.mark.parametrize("name", ("generate", "patched_generate", "observed_generate"))
def test_stop_tokens_and_keys_that_cannot_be(name):
    def write(**options):
        kept = ([2, 11],) if name == "patched_generate" else ()
        WRITING[name](MODEL, PARAMS, TOKENS, *kept, 3, **options)

    for bad in (VOCAB, -1, 10**12):
        with pytest.raises(ValueError, match=rf"{name}: stop must lie in \[0, 48\), .* \[{bad}"):
            write(stop=[bad])
    for bad in ([1.5], ["a"], [1, True]):
        with pytest.raises(TypeError, match=f"{name}: stop must be integers, got"):
            write(stop=bad)
    with pytest.raises(TypeError, match=rf"{name}: stop must be a coll.* got 5. Write stop=\[5\]"):
        write(stop=5)
    for bad in (5, "5", jnp.zeros(2), jax.random.split(jax.random.key(0))):
        with pytest.raises(TypeError, match=f"{name}: key must be one PRNG key, got"):
            write(sampling=Sampling(1.0), key=bad)


def test_stop_tokens_and_keys_of_every_kind_that_can_be():
    written = generate(MODEL, PARAMS, TOKENS, 3)
    for stop in ({int(written[0])}, written[:1], jnp.asarray(written[:1])):
        assert len(generate(MODEL, PARAMS, TOKENS, 3, stop=stop)) == 1
    found = [
        generate(MODEL, PARAMS, TOKENS, 3, sampling=Sampling(1.0), key=key)
        for key in (jax.random.key(4), jax.random.PRNGKey(4))
    ]
    np.testing.assert_array_equal(*found)


def test_token_lists_of_an_unknown_vocabulary():
    for bad in ([1, -1], [1, 2**31], np.array([1, 2**63], np.uint64), [2**70]):
        with pytest.raises(ValueError, match="own_queries: context_T must be token ids, from 0 to"):
            own_queries(bad, 2)
    for bad in ([1.0, 2.0], [1, True], np.ones(2, bool), ["a"], None):
        with pytest.raises(TypeError, match="own_queries: context_T must be integers, got"):
            own_queries(bad, 2)
        with pytest.raises(TypeError, match="self_study: context_T must be integers, got"):
            self_study(*RUN, bad, [[1]], 2, jax.random.key(0))
        with pytest.raises(TypeError, match=r"self_study: stems\[1\] must be integers, got"):
            self_study(*RUN, [1], [[1], bad], 2, jax.random.key(0))
        with pytest.raises(TypeError, match="context_queries: context_T must be integers, got"):
            compile_context(*RUN, bad, [[1]])
        with pytest.raises(TypeError, match=r"context_queries: queries\[1\] must be integers, got"):
            compile_context(*RUN, [1], [[1], bad])
    for bad in (True, 1.5):
        with pytest.raises(TypeError, match="context_queries: bos must be integers, got"):
            compile_context(*RUN, [1], [[1]], bos=bad)


def test_how_to_draw_is_numbers():
    for name in ("temperature", "top_p", "min_p", "repetition_penalty"):
        for bad in (True, "1"):
            with pytest.raises(ValueError, match=f"Sampling: {name} must .*, got {bad!r}"):
                Sampling(**{name: bad})
    with pytest.raises(TypeError, match="draw_token: key must be one PRNG key, got"):
        draw_token(5, jnp.zeros(3), Sampling(1.0))


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
