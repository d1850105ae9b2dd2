"""Distances between what two models compute, on queries or around one.

Q counts the queries, or probe inputs, that two learners are asked about.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.measures.representation import check_vectors, vector_cosine
from icl_jax.patches.carry import varying_like
from icl_jax.patches.vectors import nan_unless, row_triangle, vector_norm


def relative_error(actual: Array, expected: Array) -> Array:
    """``|actual - expected|_F / |expected|_F`` over all axes, in float32 or wider.

    Returns:
      (); infinite when only the expected is zero, NaN when both are.

    Raises:
      ValueError: the shapes differ, or there is nothing in them.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> round(float(relative_error(jnp.array([3.0, 0.0]), jnp.array([3.0, 4.0]))), 4)
      0.8
    """
    checks.comparable("relative_error", actual=actual, expected=expected)
    checks.not_empty("relative_error", "expected", expected)
    return vector_norm(_difference(actual, expected).ravel()) / vector_norm(expected.ravel())


def squared_error(predictions: Array, targets: Array) -> Array:
    """``(prediction - target)^2``, element by element, in squared units of the target.

    In float32 or wider: float16 ends at 65,504, which is an error of 256.

    Raises:
      ValueError: the shapes differ.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> squared_error(jnp.array([1.0, 3.0]), jnp.array([0.0, 5.0])).tolist()
      [1.0, 4.0]
    """
    checks.comparable("squared_error", predictions=predictions, targets=targets)
    return _difference(predictions, targets) ** 2


def prediction_difference(first: Array, second: Array) -> Array:
    """``|first - second|_2`` over the last axis: (...) of predictions (..., O).

    In units of the prediction and in float32 or wider. A scalar prediction needs its axis of one.

    Raises:
      ValueError: the shapes differ, or there is no axis.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> float(prediction_difference(jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0])))
      5.0

    Source: von Oswald et al. 2023 (arXiv 2212.07677), section 3, the difference of predictions.
    """
    checks.comparable("prediction_difference", first=first, second=second)
    if jnp.ndim(first) == 0:
        raise ValueError(
            "prediction_difference: first needs a last axis to take the norm over, got shape (). "
            "Give a scalar prediction an axis: prediction[None]."
        )
    return vector_norm(_difference(first, second))


def sensitivity(predict: Callable[[Array], Array], query_D: Array) -> Array:
    """``d predict(x) / d x`` at ``x = query``, (D,): the linear model that ``predict`` is there.

    Args:
      predict: the prediction for one query, ``(D,) -> ()``, everything else held fixed: the context
        for in-context learning, the tuned weights for a descent.
      query_D: (D,).

    Raises:
      ValueError: the query is no vector, or the prediction no scalar.

    Examples:
      >>> sensitivity(lambda query: query @ jnp.array([3.0, 4.0]), jnp.zeros(2)).tolist()
      [3.0, 4.0]

    Source: von Oswald et al. 2023 (arXiv 2212.07677), section 3.
    """
    checks.rank("sensitivity", "query_D", query_D, 1, "(D)")
    shape = jax.eval_shape(predict, query_D).shape
    if shape != ():
        raise ValueError(
            f"sensitivity: predict must return a scalar, got shape {shape}. Choose one output, for "
            "example lambda query_D: predict(query_D)[0]."
        )
    return jax.grad(predict)(query_D)


def sensitivity_cosine(first_D: Array, second_D: Array) -> Array:
    """The cosine of two sensitivities, (): whether two learners look in the same direction.

    Returns:
      (); NaN when one of them is zero, which has no direction.

    Raises:
      ValueError: not vectors, or shapes that differ.
      TypeError: the dtypes differ.

    Examples:
      >>> round(float(sensitivity_cosine(jnp.array([3.0, 4.0]), jnp.array([4.0, 3.0]))), 4)
      0.96

    Source: von Oswald et al. 2023 (arXiv 2212.07677), section 3.
    """
    check_vectors("sensitivity_cosine", "(D)", first_D=first_D, second_D=second_D)
    return vector_cosine(first_D, second_D)


def model_difference(first_D: Array, second_D: Array) -> Array:
    """``|first - second|_2`` of two sensitivities, (): the cosine and their lengths in one number.

    Raises:
      ValueError: not vectors, or shapes that differ.
      TypeError: the dtypes differ.

    Examples:
      >>> float(model_difference(jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0])))
      5.0

    Source: von Oswald et al. 2023 (arXiv 2212.07677), section 3.
    """
    check_vectors("model_difference", "(D)", first_D=first_D, second_D=second_D)
    return vector_norm(_difference(first_D, second_D))


def relative_model_difference(first_D: Array, second_D: Array) -> Array:
    """``model_difference / |second|``, with the descent second: its scale is the unit.

    The source has the difference alone, which is small for any two models that hardly move.

    Examples:
      >>> float(relative_model_difference(jnp.array([3.0, 0.0]), jnp.array([0.0, 4.0])))
      1.25
    """
    return model_difference(first_D, second_D) / vector_norm(second_D)


def squared_prediction_difference(first_Q: Array, second_Q: Array) -> Array:
    """``mean_q (first_q - second_q)^2``, (): SPD of two algorithms that saw the same examples.

    Args:
      first_Q: (Q,), what one algorithm predicts for Q queries after a context.
      second_Q: (Q,), what the other does. The mean over contexts is the caller's.

    Raises:
      ValueError: not vectors, or shapes that differ.
      TypeError: the dtypes differ.

    Examples:
      >>> float(squared_prediction_difference(jnp.array([1.0, 2.0]), jnp.array([1.0, 4.0])))
      2.0

    Source: Akyurek et al. 2023 (arXiv 2211.15661), section 4.1.
    """
    check_vectors("squared_prediction_difference", "(Q)", first_Q=first_Q, second_Q=second_Q)
    return jnp.mean(_difference(first_Q, second_Q) ** 2)


def implicit_linear_weights(inputs_QD: Array, predictions_Q: Array) -> Array:
    """``argmin_w sum_q (prediction_q - w . x_q)^2``, (D,): the linear model nearest to a learner.

    Args:
      inputs_QD: (Q, D), Q >= D probe inputs without labels; float32 or wider.
      predictions_Q: (Q,), what a learner predicts for them after its context.

    Returns:
      The weights, (D,); all NaN when the probes span less than D dimensions.

    Raises:
      ValueError: shapes that disagree, or fewer probes than dimensions.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> probes = jnp.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
      >>> jnp.round(implicit_linear_weights(probes, probes @ jnp.array([3.0, -1.0])), 4).tolist()
      [3.0, -1.0]

    Source: Akyurek et al. 2023 (arXiv 2211.15661), section 4.1. By orthogonalisation, as normal
      equations lose half of the digits; for the reason in ``vectors.row_triangle``, no LAPACK.
    """
    where = "implicit_linear_weights"
    checks.rank(where, "inputs_QD", inputs_QD, 2, "(Q, D)")
    checks.floating(where, "inputs_QD", inputs_QD)
    checks.same_dtype(where, inputs_QD=inputs_QD, predictions_Q=predictions_Q)
    checks.same_shape(where, inputs=inputs_QD[:, 0], predictions_Q=predictions_Q)
    num_probes, width = inputs_QD.shape
    if num_probes < width:
        raise ValueError(
            f"implicit_linear_weights: {num_probes} probes do not determine {width} weights. Draw "
            f"at least {width} probe inputs."
        )

    # Inputs = Basis^T Triangle^T and coordinates = Basis predictions, so Triangle^T w = coordinates
    dtype = accumulator(inputs_QD.dtype)
    columns = jnp.concatenate([inputs_QD.T, predictions_Q[None]]).astype(dtype)
    triangle = row_triangle(columns)
    inputs_DD, coordinates_D = triangle[:width, :width], triangle[width, :width]
    # What is left of a column outside the span of those before it is rounding, or a direction.
    rounding = jnp.finfo(dtype).eps * max(num_probes, 8) * jnp.linalg.norm(inputs_DD, axis=1)
    independent = jnp.all(jnp.diagonal(inputs_DD) > rounding)
    weights_D = _back_substitution(inputs_DD, coordinates_D)
    return nan_unless(independent, weights_D)


def _back_substitution(triangle_DD: Array, right_D: Array) -> Array:
    """``w`` with ``T^T w = right`` for a lower triangular ``T``, last entry first."""

    def step(weights_D: Array, index: Array) -> tuple[Array, None]:
        column_D = triangle_DD[:, index]
        known = jnp.dot(column_D, weights_D, precision=jax.lax.Precision.HIGHEST)
        return weights_D.at[index].set((right_D[index] - known) / column_D[index]), None

    last_first_D = jnp.arange(right_D.shape[0] - 1, -1, -1)
    start_D = varying_like(jnp.zeros_like(right_D), triangle_DD, right_D)
    return jax.lax.scan(step, start_D, last_first_D)[0]


def ilwd(first_D: Array, second_D: Array) -> Array:
    """``|first - second|_2^2`` of two ``implicit_linear_weights``, (): ILWD, "implicit linear
    weight difference". The mean over contexts and probes is the caller's.

    Raises:
      ValueError: not vectors, or shapes that differ.
      TypeError: the dtypes differ.

    Examples:
      >>> float(ilwd(jnp.array([1.0, 2.0]), jnp.array([1.0, 5.0])))
      9.0

    Source: Akyurek et al. 2023 (arXiv 2211.15661), section 4.1.
    """
    check_vectors("ilwd", "(D)", first_D=first_D, second_D=second_D)
    return jnp.sum(_difference(first_D, second_D) ** 2)


def _difference(first: Array, second: Array) -> Array:
    """In float32 or wider, widened before it is taken."""
    dtype = accumulator(first.dtype)
    return first.astype(dtype) - second.astype(dtype)
