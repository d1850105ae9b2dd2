"""A prompt as one set of weights for all kept tokens: the last one's logits are exact."""

import numpy as np
import pytest

from icl_jax.language.prompt import full_logits
from icl_jax.language.weights import prompt_weights
from tests.helpers import eps, relative_error
from tests.language.models import MODELS, VOCAB, params_of

TOKENS = np.random.default_rng(0).integers(0, VOCAB, 20).astype(np.int32)


@pytest.mark.wide(12)
@pytest.mark.parametrize("name", [name for name in MODELS if name != "parallel"])
@pytest.mark.parametrize("kept", ([19], [0, 7, 18, 19]), ids=("one", "several"))
def test_the_plain_model_with_them_answers_as_with_the_context(name, kept):
    model, params = MODELS[name], params_of(name, "float64")
    weights = prompt_weights(model, params, TOKENS, kept)
    want_V = full_logits(model, params, TOKENS, [19])[0]

    def last(params):
        # At positions 0..K-1, as any other program would number them.
        return model.apply({"params": params}, TOKENS[np.asarray(kept)])[-1]

    assert relative_error(last(weights.params), want_V) < eps("float64", 60, condition=1000)
    assert relative_error(last(params), want_V) > 1e-2
    assert len(weights.patches) == 2 and weights.bank.kept_K.tolist() == [19]


def test_the_other_positions_are_not_promised():
    model, params = MODELS["rotary"], params_of("rotary", "float64")
    weights = prompt_weights(model, params, TOKENS, [17, 19])
    want_KV = full_logits(model, params, TOKENS, [17, 19])
    got_KV = model.apply({"params": weights.params}, TOKENS[[17, 19]])
    assert relative_error(got_KV[0], want_KV[0]) > 1e-3


def test_a_parallel_block_with_a_bias_is_exact_too():
    model, params = MODELS["parallel"], params_of("parallel", "float64")
    weights = prompt_weights(model, params, TOKENS, [5, 19])
    want_V = full_logits(model, params, TOKENS, [19])[0]
    got_V = model.apply({"params": weights.params}, TOKENS[[5, 19]])[-1]
    assert relative_error(got_V, want_V) < eps("float64", 60, condition=1000)


def test_tokens_and_positions_are_checked():
    model, params = MODELS["rotary"], params_of("rotary")
    with pytest.raises(ValueError, match="prompt_weights: tokens_T must lie in"):
        prompt_weights(model, params, TOKENS + VOCAB, [19])
    with pytest.raises(ValueError, match="kept"):
        prompt_weights(model, params, TOKENS, [20])
