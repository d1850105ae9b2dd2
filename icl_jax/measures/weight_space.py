"""Angles and norms of weight updates, from their factors."""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.patches.low_rank import (
    LowRank,
    accumulator,
    dense_inner,
    frobenius_inner,
    frobenius_norm,
    vector_norm,
)


def cosine(first: LowRank, second: LowRank | Array) -> Array:
    """The normalised Frobenius product ``<dW1, dW2> / (|dW1| |dW2|)``, in [-1, 1].

    Args:
      first: an update in factors.
      second: another of the same kernel, in factors, or the matrix (D, H) of one that exists
        anyway, such as a descent's.

    Returns:
      (); NaN when one of them is zero, which has no direction.

    Examples:
      >>> one = outer(jnp.array([1.0, 0.0]), jnp.array([0.0, 2.0]))
      >>> round(float(cosine(one, jnp.array([[0.0, 3.0], [0.0, 4.0]]))), 4)
      0.6
    """
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
      ValueError: the second is neither factors nor a matrix.

    Examples:
      >>> update = outer(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0]))
      >>> round(float(norm_ratio(update, scale(update, 2.0))), 4)
      0.5
    """
    if not isinstance(second, LowRank):
        checks.rank("norm_ratio", "second", second, 2, "(D, H)")
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

    Examples:
      >>> updates = LowRank(jnp.array([[[1.0, 0.0]], [[1.0, 1.0]]]), jnp.array([[[2.0]], [[3.0]]]))
      >>> print(alignment(updates).round(3))
      [[1.    0.707]
       [0.707 1.   ]]

    Source: Innocenti and Achour (arXiv 2512.11255), token and block alignment; the product of two
      small Gram matrices in place of X matrices of D x H.
    """
    checks.rank("alignment", "updates.left_RD", updates.left_RD, 3, "(X, 1, D)")
    checks.axis_size("alignment", "updates.left_RD", updates.left_RD, 1, 1, "rank-1 updates")
    return _cosines(updates.left_RD[:, 0]) * _cosines(updates.right_RH[:, 0])


def _cosines(vectors_XD: Array) -> Array:
    wide_XD = vectors_XD.astype(accumulator(vectors_XD.dtype))
    unit_XD = wide_XD / vector_norm(wide_XD)[:, None]
    return jnp.matmul(unit_XD, unit_XD.T, precision=jax.lax.Precision.HIGHEST)


def off_diagonal_mean(matrix_XX: Array) -> Array:
    """The mean of a square matrix without its diagonal (which is 1 for an alignment).

    Examples:
      >>> float(off_diagonal_mean(jnp.array([[1.0, 0.5], [0.25, 1.0]])))
      0.375
    """
    size = matrix_XX.shape[-1]
    return (jnp.sum(matrix_XX) - jnp.trace(matrix_XX)) / (size * (size - 1))
