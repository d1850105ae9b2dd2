"""The directions that an update mostly goes in: singular vectors from factors, and truncation."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.patches.low_rank import LowRank, balanced_factors, check_update
from icl_jax.patches.vectors import largest_entry, row_triangle_and_basis
from icl_jax.shown import short


class Spectrum(NamedTuple):
    """``dW = sum_r values_r outer(left_r, right_r)``, of R' = min(R, D, H) terms, largest first.

    Attributes:
      left_RD: (R', D), orthonormal where the values are not zero.
      values_R: (R',), the singular values.
      right_RH: (R', H), likewise.

    Examples:
      >>> update = from_matrix(jnp.array([[3.0, 0.0], [0.0, 1.0]]))
      >>> found = singular_vectors(update)
      >>> print(found.values_R.round(4))
      [3. 1.]
      >>> again = (found.left_RD.T * found.values_R) @ found.right_RH
      >>> bool(jnp.allclose(again, as_matrix(update), atol=1e-5))
      True
    """

    left_RD: Array
    values_R: Array
    right_RH: Array

    def __repr__(self) -> str:
        return short(self)


def singular_vectors(update: LowRank) -> Spectrum:
    """The singular value decomposition of ``dW`` from its factors, in float32 or wider.

    Raises:
      ValueError: not the factors of one update, or sides that do not fit.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> update = outer(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0]))
      >>> found = singular_vectors(update)
      >>> [array.shape for array in jax.tree.leaves(found)]
      [(1, 2), (1,), (1, 2)]
    """
    check_update("singular_vectors", update)
    left_RD, right_RH = balanced_factors(update)
    size = largest_entry(right_RH.reshape(-1))
    left_RR, left_basis_RD = row_triangle_and_basis(left_RD)
    right_RR, right_basis_RH = row_triangle_and_basis(right_RH / size)
    highest = jax.lax.Precision.HIGHEST
    core_RR = jnp.matmul(left_RR.T, right_RR, precision=highest)
    count = min(*update.left_RD.shape, update.right_RH.shape[1])
    turn_RR, values_R, turned_RR = jnp.linalg.svd(core_RR)
    return Spectrum(
        jnp.matmul(turn_RR.T[:count], left_basis_RD, precision=highest),
        size * values_R[:count],
        jnp.matmul(turned_RR[:count], right_basis_RH, precision=highest),
    )


def truncate(update: LowRank, rank: int) -> LowRank:
    """The update of at most ``rank`` that lies nearest to ``dW`` in the Frobenius norm.

    The left factors are unit vectors, the right ones carry the singular values; dtypes stay.

    Raises:
      ValueError: a rank below 1, or sides that do not fit.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> update = from_matrix(jnp.diag(jnp.array([3.0, 1.0])))
      >>> jnp.round(jnp.abs(as_matrix(truncate(update, 1))), 4).tolist()
      [[3.0, 0.0], [0.0, 0.0]]

    Source: Eckart and Young 1936.
    """
    check_update("truncate", update)
    checks.positive_int("truncate", "rank", rank)
    spectrum = singular_vectors(update)
    right_RH = spectrum.right_RH * spectrum.values_R[:, None]
    return LowRank(
        spectrum.left_RD[:rank].astype(update.left_RD.dtype),
        right_RH[:rank].astype(update.right_RH.dtype),
    )


def from_matrix(matrix_DH: Array, *, rank: int | None = None) -> LowRank:
    """A matrix that exists anyway, as factors: the nearest of at most ``rank`` (None: all of it).

    Raises:
      ValueError: not one matrix, or a rank below 1.
      TypeError: not floating point.

    Examples:
      >>> update = from_matrix(jnp.diag(jnp.array([3.0, 1.0])), rank=1)
      >>> print(jnp.abs(as_matrix(update)).round(4))
      [[3. 0.]
       [0. 0.]]

    Source: Eckart and Young 1936.
    """
    checks.rank("from_matrix", "matrix_DH", matrix_DH, 2, "(D, H)")
    checks.floating("from_matrix", "matrix_DH", matrix_DH)
    if rank is not None:
        checks.positive_int("from_matrix", "rank", rank)
    wide_DH = matrix_DH.astype(accumulator(matrix_DH.dtype))
    left_DR, values_R, right_RH = jnp.linalg.svd(wide_DH, full_matrices=False)
    return LowRank(
        left_DR.T[:rank].astype(matrix_DH.dtype),
        (values_R[:, None] * right_RH)[:rank].astype(matrix_DH.dtype),
    )
