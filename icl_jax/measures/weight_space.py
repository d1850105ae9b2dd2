"""Angles and norms of weight updates, from their factors."""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.patches.low_rank import (
    LowRank,
    check_rank_one_updates,
    check_update,
    dense_inner,
    frobenius_inner,
    frobenius_norm,
)
from icl_jax.patches.vectors import vector_norm


def cosine(first: LowRank, second: LowRank | Array) -> Array:
    """The normalised Frobenius product ``<dW1, dW2> / (|dW1| |dW2|)``, in [-1, 1].

    Args:
      first: an update in factors.
      second: another of the same kernel, in factors, or the matrix (D, H) of one that exists
        anyway, such as a descent's.

    Returns:
      (); NaN when one of them is zero, which has no direction.

    Raises:
      ValueError: updates of kernels of different shapes, or sides that do not fit.
      TypeError: not floating point, or the dtypes of two updates in factors differ.

    Examples:
      >>> one = outer(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]))
      >>> round(float(cosine(one, jnp.array([[0.0, 3.0], [0.0, 4.0]]))), 4)
      0.6
    """
    check_update("cosine", first)
    if isinstance(second, LowRank):
        product = frobenius_inner(first, second)
    else:
        checks.rank("cosine", "second", second, 2, "(D, H)")
        product = dense_inner(first, second)
    return product / (frobenius_norm(first) * _norm(second))


def norm_ratio(first: LowRank, second: LowRank | Array) -> Array:
    """``|dW1|_F / |dW2|_F``, (): how far one update goes, in steps of the other.

    Args:
      first: an update in factors.
      second: another of the same kernel, in factors, or the matrix (D, H) of one that exists
        anyway, such as a descent's.

    Returns:
      (); infinite when only the second is zero, NaN when both are.

    Raises:
      ValueError: the second is neither factors nor a matrix, or of another kernel; sides that do
        not fit.
      TypeError: not floating point.

    Examples:
      >>> update = outer(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0]))
      >>> round(float(norm_ratio(update, scale(update, 2.0))), 4)
      0.5
    """
    check_update("norm_ratio", first)
    kernel: tuple[int, ...] = (first.left_RD.shape[1], first.right_RH.shape[1])
    if isinstance(second, LowRank):
        check_update("norm_ratio", second)
        other: tuple[int, ...] = (second.left_RD.shape[1], second.right_RH.shape[1])
    else:
        checks.rank("norm_ratio", "second", second, 2, "(D, H)")
        checks.floating("norm_ratio", "second", second)
        other = jnp.shape(second)
    if other != kernel:
        raise ValueError(
            f"norm_ratio: both must be of one kernel (D, H), got {kernel} and {other}."
        )
    return frobenius_norm(first) / _norm(second)


def _norm(update: LowRank | Array) -> Array:
    if isinstance(update, LowRank):
        return frobenius_norm(update)
    return vector_norm(update.ravel())


def alignment(updates: LowRank) -> Array:
    """All cosines among X updates: ``<dW_x, dW_y> / (|dW_x| |dW_y|)``, (X, X).

    Args:
      updates: rank-1 factors with a leading axis X, (X, 1, D) and (X, 1, H): the updates of all
        tokens in one block, or of one token in all blocks.

    Raises:
      ValueError: not a batch of rank-1 factors.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> updates = LowRank(jnp.array([[[1.0, 0.0]], [[1.0, 1.0]]]), jnp.array([[[2.0]], [[3.0]]]))
      >>> print(alignment(updates).round(3))
      [[1.    0.707]
       [0.707 1.   ]]

    Source: Innocenti and Achour (arXiv 2512.11255), token and block alignment; the product of two
      small Gram matrices in place of X matrices of D x H.
    """
    check_rank_one_updates("alignment", updates)
    return _cosines(updates.left_RD[:, 0]) * _cosines(updates.right_RH[:, 0])


def _cosines(vectors_XD: Array) -> Array:
    wide_XD = vectors_XD.astype(accumulator(vectors_XD.dtype))
    unit_XD = wide_XD / vector_norm(wide_XD)[:, None]
    return jnp.matmul(unit_XD, unit_XD.T, precision=jax.lax.Precision.HIGHEST)


def off_diagonal_mean(matrix_XX: Array) -> Array:
    """The mean of a square matrix without its diagonal (which is 1 for an alignment), ().

    Raises:
      ValueError: not square, or of one row, which is all diagonal.
      TypeError: not floating point.

    Examples:
      >>> float(off_diagonal_mean(jnp.array([[1.0, 0.5], [0.25, 1.0]])))
      0.375
    """
    where = "off_diagonal_mean"
    checks.rank(where, "matrix_XX", matrix_XX, 2, "(X, X)")
    checks.floating(where, "matrix_XX", matrix_XX)
    size = matrix_XX.shape[0]
    checks.axis_size(where, "matrix_XX", matrix_XX, 1, size, "as many as rows")
    checks.at_least_two(where, "the number of rows", size, "one row is all diagonal")
    wide_XX = matrix_XX.astype(accumulator(matrix_XX.dtype))
    # Left out rather than subtracted, which would cost digits where the diagonal is large.
    others_XX = jnp.where(jnp.eye(size, dtype=bool), 0, wide_XX)
    return jnp.sum(others_XX) / (size * (size - 1))
