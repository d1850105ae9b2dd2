"""Updates that outlive their token: one change of a kernel for many inputs, a ladder of solutions.

A token patch is exact for one input. Asked of many, ``Z dW = R`` over rows ``k``: with ``Z`` the
inputs of a kernel without the context and ``R`` what the context adds to its output, either
``(z_S - z_K) W`` (the input side), or the change of the residual stream (the down kernel, ``Z`` the
hidden activations). With ``R = z_S - z_K`` itself the answer ``M`` serves every kernel that reads
``z``, as ``W -> (I + M) W``.

From the cheapest: the mean change (``thought_vector``), ``cheap_patch``, ``exact_patch`` for up to
D inputs, ``ridge_patch`` for any number, ``covariance_patch`` that spares ordinary inputs. All but
the exact one need sums only (``QuerySums``), which stream: any number of rows in the memory of one
matrix, over calls (``merge_sums``) and over devices (``jax.lax.psum`` of the sums). Any of them at
a lower rank: ``reduced_rank`` (nearest on the rows), or ``spectrum.from_matrix`` and
``spectrum.truncate`` (nearest as a matrix). For a whole stack: ``ladder.fit_static``.
"""

from dataclasses import dataclass
from typing import TypeVar

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.patches.low_rank import LowRank
from icl_jax.patches.vectors import vector_norm
from icl_jax.shown import short

Sums = TypeVar("Sums")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuerySums:
    """What K rows of ``Z`` (K, D) and ``R`` (K, H) have in sum, in float32 or wider.

    Attributes:
      gram_DD: (D, D), ``Z^T Z``.
      cross_DH: (D, H), ``Z^T R``.
      scaled_DH: (D, H), ``sum_k outer(z_k, R_k) / |z_k|^2``.
      change_H: (H,), ``sum_k R_k``.
      count: (), K.

    Examples:
      >>> sums = query_sums(jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[3.0], [4.0]]))
      >>> sums.gram_DD.tolist(), sums.cross_DH.tolist(), sums.scaled_DH.tolist()
      ([[1.0, 0.0], [0.0, 4.0]], [[3.0], [8.0]], [[3.0], [2.0]])
      >>> sums.change_H.tolist(), float(sums.count)
      ([7.0], 2.0)
    """

    gram_DD: Array
    cross_DH: Array
    scaled_DH: Array
    change_H: Array
    count: Array

    __repr__ = short


def query_sums(inputs_KD: Array, changes_KH: Array, *, present_K: Array | None = None) -> QuerySums:
    """The sums of a batch of rows.

    Args:
      inputs_KD: (K, D), ``Z``: what the kernel reads without the context.
      changes_KH: (K, H), ``R``: what the context adds to its output.
      present_K: (K,) booleans, the rows that count (None: all); the others are never read.

    Raises:
      ValueError: shapes that disagree.
      TypeError: dtypes that differ or are not floating point, a mask that is not boolean.

    Examples:
      >>> inputs, changes = jnp.eye(2), jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> sums = query_sums(inputs, changes)  # all that a ridge patch needs of them
      >>> bool(jnp.allclose(ridge_patch(sums, weight=1e-6), changes, atol=1e-4))
      True
    """
    inputs_KD, changes_KH = wide_rows("query_sums", inputs_KD, changes_KH)
    if present_K is None:
        present_K = jnp.ones(inputs_KD.shape[0], bool)
    checks.mask("query_sums", "present_K", present_K, inputs_KD.shape[0], "one per row")
    inputs_KD = jnp.where(present_K[:, None], inputs_KD, 0)
    changes_KH = jnp.where(present_K[:, None], changes_KH, 0)
    lengths_K = vector_norm(inputs_KD)
    # Absent rows are zero and have no direction; nor has a present one, which then shows as NaN.
    units_KD = inputs_KD / jnp.where(present_K, lengths_K, 1)[:, None]
    scaled_KH = changes_KH / jnp.where(present_K, lengths_K, 1)[:, None]
    return QuerySums(
        gram_DD=_product(inputs_KD.T, inputs_KD),
        cross_DH=_product(inputs_KD.T, changes_KH),
        scaled_DH=_product(units_KD.T, scaled_KH),
        change_H=jnp.sum(changes_KH, axis=0),
        count=jnp.sum(present_K, dtype=inputs_KD.dtype),
    )


