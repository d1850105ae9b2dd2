"""Constructed layers against explicit descent; the best layer against sampling and its rivals."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.attention_stack import linear_attention_stack
from icl_jax.descent.linear_attention import (
    one_step_weights,
    optimal_linear_attention,
    optimal_linear_attention_loss,
    optimal_preconditioner,
    preconditioned_step_weights,
    stacked_weights,
)
from icl_jax.descent.linear_steps import (
    descent_prediction,
    gd_plus_plus,
    gradient_steps,
    preconditioned_steps,
)
from icl_jax.oracles.closed_form import averaging, prefix_predictions
from tests.helpers import compiled, seeds


def problem(num_examples, width, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((num_examples, width), (num_examples,), (width,))
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


def run(layers, inputs_ND, targets_N, query_D, *, looped=False):
    """The stack's predictions (P,), from the real Flax layers."""
    examples = np.concatenate([inputs_ND, targets_N[:, None]], axis=1)
    query = np.append(query_D, np.zeros(1, query_D.dtype))[None]
    depth = 3 if looped else len(layers)
    model = linear_attention_stack(depth, len(inputs_ND), looped=looped)
    return model.apply(
        {"params": stacked_weights(layers)},
        jnp.concatenate([examples, query]),
        method="predictions",
    )


@pytest.mark.wide(2)
@pytest.mark.parametrize(("dtype", "bound"), ((np.float32, 1e-5), (np.float64, 1e-12)))
@given(seeds(), st.integers(1, 12), st.integers(1, 10))
def test_a_layer_takes_one_step(dtype, bound, seed, num_examples, width):
    arrays = problem(num_examples, width, dtype, seed)
    got = run([one_step_weights(width, rate=0.7, dtype=dtype)], *arrays)
    assert got.dtype == dtype and got[0] == 0
    want = descent_prediction(*arrays, rate=0.7)
    size = 0.7 * np.mean(np.abs(arrays[1])) * np.linalg.norm(arrays[2])
    size *= np.max(np.linalg.norm(arrays[0], axis=1))
    assert abs(got[1] - want) <= bound * size
    without = run([one_step_weights(width, rate=0.0, dtype=dtype)], *arrays)
    assert not np.any(without)


@pytest.mark.parametrize(("dtype", "bound"), ((np.float32, 1e-5), (np.float64, 1e-12)))
def test_a_stack_descends_step_by_step(dtype, bound):
    arrays = problem(9, 4, dtype)
    layer = one_step_weights(4, rate=0.3, dtype=dtype)
    want = gradient_steps(*arrays[:2], num_steps=3, rate=0.3) @ arrays[2]
    np.testing.assert_allclose(run([layer] * 3, *arrays), want, rtol=bound, atol=bound)
    np.testing.assert_allclose(run([layer], *arrays, looped=True), want, rtol=bound, atol=bound)


@pytest.mark.parametrize(("dtype", "bound"), ((np.float32, 1e-5), (np.float64, 1e-12)))
def test_a_stack_is_gd_plus_plus(dtype, bound):
    arrays = problem(9, 4, dtype)
    layer = one_step_weights(4, rate=0.3, correction=0.1, dtype=dtype)
    want = gd_plus_plus(*arrays, rate=0.3, correction=0.1, num_steps=4)
    np.testing.assert_allclose(run([layer] * 4, *arrays), want, rtol=bound, atol=bound)
    plain = gd_plus_plus(*arrays, rate=0.3, correction=0.0, num_steps=4)
    assert np.max(np.abs(plain - want)) > 0.01


def test_a_stack_is_preconditioned_descent():
    arrays = problem(9, 3)
    matrices = 0.4 * np.random.default_rng(1).normal(size=(3, 3, 3))
    layers = [preconditioned_step_weights(jnp.asarray(matrix)) for matrix in matrices]
    want = preconditioned_steps(*arrays[:2], preconditioners_SDD=matrices) @ arrays[2]
    np.testing.assert_allclose(run(layers, *arrays), want, rtol=1e-12, atol=1e-13)
    turned = (
        preconditioned_steps(*arrays[:2], preconditioners_SDD=np.swapaxes(matrices, 1, 2))
        @ arrays[2]
    )
    assert np.abs(turned[-1] - want[-1]) > 0.01


COVARIANCE = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])


