"""The oracles: what a statistician predicts for the query from the same examples.

Every oracle maps ``(inputs_ND, targets_N, query_D)`` to a scalar. ``present_N`` says which examples
the context holds (None: all); the values of the others are never read, not even a NaN. So all
prefixes of a context are one ``vmap`` over masks. With no example present every oracle says 0.

All are differentiable in inputs, labels, query and ridge weight, whatever examples are present,
repeated or absent (least squares: among inputs of one rank, of which its answer is a continuous
function). Derivatives of least squares and ridge are those of the weights in closed form: that of a
singular value decomposition does not exist where singular values are equal. Second derivatives in
inputs go through it all the same, and exist where they differ.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.oracles.examples import count, present_examples, product

#: ``oracle(inputs_ND, targets_N, query_D, *, present_N=None) -> ()``
Oracle = Callable[..., Array]


def zero(
    inputs_ND: Array, targets_N: Array, query_D: Array, *, present_N: Array | None = None
) -> Array:
    """Predicts 0, whatever the examples: the floor that a learner has to beat."""
    present_examples("zero", inputs_ND, targets_N, query_D, present_N)
    return jnp.zeros((), query_D.dtype)


def averaging(
    inputs_ND: Array, targets_N: Array, query_D: Array, *, present_N: Array | None = None
) -> Array:
    """``query . w`` with ``w = mean_i y_i x_i``: least squares that takes ``E[x x^T] = I``.

    Source: Garg et al. 2022 (arXiv 2208.01066), section 3.
    """
    inputs_ND, targets_N, present_N = present_examples(
        "averaging", inputs_ND, targets_N, query_D, present_N
    )
    weights_D = product(targets_N, inputs_ND) / jnp.maximum(count(present_N, query_D), 1)
    return product(weights_D, query_D)


def least_squares(
    inputs_ND: Array, targets_N: Array, query_D: Array, *, present_N: Array | None = None
) -> Array:
    """``query . w`` with the least-norm minimiser ``w`` of ``sum_i (y_i - x_i . w)^2``.

    Args:
      inputs_ND: (N, D) in float32 or float64; N may be smaller than D.
      targets_N: (N,).
      query_D: (D,).
      present_N: (N,) booleans, the examples in the context.

    Returns:
      The prediction, ().

    Raises:
      ValueError: shapes that disagree.
      TypeError: dtypes that disagree, or are narrower than float32.

    Source: Garg et al. 2022 (arXiv 2208.01066), section 3.
    """
    inputs_ND, targets_N, present_N = present_examples(
        "least_squares", inputs_ND, targets_N, query_D, present_N
    )
    weights_D = _least_norm_weights(inputs_ND, targets_N, count(present_N, query_D))
    return product(weights_D, query_D)


def ridge(
    inputs_ND: Array,
    targets_N: Array,
    query_D: Array,
    *,
    present_N: Array | None = None,
    weight: float | Array = 1.0,
) -> Array:
    """``query . w`` with the ``w`` that minimises ``sum_i (y_i - x_i . w)^2 + weight |w|^2``.

    With ``weight = bayes_ridge_weight(...)`` it is Bayes-optimal on a noisy linear task. The weight
    is a number or (); it may be traced.

    Raises:
      ValueError: shapes that disagree, or a ``weight`` that is not above 0 (``least_squares`` is
        the limit).
      TypeError: dtypes that disagree, or are narrower than float32.
    """
    checks.positive_scalar("ridge", "weight", weight)
    inputs_ND, targets_N, _ = present_examples("ridge", inputs_ND, targets_N, query_D, present_N)
    weights_D = _ridge_weights(inputs_ND, targets_N, jnp.asarray(weight, query_D.dtype))
    return product(weights_D, query_D)


def bayes_ridge_weight(*, noise_std: float, weight_std: float = 1.0) -> float:
    """The ridge weight ``noise_std^2 / weight_std^2`` of the posterior mean.

    For labels ``w . x + N(0, noise_std^2)`` with the prior ``w ~ N(0, weight_std^2 I)``, whatever
    the distribution of the inputs. Without noise the posterior mean is ``least_squares``.
    """
    checks.positive("bayes_ridge_weight", "noise_std", noise_std)
    checks.positive("bayes_ridge_weight", "weight_std", weight_std)
    return (noise_std / weight_std) ** 2


def nearest_neighbours(
    inputs_ND: Array,
    targets_N: Array,
    query_D: Array,
    *,
    present_N: Array | None = None,
    num_neighbours: int = 3,
) -> Array:
    """The mean label of the ``num_neighbours`` closest examples, or of all when there are fewer.

    Of examples at the same distance the earlier one counts as closer.

    Source: Garg et al. 2022 (arXiv 2208.01066), section 3 (3 neighbours).
    """
    checks.positive_int("nearest_neighbours", "num_neighbours", num_neighbours)
    inputs_ND, targets_N, present_N = present_examples(
        "nearest_neighbours", inputs_ND, targets_N, query_D, present_N
    )
    distances_N = jnp.sum((inputs_ND - query_D[None, :]) ** 2, axis=1)
    ranked_N = jnp.argsort(jnp.where(present_N, distances_N, jnp.inf), stable=True)
    closest = ranked_N[:num_neighbours]
    total = jnp.sum(targets_N[closest])  # The labels of absent examples are zero by now.
    return total / jnp.maximum(count(present_N[closest], query_D), 1)


#: The oracles by name, at their defaults.
ORACLES: Mapping[str, Oracle] = MappingProxyType(
    {
        "zero": zero,
        "averaging": averaging,
        "least_squares": least_squares,
        "ridge": ridge,
        "nearest_neighbours": nearest_neighbours,
    }
)


def prefix_predictions(oracle: Oracle, inputs_ND: Array, targets_N: Array, query_D: Array) -> Array:
    """What ``oracle`` predicts after the first 0, 1, ..., N examples: (N + 1,).

    Examples:
      >>> inputs, targets = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([2.0, 4.0])
      >>> query = jnp.array([1.0, 1.0])
      >>> found = prefix_predictions(ORACLES["least_squares"], inputs, targets, query)
      >>> jnp.round(found, 4).tolist()
      [0.0, 2.0, 6.0]
    """
    checks.rank("prefix_predictions", "inputs_ND", inputs_ND, 2, "(N, D)")
    num_examples = inputs_ND.shape[0]
    present_MN = jnp.tri(num_examples + 1, num_examples, -1, dtype=bool)
    return jax.vmap(lambda present_N: oracle(inputs_ND, targets_N, query_D, present_N=present_N))(
        present_MN
    )


@jax.custom_jvp
def _least_norm_weights(inputs_ND: Array, targets_N: Array, num_present: Array) -> Array:
    """``X^+ y`` (D,); the number of examples present says where rounding begins."""
    left, inverse_R, right = _least_norm_spectrum(inputs_ND, targets_N, num_present)
    return product(left * inverse_R, right)


@_least_norm_weights.defjvp
def _least_norm_weights_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Any]
) -> tuple[Array, Array]:
    """Golub and Pereyra 1973: the derivative of a pseudoinverse among matrices of one rank."""
    inputs_ND, targets_N, num_present = primals
    d_inputs_ND, d_targets_N, _ = tangents
    left, inverse_R, right = _least_norm_spectrum(inputs_ND, targets_N, num_present)
    weights_D = product(left * inverse_R, right)

    def gram_inverse(vector_D: Array) -> Array:
        return product(product(right, vector_D) * inverse_R**2, right)

    rest_N = targets_N - product(inputs_ND, weights_D)
    dual_N = product(inputs_ND, gram_inverse(weights_D))
    moved_N = d_targets_N - product(d_inputs_ND, weights_D)
    inside_D = gram_inverse(product(inputs_ND.T, moved_N) + product(d_inputs_ND.T, rest_N))
    turned_D = product(d_inputs_ND.T, dual_N)
    spanned_D = product(jnp.where(inverse_R > 0, product(right, turned_D), 0), right)
    return weights_D, inside_D + turned_D - spanned_D


@jax.custom_jvp
def _ridge_weights(inputs_ND: Array, targets_N: Array, weight: Array) -> Array:
    """``(X^T X + weight)^-1 X^T y``, (D,)."""
    left, values_R, right = _spectrum(inputs_ND, targets_N)
    return product(left * values_R / (values_R**2 + weight), right)


@_ridge_weights.defjvp
def _ridge_weights_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    inputs_ND, targets_N, weight = primals
    d_inputs_ND, d_targets_N, d_weight = tangents
    left, values_R, right = _spectrum(inputs_ND, targets_N)
    weights_D = product(left * values_R / (values_R**2 + weight), right)

    rest_N = targets_N - product(inputs_ND, weights_D)
    moved_N = d_targets_N - product(d_inputs_ND, weights_D)
    push_D = product(inputs_ND.T, moved_N) + product(d_inputs_ND.T, rest_N) - d_weight * weights_D
    along_R = product(right, push_D)
    beside_D = push_D - product(along_R, right)  # Fewer examples than dimensions: what X misses.
    return weights_D, product(along_R / (values_R**2 + weight), right) + beside_D / weight


def _least_norm_spectrum(
    inputs_ND: Array, targets_N: Array, num_present: Array
) -> tuple[Array, Array, Array]:
    """As ``_spectrum``, the singular values inverted, and zero where they are rounding."""
    left, values_R, right = _spectrum(inputs_ND, targets_N)
    # NumPy's cutoff, max(n, D) eps, but at least 8 eps: where the rank ends, rounding leaves about
    # 2 eps of the largest singular value whatever the size (measured: at most 2.5; repeated and
    # parallel examples, copied columns; D from 2 to 20, n to 200), so NumPy's has no margin at
    # n = D = 2. The n counts the examples present: all N would drop true directions around n = D.
    length = jnp.maximum(num_present, max(inputs_ND.shape[1], 8))
    cutoff = jnp.finfo(inputs_ND.dtype).eps * length * jnp.max(values_R, initial=0)
    kept_R = values_R > cutoff
    return left, jnp.where(kept_R, 1 / jnp.where(kept_R, values_R, 1), 0), right


def _spectrum(inputs_ND: Array, targets_N: Array) -> tuple[Array, Array, Array]:
    """With ``X = U diag(s) V^T``: ``U^T y`` (R,), ``s`` (R,) and ``V^T`` (R, D), R <= D.

    The triangle of ``[X | y]`` holds all that a fit needs of N examples, and leaves a decomposition
    of D columns. Normal equations would be cheaper and lose half of the digits, which in float32 is
    all of them near n = D.
    """
    width = inputs_ND.shape[1]
    triangle = jnp.linalg.qr(jnp.concatenate([inputs_ND, targets_N[:, None]], axis=1), mode="r")[
        :width
    ]
    left, values_R, right = jnp.linalg.svd(triangle[:, :width], full_matrices=False)
    return product(triangle[:, width], left), values_R, right
