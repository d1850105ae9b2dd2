"""Shifted prompts: what moves, what stays, and that labels are of the moved inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.oracles.closed_form import least_squares
from icl_jax.tasks.prompt import sample_prompts
from icl_jax.tasks.shifts import SHIFTS, ShiftedLinearRegression, scaled
from tests.helpers import compiled


def prompts(shift, num_prompts=200, num_examples=12, width=6):
    task = ShiftedLinearRegression(width, shift)
    return sample_prompts(
        task,
        jax.random.key(0),
        num_prompts=num_prompts,
        num_examples=num_examples,
        dtype=jnp.float64,
    )


def ranks(inputs_BND):
    return np.linalg.matrix_rank(np.asarray(inputs_BND))


@pytest.mark.parametrize("shift", [name for name in SHIFTS if name != "orthogonal_query"])
def test_labels_are_those_of_the_moved_inputs(shift):
    drawn = prompts(shift)
    predicted = compiled(jax.vmap(least_squares))(drawn.inputs_ND, drawn.targets_N, drawn.query_D)
    np.testing.assert_allclose(predicted, drawn.query_target, atol=1e-8)
    assert np.std(drawn.query_target) > 0.5


def test_examples_say_nothing_about_an_orthogonal_query():
    drawn = prompts("orthogonal_query")
    products = jnp.einsum("bnd,bd->bn", drawn.inputs_ND, drawn.query_D)
    np.testing.assert_allclose(products, 0, atol=1e-12)
    assert np.all(ranks(drawn.inputs_ND) == 3)
    predicted = compiled(jax.vmap(least_squares))(drawn.inputs_ND, drawn.targets_N, drawn.query_D)
    np.testing.assert_allclose(predicted, 0, atol=1e-10)
    assert np.std(drawn.query_target) > 0.5


def test_half_a_subspace_holds_the_query_too_and_differs_between_prompts():
    drawn = prompts("half_subspace")
    together = jnp.concatenate([drawn.inputs_ND, drawn.query_D[:, None]], axis=1)
    assert np.all(ranks(together) == 3)
    assert np.linalg.matrix_rank(np.concatenate(together[:2])) == 6


def test_skewed_variances_fall_like_the_square_of_the_index_and_keep_their_sum():
    drawn = prompts("skewed", num_prompts=2000)
    variances = np.var(np.asarray(drawn.inputs_ND), axis=(0, 1))
    expected = 1 / np.arange(1, 7) ** 2
    np.testing.assert_allclose(variances, 6 * expected / expected.sum(), rtol=0.05)


def test_orthants_are_one_for_the_examples_and_another_for_the_query():
    drawn = prompts("orthants")
    signs = np.sign(drawn.inputs_ND)
    assert np.all(signs == signs[:, :1])
    agree = np.mean(np.sign(drawn.query_D) == signs[:, 0])
    assert 0.45 < agree < 0.55


def test_scaled_inputs_are_the_same_inputs_longer():
    once, twice = (
        scaled(factor)(jax.random.key(0), jnp.ones((2, 3), jnp.float64)) for factor in (1.0, 2.0)
    )
    np.testing.assert_array_equal(2 * once, twice)
    assert 1.8 < np.std(prompts("scaled_twice").inputs_ND) < 2.2


def test_a_shift_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="shift must be one of 'skewed', .* got 'sheared'"):
        ShiftedLinearRegression(4, "sheared")
    with pytest.raises(ValueError, match="input_width must be at least 2, got 1"):
        ShiftedLinearRegression(1, "skewed")
    with pytest.raises(ValueError, match="factor"):
        scaled(0.0)