def sample(num_prompts, num_examples, seed=0):
    rng = np.random.default_rng(seed)
    root = np.linalg.cholesky(COVARIANCE)
    inputs = rng.normal(size=(num_prompts, num_examples + 1, 3)) @ root.T
    truths = rng.normal(size=(num_prompts, 3))
    labels = np.einsum("bnd,bd->bn", inputs, truths)
    return inputs[:, :-1], labels[:, :-1], inputs[:, -1], labels[:, -1]


def test_the_second_moment_by_hand():
    # Of one coordinate: G = (1 + 1/N) l + l/N.
    got = optimal_preconditioner(jnp.array([[2.0]]), 4)
    np.testing.assert_allclose(got, [[1 / (1.25 * 2 + 0.5)]], rtol=1e-12)
    loss = optimal_linear_attention_loss(jnp.array([[2.0]]), 4)
    np.testing.assert_allclose(loss, 2 - 4 / 3, rtol=1e-12)


@pytest.mark.parametrize("num_examples", (2, 8))
def test_the_loss_is_that_of_many_prompts(num_examples):
    inputs, targets, queries, labels = sample(200_000, num_examples)
    oracle = functools.partial(optimal_linear_attention, covariance_DD=COVARIANCE)
    predicted = compiled(jax.vmap(oracle))(inputs, targets, queries)
    errors = (predicted - labels) ** 2
    deviation = np.std(errors) / np.sqrt(len(errors))
    expected = optimal_linear_attention_loss(jnp.asarray(COVARIANCE), num_examples)
    assert abs(np.mean(errors) - expected) < 4 * deviation < 0.05 * expected


def test_no_other_matrix_is_better():
    inputs, targets, queries, labels = sample(100_000, 6)
    averages = np.einsum("bn,bnd->bd", targets, inputs) / 6

    def loss(matrix_DD):
        return jnp.mean((jnp.einsum("bd,de,be->b", queries, matrix_DD, averages) - labels) ** 2)

    best = optimal_preconditioner(jnp.asarray(COVARIANCE), 6)
    value, gradient = jax.value_and_grad(loss)(best)
    # At the minimum of the expectation the gradient of a sample is noise.
    scale = jnp.linalg.norm(jax.grad(loss)(jnp.zeros((3, 3))))
    assert jnp.linalg.norm(gradient) < 0.03 * scale
    for rival in (best @ best, jnp.linalg.inv(COVARIANCE), jnp.eye(3) / 2):
        assert loss(rival) > 1.02 * value


def test_the_oracle_is_the_layer_with_the_best_preconditioner():
    arrays = problem(6, 3)
    layer = preconditioned_step_weights(optimal_preconditioner(jnp.asarray(COVARIANCE), 6))
    want = optimal_linear_attention(*arrays, covariance_DD=COVARIANCE)
    np.testing.assert_allclose(run([layer], *arrays)[-1], want, rtol=1e-12)


def test_many_examples_leave_the_inverse_covariance():
    got = optimal_preconditioner(jnp.asarray(COVARIANCE), 10**9)
    np.testing.assert_allclose(got, np.linalg.inv(COVARIANCE), atol=1e-7)


def test_prefixes_have_the_optimum_of_their_length():
    inputs, targets, query = problem(5, 3)
    oracle = functools.partial(optimal_linear_attention, covariance_DD=COVARIANCE)
    together = compiled(functools.partial(prefix_predictions, oracle))(inputs, targets, query)
    alone = [oracle(inputs[:n], targets[:n], query) for n in range(6)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-11, atol=1e-14)
    isotropic = averaging(inputs, targets, query) / (1 + 1 / 5 + 3 / 5)
    got = optimal_linear_attention(inputs, targets, query, covariance_DD=np.eye(3))
    np.testing.assert_allclose(got, isotropic, rtol=1e-12)


def test_rates_may_be_traced():
    arrays = problem(4, 2)

    def prediction(rate):
        return run([one_step_weights(2, rate=rate, dtype=jnp.float64)], *arrays)[-1]

    slope = jax.grad(prediction)(0.5)
    np.testing.assert_allclose(slope, prediction(1.0), rtol=1e-12)


def test_arguments_that_cannot_be_are_named():
    with pytest.raises(ValueError, match="one_step_weights: input_width must be an integer"):
        one_step_weights(0, rate=0.1)
    with pytest.raises(ValueError, match="axis 1 of preconditioner_DD must have 2"):
        preconditioned_step_weights(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="optimal_preconditioner: num_examples must be an integer"):
        optimal_preconditioner(jnp.eye(2), 0)
    with pytest.raises(ValueError, match="axis 1 of covariance_DD must have 2"):
        optimal_linear_attention_loss(jnp.ones((2, 3)), 4)
