import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_jax.descent.finetune import descend, finetune
from icl_jax.descent.line_search import rate_grid, tune_learning_rate
from tests.helpers import normal


def _loss(weights_D, example):
    input_D, target = example
    return (weights_D @ input_D - target) ** 2


def _examples(num_examples=6):
    inputs_ND = jax.random.normal(jax.random.key(0), (num_examples, 3), jnp.float64)
    return inputs_ND, inputs_ND @ jnp.array([1.0, -2.0, 0.5])


def test_sgd_takes_the_steps_written_by_hand():
    inputs_ND, targets_N = _examples()
    weights = np.zeros(3)
    path, losses = [weights], []
    for x, y in zip(np.asarray(inputs_ND), np.asarray(targets_N), strict=True):
        losses.append((weights @ x - y) ** 2)
        weights = weights - 0.05 * 2 * (weights @ x - y) * x
        path.append(weights)
    trajectory = finetune(_loss, jnp.zeros(3), (inputs_ND, targets_N), optax.sgd(0.05))
    np.testing.assert_allclose(trajectory.points, path, rtol=1e-12)
    np.testing.assert_allclose(trajectory.losses_S, losses, rtol=1e-12)


@pytest.mark.parametrize("optimizer", [optax.adam(0.1), optax.sgd(0.02, momentum=0.9)])
def test_an_optimizer_keeps_its_state_from_step_to_step(optimizer):
    inputs_ND, targets_N = _examples()
    weights, state = jnp.zeros(3), optimizer.init(jnp.zeros(3))
    for example in zip(inputs_ND, targets_N, strict=True):
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(jax.grad(_loss)(weights, example), state, weights)
        weights = optax.apply_updates(weights, change)
    trajectory = finetune(_loss, jnp.zeros(3), (inputs_ND, targets_N), optimizer)
    np.testing.assert_allclose(trajectory.points[-1], weights, rtol=1e-10)


def test_a_tree_of_weights_starts_where_it_was():
    def loss(weights, example):
        return _loss(weights["w"], example) + weights["b"] ** 2

    start = {"w": jnp.ones(3), "b": jnp.ones(())}
    trajectory = finetune(loss, start, _examples(), optax.sgd(0.1))
    assert trajectory.points["w"].shape == (7, 3)
    np.testing.assert_array_equal(trajectory.points["w"][0], start["w"])


def test_examples_of_different_length_are_refused():
    with pytest.raises(ValueError, match="one leading axis"):
        finetune(_loss, jnp.zeros(3), (jnp.ones((4, 3)), jnp.ones(5)), optax.sgd(0.1))
    with pytest.raises(ValueError, match="at least one example"):
        finetune(_loss, jnp.zeros(3), (jnp.ones((0, 3)), jnp.ones(0)), optax.sgd(0.1))


def test_the_search_finds_the_lowest_score():
    rates = rate_grid(1e-3, 10.0, 41, jnp.float64)
    found = tune_learning_rate(lambda rate: jnp.log(rate / 0.1) ** 2, rates)
    np.testing.assert_allclose(found.best_rate, 0.1, rtol=1e-9)
    assert not found.at_edge


def test_a_best_rate_at_the_edge_is_said_to_be_there():
    rates = rate_grid(1e-3, 1.0, 5, jnp.float64)
    assert tune_learning_rate(lambda rate: -rate, rates).at_edge
    assert tune_learning_rate(lambda rate: rate, rates).at_edge


def test_a_rate_that_diverges_is_never_best():
    rates = rate_grid(0.1, 10.0, 5, jnp.float64)
    found = tune_learning_rate(lambda rate: jnp.where(rate > 0.5, jnp.nan, 1 / rate), rates)
    assert found.best_rate < 0.5
    assert jnp.isinf(found.scores_X[-1])


def test_a_grid_that_cannot_be_searched_is_refused():
    with pytest.raises(ValueError, match="must be above lowest"):
        rate_grid(1.0, 0.1, 5, jnp.float32)
    with pytest.raises(ValueError, match="at least three rates"):
        tune_learning_rate(lambda rate: rate, jnp.ones(2))


def test_full_batch_takes_the_steps_written_by_hand():
    inputs_ND, targets_N = _examples()
    weights = np.zeros(3)
    path, losses = [weights], []
    for _ in range(4):
        residuals_N = np.asarray(inputs_ND) @ weights - np.asarray(targets_N)
        losses.append(np.mean(residuals_N**2))
        weights = weights - 0.05 * 2 * residuals_N @ np.asarray(inputs_ND) / 6
        path.append(weights)

    def loss(weights_D):
        return jnp.mean((inputs_ND @ weights_D - targets_N) ** 2)

    trajectory = descend(loss, jnp.zeros(3), optax.sgd(0.05), num_steps=4)
    np.testing.assert_allclose(trajectory.points, path, rtol=1e-12)
    np.testing.assert_allclose(trajectory.losses_S, losses, rtol=1e-12)
    np.testing.assert_array_equal(trajectory.final, trajectory.points[-1])


def test_what_is_recorded_is_what_was_asked_for():
    query_D = jnp.array([1.0, 2.0, 3.0])
    whole = finetune(_loss, jnp.zeros(3), _examples(), optax.sgd(0.05))
    some = finetune(
        _loss, jnp.zeros(3), _examples(), optax.sgd(0.05), record=lambda w: {"f": w @ query_D}
    )
    np.testing.assert_allclose(some.points["f"], whole.points @ query_D, rtol=1e-12)
    np.testing.assert_array_equal(some.final, whole.final)


def test_descent_of_no_steps_is_refused():
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1"):
        descend(jnp.sum, jnp.zeros(3), optax.sgd(0.1), num_steps=0)


def test_the_lengths_of_its_steps_are_those_between_its_points():
    start = {"w": normal(50, 3), "b": normal(51, 2)}
    examples = normal(52, 6, 3)

    def loss(weights, x_D):
        return (jnp.sum(weights["w"] * x_D) + jnp.sum(weights["b"]) - 1.0) ** 2

    found = finetune(loss, start, examples, optax.adam(0.1))
    moved = [np.diff(leaf, axis=0) for leaf in jax.tree.leaves(found.points)]
    lengths_S = np.sqrt(sum(np.sum(one**2, axis=1) for one in moved))
    np.testing.assert_allclose(found.step_norms_S, lengths_S, rtol=1e-12)

    def last(scale):  # Nothing becomes NaN where a step has no length.
        still = finetune(
            lambda weights, x: 0.0 * loss(weights, x), start, examples, optax.sgd(scale)
        )
        return jnp.sum(still.final["w"])

    assert np.isfinite(jax.grad(last)(0.1))