def merge_sums(first: Sums, second: Sums) -> Sums:
    """The sums over the rows of both: of ``QuerySums``, or of ``static_sums`` of a stack.

    Examples:
      >>> one = query_sums(jnp.array([[1.0, 0.0]]), jnp.array([[2.0]]))
      >>> both = merge_sums(one, query_sums(jnp.array([[0.0, 1.0]]), jnp.array([[4.0]])))
      >>> thought_vector(both).tolist()
      [3.0]
    """
    return jax.tree.map(jnp.add, first, second)


def thought_vector(sums: QuerySums) -> Array:
    """The mean change of the output, (H,): a bias or steering vector, blind to the input.

    Examples:
      >>> inputs, changes = jnp.eye(2), jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> thought_vector(query_sums(inputs, changes)).tolist()
      [2.0, 3.0]

    Source: Mazzawi et al. (arXiv 2510.08734), equation 8.
    """
    return sums.change_H / sums.count


def cheap_patch(sums: QuerySums) -> Array:
    """``(D / K) sum_k outer(z_k, R_k) / |z_k|^2`` (D, H): no system is solved.

    Where the ``K`` directions are spread evenly, ``sum_k outer(z_k, z_k) / |z_k|^2`` is ``K / D``
    times the identity: so a mean over the rows has to be taken D times to be a solution.

    Examples:
      >>> inputs, changes = jnp.eye(2), jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> cheap_patch(query_sums(inputs, changes)).tolist()
      [[1.0, 2.0], [3.0, 4.0]]

    Source: Mazzawi et al. (arXiv 2510.08734), equation 24; the factor D is worked out here.
    """
    return sums.scaled_DH * (sums.gram_DD.shape[0] / sums.count)


def relative_weight(sums: QuerySums, weight: float | Array) -> Array:
    """``weight |Z^T Z|_F^2 / tr(Z^T Z)``, (): a ridge weight in units of the inputs.

    The ratio is the mean eigenvalue of ``Z^T Z``, each weighted by itself: that of the directions
    which the inputs have, however many they lack.

    Source: PatchKV (2026).
    """
    # Eigenvalues of 1e30 have squares of 1e60: the ratio first.
    trace = jnp.trace(sums.gram_DD)
    return jnp.asarray(weight, trace.dtype) * trace * jnp.sum((sums.gram_DD / trace) ** 2)


def ridge_patch(sums: QuerySums, *, weight: float | Array) -> Array:
    """``(Z^T Z + lam I)^-1 Z^T R`` (D, H), ``lam = relative_weight(sums, weight)``.

    Args:
      sums: of any number of rows.
      weight: above 0, a number or (), traced or not; 1e-3 keeps 1e-3 of the error of no patch.

    Raises:
      ValueError: a weight that is not above 0 (``exact_patch`` is the limit).

    Examples:
      >>> inputs = jax.random.normal(jax.random.key(0), (50, 3))
      >>> sums = query_sums(inputs, 2 * inputs)  # the context doubles everything
      >>> jnp.round(ridge_patch(sums, weight=1e-3), 1).tolist()
      [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 2.0]]
    """
    checks.positive_scalar("ridge_patch", "weight", weight)
    size = sums.gram_DD.shape[0]
    ridge_DD = relative_weight(sums, weight) * jnp.eye(size, dtype=sums.gram_DD.dtype)
    return _solve(sums.gram_DD + ridge_DD, sums.cross_DH)


