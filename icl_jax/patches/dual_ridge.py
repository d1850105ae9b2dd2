"""Ridge from a few rows: the solution of ``static.ridge_patch`` without a matrix of its size.

With K rows, fewer than dimensions, everything happens in the K x K products of the rows.
"""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.patches.low_rank import LowRank
from icl_jax.patches.static import wide_rows
from icl_jax.stack.settled import settled


def ridge_factors(
    inputs_KD: Array,
    changes_KH: Array,
    *,
    weight: float | Array,
    rank: int | None = None,
    present_K: Array | None = None,
) -> LowRank:
    """``reduced_rank(sums, ridge_patch(sums, weight=weight), rank)`` from the rows themselves.

    ``D = Z^T (Z Z^T + lam I)^-1 R``, and of it what serves the rows best: with the eigenvalues
    ``k`` and vectors ``U`` of ``Z Z^T`` and the leading left singular vectors ``P`` of ``G =
    diag(sqrt(k / (k + lam))) U^T R``, ``D_r = (Z^T U diag(1 / sqrt(k (k + lam))) P) (P^T G)``.

    Args:
      inputs_KD: (K, D), ``Z``.
      changes_KH: (K, H), ``R``.
      weight: as for ``ridge_patch``: ``lam = weight |Z^T Z|_F^2 / tr(Z^T Z)``.
      rank: of the update; None for min(K, D, H).
      present_K: (K,) booleans, the rows that count; the others are never read.

    Raises:
      ValueError: shapes that disagree, a weight that is not above 0, or a rank below 1.
      TypeError: dtypes that differ or are not floating point.

    Examples:
      >>> inputs, changes = jnp.array([[2.0, 0.0]]), jnp.array([[1.0, 3.0, 0.0]])
      >>> update = ridge_factors(inputs, changes, weight=1.0)
      >>> jnp.round(inputs @ update.left_RD.T @ update.right_RH, 2).tolist()
      [[0.5, 1.5, 0.0]]
    """
    where = "ridge_factors"
    rows_KD, wanted_KH = wide_rows(where, inputs_KD, changes_KH)
    count, dtype = rows_KD.shape[0], rows_KD.dtype
    checks.positive_scalar(where, "weight", weight)
    if rank is not None:
        checks.positive_int(where, "rank", rank)
    if present_K is not None:
        checks.mask(where, "present_K", present_K, count, "one per row")
        rows_KD = jnp.where(present_K[:, None], rows_KD, 0)
        wanted_KH = jnp.where(present_K[:, None], wanted_KH, 0)
    gram_KK = _product(rows_KD, rows_KD.T)
    values_K, turn_KK = jnp.linalg.eigh(gram_KK)
    trace = jnp.trace(gram_KK)
    ridge = jnp.asarray(weight, dtype) * trace * jnp.sum((gram_KK / trace) ** 2)
    # What rounding has left of an eigenvalue that is zero: no direction of the rows.
    there_K = values_K > count * jnp.finfo(dtype).eps * values_K[-1]
    safe_K = jnp.where(there_K, values_K, 1)
    served_K = jnp.where(there_K, jnp.sqrt(safe_K / (safe_K + ridge)), 0)
    served_KH = served_K[:, None] * _product(turn_KK.T, wanted_KH)
    # One decomposition after the other: two side by side can wait for each other.
    served_KH = settled(served_KH)
    _, best_KK = jnp.linalg.eigh(_product(served_KH, served_KH.T))
    size = min(count, inputs_KD.shape[1], changes_KH.shape[1])
    size = size if rank is None else min(rank, size)
    best_KR = best_KK[:, ::-1][:, :size]
    back_K = jnp.where(there_K, 1 / jnp.sqrt(safe_K * (safe_K + ridge)), 0)
    left_KR = _product(turn_KK, back_K[:, None] * best_KR)
    return LowRank(_product(left_KR.T, rows_KD), _product(best_KR.T, served_KH))


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
