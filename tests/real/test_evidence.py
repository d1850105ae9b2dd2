"""What real models do without their contexts: the evidence of ``experiments.real``, in small."""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language.real import measure
from experiments.language.real.prompts import stretch
from experiments.language.real_models import SOURCES
from icl_jax.interop.huggingface import load
from icl_jax.interop.tokenizer import load_tokenizer
from icl_jax.language.generation import generate, patched_generate, token_agreement
from tests.helpers import eps

pytestmark = pytest.mark.real

TOKENS = 20


@pytest.fixture(scope="module", params=SOURCES)
def folder(request, models):
    return models(request.param)


@pytest.fixture(scope="module", params=("float32", "bfloat16"))
def dtype(request):
    return request.param


@pytest.fixture(scope="module")
def model(folder, dtype):
    return load(folder, dtype=jnp.dtype(dtype)), load_tokenizer(folder)


def test_every_token_written_from_patched_weights_is_the_first_choice_of_the_whole_run(
    model, dtype
):
    found = measure.generation(*model, 2, TOKENS)
    texts = found.policies["auto"]
    assert (texts.same_top1 == 1).all()
    assert (texts.largest_relative_error < {"float32": 5e-6, "bfloat16": 1e-4}[dtype]).all()
    assert (found.unpatched_agreement < 0.5).all()
    if dtype == "float32":  # Where two rows are rounded as one is, the texts are the same.
        assert (texts.agreement == 1).all() and (found.twice_agreement == 1).all()


def test_twenty_tokens_after_a_long_context(model, dtype):
    """339 tokens of which the first and the last 16 stay: an early fault had 65% of the tokens."""
    checkpoint, tokenizer = model
    prompt = stretch(tokenizer, 339, 16, keep_bos=True)
    run = (checkpoint.model, checkpoint.params, prompt.tokens_T)
    written = patched_generate(*run, prompt.kept_K, TOKENS)
    assert written.same_top1_N.all()
    assert written.relative_error_N.max() < {"float32": 5e-6, "bfloat16": 1e-4}[dtype]
    # Two rows of the same prompt go through each layer as the patched run's two do.
    expected = generate(*run, TOKENS)
    twice = generate(*run[:2], [prompt.tokens_T] * 2, TOKENS)[0]
    assert token_agreement(twice, written.tokens_N) >= token_agreement(twice, expected)
    if dtype == "float32":
        assert token_agreement(expected, written.tokens_N) == 1


def test_patched_weights_get_right_what_the_context_gets_right(model):
    found = measure.tasks(*model, shown=6, asked=4).tasks
    for task, right in found.items():
        np.testing.assert_array_equal(right.patched, right.context, err_msg=task)
    context, nothing = (
        sum(getattr(right, side).sum() for right in found.values())
        for side in ("context", "nothing")
    )
    assert context > nothing


def test_auto_is_as_exact_as_the_best_policy_after_any_number_of_layers(model):
    found = measure.by_layer(*model, 29)
    best = np.min(list(found.policies.values()), axis=0)
    # Below a hundredth of a rounding nothing is better than anything.
    bound = np.maximum(1.2 * best, eps("float32") / 800)
    assert (found.policies["auto"] <= bound).all(), found.policies
    assert (found.unpatched > 1e-2).all()


#: As the experiment does.
in_float32 = pytest.mark.parametrize("dtype", ["float32"], indirect=True)


@in_float32
def test_shares_of_an_update_and_what_no_token_wrote_are_all_of_it(model):
    found = measure.attribution(*model)
    assert found.total == pytest.approx(1, abs=1e-4)
    assert np.abs(found.shares).max() > found.even > 0


@in_float32
def test_a_longer_context_moves_the_inputs_further(model):
    found = measure.growth(*model, (8, 128))
    assert 0 < found.relative_change[0] < found.relative_change[1]