def reduced_rank(sums: QuerySums, patch_DH: Array, rank: int | None) -> LowRank:
    """A solution as factors, at a rank: of that rank the one that serves the rows best.

    ``D V V^T`` with the leading eigenvectors ``V`` of ``D^T Z^T R``. Of ``D = (Z^T Z + lam S)^-1
    Z^T R`` this is the least of ``|Z X - R|^2 + lam tr(X^T S X)`` over all ``X`` of the rank, where
    the truncated singular values of ``D`` are nearest to ``D`` on inputs that nobody has.

    Args:
      sums: what the solution was made of.
      patch_DH: (D, H), of ``ridge_patch`` or ``covariance_patch``.
      rank: at least 1; None, or more than min(D, H): all of it.

    Raises:
      ValueError: a solution of another shape, or a rank below 1.

    Examples:
      >>> inputs = jax.random.normal(jax.random.key(0), (50, 3))
      >>> sums = query_sums(inputs, inputs * jnp.array([5.0, 0.1, 0.0]))
      >>> update = reduced_rank(sums, ridge_patch(sums, weight=1e-4), 1)
      >>> jnp.abs(jnp.round(as_matrix(update), 0)).tolist()
      [[5.0, 0.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]

    Source: Izenman 1975 (reduced-rank regression), with the ridge of Mukherjee and Zhu 2011.
    """
    checks.same_shape("reduced_rank", cross_DH=sums.cross_DH, patch_DH=patch_DH)
    if rank is not None:
        checks.positive_int("reduced_rank", "rank", rank)
    served_HH = _product(patch_DH.T, sums.cross_DH)
    # Symmetric but for rounding, which eigh would read from one triangle only.
    _, turn_HH = jnp.linalg.eigh((served_HH + served_HH.T) / 2)
    count = min(patch_DH.shape if rank is None else (rank, *patch_DH.shape))
    turn_HR = turn_HH[:, ::-1][:, :count]
    return LowRank(_product(patch_DH, turn_HR).T, turn_HR.T)


def covariance_patch(sums: QuerySums, covariance_DD: Array, *, weight: float | Array) -> Array:
    """``(Z^T Z + lam S)^-1 Z^T R`` (D, H): ridge in the metric of ordinary inputs.

    ``lam = weight tr(Z^T Z) / tr(S)``. Of all updates that serve the rows as well, it moves the
    outputs of ordinary inputs, with ``S = E[z z^T]``, least. For one row and a small weight it is
    ``outer(S^-1 z / (z^T S^-1 z), R)``.

    Args:
      sums: of any number of rows.
      covariance_DD: (D, D), ``S``, symmetric and positive definite.
      weight: above 0, a number or ().

    Raises:
      ValueError: a covariance of another shape, or a weight that is not above 0.

    Examples:
      >>> sums = query_sums(jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 3.0]]))
      >>> found = covariance_patch(sums, jnp.eye(2), weight=1e-6)
      >>> bool(jnp.allclose(found, jnp.array([[2.0, 3.0], [0.0, 0.0]]), atol=1e-4))
      True

    Source: the metric of ROME and MEMIT (Meng et al., arXiv 2210.07229), whose solution for many
      keys this is.
    """
    where = "covariance_patch"
    checks.positive_scalar(where, "weight", weight)
    checks.same_shape(where, gram_DD=sums.gram_DD, covariance_DD=covariance_DD)
    metric_DD = covariance_DD.astype(sums.gram_DD.dtype)
    scale = jnp.trace(sums.gram_DD) / jnp.trace(metric_DD)
    ridge = jnp.asarray(weight, scale.dtype) * scale
    return _solve(sums.gram_DD + ridge * metric_DD, sums.cross_DH)


def dual_vectors(
    inputs_KD: Array, *, covariance_DD: Array | None = None, ridge: float | Array = 0.0
) -> Array:
    """Vectors ``V`` (K, D) with ``z_k . v_l = 1`` where k = l, and 0 elsewhere; K up to D.

    ``V = (Z C^-1 Z^T + ridge I)^-1 Z C^-1``: for one row ``C^-1 z / (z^T C^-1 z)``, and without a
    covariance ``dual_vector(z)``. Rows that depend on each other have the least-squares answer of
    least norm, and are not told apart.

    Args:
      inputs_KD: (K, D).
      covariance_DD: (D, D), ``C`` of ordinary inputs, positive definite; None is the identity.
      ridge: from 0 on, in units of ``z^T C^-1 z``; above 0 nothing is exact any more.

    Raises:
      ValueError: more rows than dimensions, or shapes that disagree.
      TypeError: dtypes that differ or are not floating point.

    Examples:
      >>> inputs = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
      >>> duals = dual_vectors(inputs)
      >>> bool(jnp.allclose(inputs @ duals.T, jnp.eye(2), atol=1e-5))
      True
    """
    where = "dual_vectors"
    checks.rank(where, "inputs_KD", inputs_KD, 2, "(K, D)")
    checks.floating(where, "inputs_KD", inputs_KD)
    count, width = inputs_KD.shape
    if not 1 <= count <= width:
        raise ValueError(
            f"{where}: inputs_KD must hold from 1 to D={width} rows, got {count}: more cannot be "
            "served exactly. Solve for them with ridge_patch(query_sums(...), weight=...)."
        )
    wide_KD = inputs_KD.astype(accumulator(inputs_KD.dtype))
    # Each row at length 1: sizes differ from token to token, and are no reason to drop one.
    lengths_K1 = vector_norm(wide_KD)[:, None]
    unit_KD = wide_KD / lengths_K1
    if covariance_DD is None:
        return (_pseudo_duals(unit_KD, lengths_K1, ridge) / lengths_K1).astype(inputs_KD.dtype)
    checks.rank(where, "covariance_DD", covariance_DD, 2, "(D, D)")
    checks.same_dtype(where, inputs_KD=inputs_KD, covariance_DD=covariance_DD)
    for axis in (0, 1):
        checks.axis_size(where, "covariance_DD", covariance_DD, axis, width, "D")
    root_DD = jnp.linalg.cholesky(covariance_DD.astype(wide_KD.dtype))
    white_KD = jax.scipy.linalg.solve_triangular(root_DD, unit_KD.T, lower=True).T
    duals_KD = _pseudo_duals(white_KD, lengths_K1, ridge)
    back_KD = jax.scipy.linalg.solve_triangular(root_DD, duals_KD.T, lower=True, trans=1).T
    return (back_KD / lengths_K1).astype(inputs_KD.dtype)


