"""Explicit descent against automatic differentiation, NumPy loops and least squares."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.descent.linear_steps import (
    descent_prediction,
    gd_plus_plus,
    gradient_steps,
    preconditioned_steps,
)
from icl_jax.oracles.closed_form import averaging, least_squares, prefix_predictions
from tests.helpers import compiled, seeds

ORACLES = {
    "one_step": functools.partial(descent_prediction, rate=0.3),
    "five_steps": functools.partial(descent_prediction, rate=0.3, num_steps=5),
    "gd_plus_plus": functools.partial(gd_plus_plus, rate=0.3, correction=0.1, num_steps=4),
}


def _problem(num_examples=7, width=3, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((num_examples, width), (num_examples,), (width,))
    return tuple(rng.normal(size=shape).astype(dtype) for shape in shapes)


@functools.cache
def _oracle(name):
    return compiled(ORACLES[name])


def _curvature(inputs):
    return inputs.T @ inputs / len(inputs)


@given(seeds(), st.integers(1, 8), st.integers(1, 5), st.integers(1, 5))
def test_gradient_steps_follow_the_gradient_of_the_loss(seed, num_examples, width, num_steps):
    inputs, targets, _ = _problem(num_examples, width, seed=seed)

    def loss(weights_D):
        return jnp.sum((inputs @ weights_D - targets) ** 2) / (2 * num_examples)

    path = [jnp.zeros(width)]
    for _ in range(num_steps):
        path.append(path[-1] - 0.1 * jax.grad(loss)(path[-1]))
    got = gradient_steps(inputs, targets, num_steps=num_steps, rate=0.1)
    assert got.shape == (num_steps + 1, width)
    np.testing.assert_allclose(got, np.stack(path), rtol=1e-11, atol=1e-13)


def test_one_step_is_the_averaging_oracle_times_the_rate():
    problem = _problem()
    np.testing.assert_allclose(_oracle("one_step")(*problem), 0.3 * averaging(*problem), rtol=1e-13)


def test_many_steps_arrive_at_least_squares_of_least_norm():
    for shape in ((9, 3), (3, 5)):
        inputs, targets, query = _problem(*shape)
        rate = 1 / np.linalg.eigvalsh(_curvature(inputs))[-1]
        got = descent_prediction(inputs, targets, query, rate=rate, num_steps=3000)
        np.testing.assert_allclose(got, least_squares(inputs, targets, query), atol=1e-10)


def test_descent_beyond_twice_the_inverse_curvature_diverges():
    inputs, targets, _ = _problem()
    bound = 2 / np.linalg.eigvalsh(_curvature(inputs))[-1]
    below, above = (
        np.linalg.norm(gradient_steps(inputs, targets, num_steps=200, rate=factor * bound)[-1])
        for factor in (0.95, 1.05)
    )
    assert below < 10 < 1e4 < above


def _gd_plus_plus_loop(inputs, targets, query, rate, correction, num_steps):
    """The definition, example by example."""
    inputs, residuals, query = inputs.copy(), targets.copy(), query.copy()
    predictions = [0.0]
    for _ in range(num_steps):
        change = np.zeros(len(query))
        for x, r in zip(inputs, residuals, strict=True):
            change += rate * r * x / len(inputs)
        predictions.append(predictions[-1] + change @ query)
        residuals = np.array([r - change @ x for x, r in zip(inputs, residuals, strict=True)])
        shrink = np.eye(len(query)) - correction * _curvature(inputs)
        inputs, query = np.array([shrink @ x for x in inputs]), shrink @ query
    return np.array(predictions)


@given(seeds(), st.integers(1, 8), st.integers(1, 5), st.integers(1, 5))
def test_gd_plus_plus_is_its_definition(seed, num_examples, width, num_steps):
    problem = _problem(num_examples, width, seed=seed)
    got = gd_plus_plus(*problem, rate=0.1, correction=0.05, num_steps=num_steps)
    expected = _gd_plus_plus_loop(*problem, 0.1, 0.05, num_steps)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


def test_gd_plus_plus_is_descent_preconditioned_by_the_squared_corrections():
    inputs, targets, query = _problem()
    total, current, preconditioners = np.eye(3), inputs, []
    for _ in range(4):
        preconditioners.append(0.3 * total @ total)
        shrink = np.eye(3) - 0.1 * _curvature(current)
        total, current = total @ shrink, current @ shrink
    weights = preconditioned_steps(inputs, targets, preconditioners_SDD=np.stack(preconditioners))
    got = _oracle("gd_plus_plus")(inputs, targets, query)
    np.testing.assert_allclose(got, weights @ query, rtol=1e-12, atol=1e-14)
    plain = gradient_steps(inputs, targets, num_steps=4, rate=0.3) @ query
    assert np.all(np.abs(got[2:] - plain[2:]) > 1e-4)


def test_gd_plus_plus_without_correction_is_gradient_descent():
    inputs, targets, query = _problem()
    got = gd_plus_plus(inputs, targets, query, rate=0.2, correction=0.0, num_steps=5)
    expected = gradient_steps(inputs, targets, num_steps=5, rate=0.2) @ query
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_the_correction_lowers_the_loss_that_the_best_rate_can_reach():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(200, 20, 5))
    queries, truths = rng.normal(size=(200, 5)), rng.normal(size=(200, 5))
    targets = np.einsum("bnd,bd->bn", inputs, truths)
    wanted = np.einsum("bd,bd->b", queries, truths)

    @compiled
    def best_of_rates(correction):
        def loss(rate):
            oracle = functools.partial(gd_plus_plus, rate=rate, correction=correction, num_steps=3)
            return jnp.mean((jax.vmap(oracle)(inputs, targets, queries)[:, -1] - wanted) ** 2)

        return jnp.min(jax.vmap(loss)(jnp.geomspace(0.1, 3.0, 60)))

    plain, corrected = best_of_rates(0.0), best_of_rates(0.2)
    assert 4 * corrected < plain < 0.5


def test_preconditioners_of_one_size_are_gradient_descent():
    inputs, targets, _ = _problem()
    scaled = np.broadcast_to(0.2 * np.eye(3), (4, 3, 3))
    got = preconditioned_steps(inputs, targets, preconditioners_SDD=scaled)
    expected = gradient_steps(inputs, targets, num_steps=4, rate=0.2)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


def test_the_inverse_hessian_gives_least_squares_in_one_step():
    inputs, targets, query = _problem()
    inverse = np.linalg.inv(_curvature(inputs))
    weights = preconditioned_steps(inputs, targets, preconditioners_SDD=inverse[None])
    np.testing.assert_allclose(weights[1] @ query, least_squares(inputs, targets, query), rtol=1e-9)


def test_a_preconditioner_multiplies_the_gradient_from_the_left_and_in_order():
    inputs, targets, _ = _problem()
    matrices = 0.3 * np.random.default_rng(1).normal(size=(3, 3, 3))
    weights = np.zeros(3)
    for matrix in matrices:
        weights = weights - matrix @ (inputs.T @ (inputs @ weights - targets)) / len(targets)
    got = preconditioned_steps(inputs, targets, preconditioners_SDD=matrices)
    np.testing.assert_allclose(got[-1], weights, rtol=1e-11)


@pytest.mark.parametrize("name", ORACLES)
def test_prefixes_are_runs_on_truncated_arrays(name):
    inputs, targets, query = _problem()
    together = compiled(functools.partial(prefix_predictions, ORACLES[name]))(
        inputs, targets, query
    )
    alone = [ORACLES[name](inputs[:n], targets[:n], query) for n in range(8)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-12, atol=1e-14)
    assert not np.any(together[0])


@pytest.mark.parametrize("name", ORACLES)
def test_absent_examples_are_never_read(name):
    inputs, targets, query = _problem()
    present = np.array([1, 0, 1, 1, 0, 0, 1], bool)
    spoilt_inputs, spoilt_targets = inputs.copy(), targets.copy()
    spoilt_inputs[~present], spoilt_targets[~present] = np.nan, np.inf
    got = _oracle(name)(spoilt_inputs, spoilt_targets, query, present_N=present)
    expected = _oracle(name)(inputs[present], targets[present], query)
    np.testing.assert_allclose(got, expected, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("name", ORACLES)
def test_jit_is_eager_and_prompts_of_a_batch_do_not_read_each_other(name):
    problems = [_problem(seed=seed) for seed in range(3)]
    batch = [np.stack(arrays) for arrays in zip(*problems, strict=True)]
    together = compiled(jax.vmap(ORACLES[name]))(*batch)
    alone = np.stack([ORACLES[name](*problem) for problem in problems])
    np.testing.assert_allclose(together, alone, rtol=1e-12, atol=1e-14)
    assert not np.allclose(together[0], together[1])


@pytest.mark.parametrize("name", ORACLES)
def test_predictions_have_the_dtype_of_the_prompt(name):
    for dtype in (np.float32, np.float64):
        assert jax.eval_shape(ORACLES[name], *_problem(dtype=dtype)).dtype == dtype


def test_rates_may_be_traced():
    problem = _problem()
    rates = jnp.array([0.1, 0.2])
    got = jax.vmap(lambda rate: descent_prediction(*problem, rate=rate))(rates)
    np.testing.assert_allclose(got[1], 2 * got[0], rtol=1e-13)


def test_arguments_that_disagree_are_named():
    inputs, targets, query = _problem()
    with pytest.raises(ValueError, match=r"gradient_steps: num_steps must be an integer"):
        gradient_steps(inputs, targets, num_steps=0, rate=0.1)
    with pytest.raises(ValueError, match=r"gradient_steps: rate must have 0 axes \(\), got 1"):
        gradient_steps(inputs, targets, num_steps=1, rate=jnp.ones(3))
    with pytest.raises(ValueError, match=r"gradient_steps: axis 0 of targets_N must have 7"):
        gradient_steps(inputs, targets[:3], num_steps=1, rate=0.1)
    with pytest.raises(TypeError, match=r"gradient_steps: the arguments must share one dtype"):
        gradient_steps(inputs, targets.astype(np.float32), num_steps=1, rate=0.1)
    with pytest.raises(TypeError, match=r"inputs_ND must be floating point, got int64"):
        gradient_steps(np.ones((3, 2), np.int64), np.ones(3, np.int64), num_steps=1, rate=0.1)
    with pytest.raises(ValueError, match=r"descent_prediction: axis 0 of query_D must have 3"):
        descent_prediction(inputs, targets, query[:2], rate=0.1)
    with pytest.raises(ValueError, match=r"gd_plus_plus: num_steps must be an integer"):
        gd_plus_plus(inputs, targets, query, rate=0.1, correction=0.0, num_steps=0)
    with pytest.raises(ValueError, match=r"preconditioners_SDD must have 3 axes \(S, D, D\)"):
        preconditioned_steps(inputs, targets, preconditioners_SDD=np.eye(3))
    with pytest.raises(ValueError, match=r"axis 2 of preconditioners_SDD must have 3 entries"):
        preconditioned_steps(inputs, targets, preconditioners_SDD=np.ones((1, 3, 2)))
    with pytest.raises(TypeError, match=r"share one dtype, got inputs_ND: float64"):
        preconditioned_steps(inputs, targets, preconditioners_SDD=np.ones((1, 3, 3), np.float32))
