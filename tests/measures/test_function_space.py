"""Distances between predictions and between sensitivities, against cases by hand and NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.measures.function_space import (
    ilwd,
    implicit_linear_weights,
    model_difference,
    prediction_difference,
    relative_model_difference,
    sensitivity,
    sensitivity_cosine,
    squared_prediction_difference,
)
from icl_jax.oracles.closed_form import least_squares, ridge
from tests.helpers import assert_close, compiled, normal

_weights = compiled(implicit_linear_weights)

VECTOR_PAIRS = (
    sensitivity_cosine,
    model_difference,
    relative_model_difference,
    squared_prediction_difference,
    ilwd,
)


def test_prediction_difference_by_hand():
    first, second = jnp.array([[3.0, 4.0], [1.0, 1.0]]), jnp.array([[0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(prediction_difference(first, second), [5.0, 0.0])


def test_a_scalar_prediction_needs_an_axis():
    with pytest.raises(ValueError, match=r"prediction\[None\]"):
        prediction_difference(jnp.float64(1), jnp.float64(2))


def test_sensitivity_by_hand():
    weights = jnp.array([1.0, -2.0, 3.0])
    result = sensitivity(lambda x: jnp.dot(weights, x) ** 2, jnp.array([1.0, 1.0, 1.0]))
    np.testing.assert_allclose(result, 2 * 2.0 * weights)


def test_sensitivity_of_a_linear_learner_is_its_weights():
    inputs, targets, query = normal(0, 12, 4), normal(1, 12), normal(2, 4)
    result = sensitivity(lambda x: ridge(inputs, targets, x, weight=0.5), query)
    x, y = np.asarray(inputs), np.asarray(targets)
    expected = np.linalg.solve(x.T @ x + 0.5 * np.eye(4), x.T @ y)
    assert_close(result, expected, 12, condition=10)


def test_sensitivity_wants_one_query_and_one_output():
    with pytest.raises(ValueError, match="predict must return a scalar, got shape"):
        sensitivity(lambda x: 2 * x, jnp.ones(3))
    with pytest.raises(ValueError, match="query_D must have 1 axes"):
        sensitivity(jnp.sum, jnp.ones((2, 3)))


def test_sensitivities_by_hand():
    east, diagonal = jnp.array([2.0, 0.0]), jnp.array([3.0, 3.0])
    np.testing.assert_allclose(sensitivity_cosine(east, diagonal), np.sqrt(0.5))
    np.testing.assert_allclose(model_difference(east, diagonal), np.sqrt(10))
    np.testing.assert_allclose(relative_model_difference(east, diagonal), np.sqrt(10 / 18))


def test_a_flat_model_has_no_direction():
    assert jnp.isnan(sensitivity_cosine(jnp.zeros(3), jnp.ones(3)))
    assert jnp.isnan(relative_model_difference(jnp.zeros(3), jnp.zeros(3)))


def test_the_law_of_cosines_ties_the_three_together():
    first, second = normal(3, 2, 11)
    a, b = np.linalg.norm(first), np.linalg.norm(second)
    square = a**2 + b**2 - 2 * a * b * sensitivity_cosine(first, second)
    assert_close(model_difference(first, second) ** 2, square, 11, condition=10)


def test_squared_prediction_difference_by_hand():
    first, second = jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 0.0])
    np.testing.assert_allclose(squared_prediction_difference(first, second), 13 / 3)


def test_implicit_weights_by_hand():
    inputs = jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 2.0]])
    np.testing.assert_allclose(_weights(inputs, inputs @ jnp.array([3.0, -1.0])), [3.0, -1.0])
    # A constant has the best slope through the origin: sum x / sum x^2.
    slope = _weights(jnp.array([[1.0], [2.0], [3.0]]), jnp.ones(3))
    np.testing.assert_allclose(slope, [6 / 14])


@pytest.mark.parametrize("num_probes", [5, 40])
def test_implicit_weights_are_the_least_squares_fit(num_probes):
    inputs, predictions = normal(4, num_probes, 5), normal(5, num_probes)
    expected = np.linalg.lstsq(np.asarray(inputs), np.asarray(predictions), rcond=None)[0]
    condition = np.linalg.cond(inputs)
    assert_close(_weights(inputs, predictions), expected, 40, condition=condition)


def test_implicit_weights_keep_the_digits_of_an_ill_conditioned_fit():
    # Two columns that differ by 1e-4: a condition of 2e4, which normal equations would square.
    column, other = normal(6, 2, 30, dtype="float32")
    inputs = jnp.stack([column, column + 1e-4 * other], axis=1)
    weights = jnp.array([1.0, -2.0], jnp.float32)
    fitted = _weights(inputs, inputs @ weights)
    assert_close(fitted, weights, 30, condition=np.linalg.cond(np.float64(inputs)))
    squared = np.asarray(inputs.T @ inputs), np.asarray(inputs.T @ (inputs @ weights))
    assert np.linalg.norm(np.linalg.solve(*squared) - weights) > 1


def test_implicit_weights_of_a_linear_learner_are_its_sensitivity():
    inputs, targets, probes = normal(7, 9, 3), normal(8, 9), normal(9, 6, 3)

    def learner(query):
        return least_squares(inputs, targets, query)

    weights = _weights(probes, jax.vmap(learner)(probes))
    assert_close(weights, sensitivity(learner, probes[0]), 9, condition=30)
    assert float(ilwd(weights, sensitivity(learner, probes[1]))) < 1e-24


def test_probes_of_too_few_directions_determine_no_weights():
    inputs = jnp.array([[1.0, 2.0], [2.0, 4.0], [3.0, 6.0]])
    assert np.all(np.isnan(_weights(inputs, jnp.ones(3))))
    for seed in range(5):
        flat = normal(seed, 12, 3) @ normal(seed + 5, 3, 4)
        assert np.all(np.isnan(_weights(flat, normal(1, 12))))


def test_implicit_weights_check_their_arguments():
    with pytest.raises(ValueError, match="2 probes do not determine 3 weights"):
        _weights(jnp.ones((2, 3)), jnp.ones(2))
    with pytest.raises(ValueError, match="share one shape"):
        _weights(jnp.ones((4, 3)), jnp.ones(5))
    with pytest.raises(ValueError, match="inputs_QD must have 2 axes"):
        _weights(jnp.ones(4), jnp.ones(4))
    with pytest.raises(TypeError, match="share one dtype"):
        _weights(jnp.ones((4, 3)), jnp.ones(4, jnp.float32))


def test_ilwd_by_hand():
    np.testing.assert_allclose(ilwd(jnp.array([1.0, 2.0]), jnp.array([0.0, 4.0])), 5.0)


def test_narrow_inputs_are_compared_wide():
    first, second = normal(10, 2, 16, dtype="bfloat16")
    for measure in (*VECTOR_PAIRS, prediction_difference):
        assert measure(first, second).dtype == jnp.float32


def test_a_batch_is_a_loop_and_compiled_is_eager():
    first, second, probes = normal(11, 5, 8), normal(12, 5, 8), normal(13, 5, 8, 3)
    for measure in VECTOR_PAIRS:
        loop = jnp.stack([measure(a, b) for a, b in zip(first, second, strict=True)])
        np.testing.assert_allclose(jax.jit(jax.vmap(measure))(first, second), loop, rtol=1e-13)
    fits = jax.jit(jax.vmap(implicit_linear_weights))(probes, first)
    for fit, probe, prediction in zip(fits, probes, first, strict=True):
        assert_close(fit, implicit_linear_weights(probe, prediction), 8, condition=10)


def test_shapes_and_dtypes_are_checked():
    for measure in VECTOR_PAIRS:
        with pytest.raises(ValueError, match="must have 1 axes"):
            measure(jnp.ones((2, 3)), jnp.ones((2, 3)))
    for measure in (*VECTOR_PAIRS, prediction_difference):
        with pytest.raises(ValueError, match="share one shape"):
            measure(jnp.ones(3), jnp.ones(4))
        with pytest.raises(TypeError, match="share one dtype"):
            measure(jnp.ones(3), jnp.ones(3, jnp.float32))
