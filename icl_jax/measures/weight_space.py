"""Angles, norms and spectra of weight updates, from their factors."""

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
)


def cosine(first: LowRank, second: LowRank | Array) -> Array:
    """The normalised Frobenius product ``<dW1, dW2> / (|dW1| |dW2|)``, in [-1, 1].

    Args:
      first: an update in factors.
      second: another of the same kernel, in factors, or the matrix (D, H) of one that exists
        anyway, such as a descent's.

    Returns:
      (); NaN when one of them is zero, which has no direction.
    """
    if isinstance(second, LowRank):
        product, norm = frobenius_inner(first, second), frobenius_norm(second)
    else:
        checks.rank("cosine", "second", second, 2, "(D, H)")
        product = dense_inner(first, second)
        norm = jnp.linalg.norm(second.astype(accumulator(second.dtype)))
    return product / (frobenius_norm(first) * norm)


def alignment(updates: LowRank) -> Array:
    """All cosines among X updates: ``<dW_x, dW_y> / (|dW_x| |dW_y|)``, (X, X).

    Args:
      updates: rank-1 factors with a leading axis X, (X, 1, D) and (X, 1, H): the updates of all
        tokens in one block, or of one token in all blocks.

    Raises:
      ValueError: not a batch of rank-1 factors.

    Source: Innocenti and Achour (arXiv 2512.11255), token and block alignment; the product of two
      small Gram matrices in place of X matrices of D x H.
    """
    checks.rank("alignment", "updates.left_RD", updates.left_RD, 3, "(X, 1, D)")
    checks.axis_size("alignment", "updates.left_RD", updates.left_RD, 1, 1, "rank-1 updates")
    return _cosines(updates.left_RD[:, 0]) * _cosines(updates.right_RH[:, 0])


def _cosines(vectors_XD: Array) -> Array:
    wide_XD = vectors_XD.astype(accumulator(vectors_XD.dtype))
    unit_XD = wide_XD / jnp.linalg.norm(wide_XD, axis=-1, keepdims=True)
    return jnp.matmul(unit_XD, unit_XD.T, precision=jax.lax.Precision.HIGHEST)


def off_diagonal_mean(matrix_XX: Array) -> Array:
    """The mean of a square matrix without its diagonal (which is 1 for an alignment)."""
    size = matrix_XX.shape[-1]
    return (jnp.sum(matrix_XX) - jnp.trace(matrix_XX)) / (size * (size - 1))


def effective_rank(singular_values_R: Array) -> Array:
    """``exp`` of the entropy of the normalised spectrum, between 1 and R.

    Source: Roy and Vetterli 2007, "The effective rank".
    """
    checks.rank("effective_rank", "singular_values_R", singular_values_R, 1, "(R)")
    share_R = singular_values_R / jnp.sum(singular_values_R)
    return jnp.exp(jnp.sum(jax.scipy.special.entr(share_R)))