def exact_patch(
    inputs_KD: Array,
    changes_KH: Array,
    *,
    covariance_DD: Array | None = None,
    ridge: float | Array = 0.0,
) -> LowRank:
    """``dW`` of rank K with ``Z dW = R``, of least norm: one update for up to D tokens or prompts.

    ``dW = sum_k outer(v_k, R_k)`` with ``V = dual_vectors(Z)``: ``pinv(Z) R``. For K = 1 it is the
    token patch. With a covariance, the solution that moves ordinary inputs least.

    Args:
      inputs_KD: (K, D), ``Z``: what the kernel reads without the context, K independent rows.
      changes_KH: (K, H), ``R``: what the context adds to its output, such as ``(z_S - z_K) W``.
      covariance_DD, ridge: as for ``dual_vectors``.

    Raises:
      ValueError, TypeError: as ``dual_vectors``, and rows that disagree.

    Examples:
      >>> inputs = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0]])
      >>> changes = jnp.array([[1.0, 2.0], [0.0, 5.0]])
      >>> update = exact_patch(inputs, changes)
      >>> bool(jnp.allclose(inputs @ as_matrix(update), changes, atol=1e-5))
      True

    Source: Dherin et al. 2025 (arXiv 2507.16003v4), section 3.4.
    """
    wide_rows("exact_patch", inputs_KD, changes_KH)
    return LowRank(dual_vectors(inputs_KD, covariance_DD=covariance_DD, ridge=ridge), changes_KH)


def _pseudo_duals(rows_KD: Array, lengths_K1: Array, ridge: float | Array) -> Array:
    """The transposed pseudoinverse of rows, or their ridge dual, by singular values."""
    if isinstance(ridge, int | float) and ridge == 0:
        return jnp.linalg.pinv(rows_KD).T
    # Rows were divided by their lengths, and so the identity by their squares.
    weights_KK = jnp.diag(jnp.asarray(ridge, rows_KD.dtype) / lengths_K1[:, 0] ** 2)
    return _solve(_product(rows_KD, rows_KD.T) + weights_KK, rows_KD)


def wide_rows(where: str, inputs_KD: Array, changes_KH: Array) -> tuple[Array, Array]:
    """The rows, checked, in float32 or wider."""
    checks.rank(where, "inputs_KD", inputs_KD, 2, "(K, D)")
    checks.rank(where, "changes_KH", changes_KH, 2, "(K, H)")
    checks.floating(where, "inputs_KD", inputs_KD)
    checks.same_dtype(where, inputs_KD=inputs_KD, changes_KH=changes_KH)
    count = inputs_KD.shape[0]
    checks.axis_size(where, "changes_KH", changes_KH, 0, count, "one row per input")
    dtype = accumulator(inputs_KD.dtype)
    return inputs_KD.astype(dtype), changes_KH.astype(dtype)


def _solve(matrix_DD: Array, right_DH: Array) -> Array:
    """``A^-1 B`` of a symmetric positive definite ``A``."""
    return jax.scipy.linalg.solve(matrix_DD, right_DH, assume_a="pos")


def _product(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
