"""Lengths and inner products that neither underflow nor overflow, and bases of a few vectors.

In float32 or wider, whatever the vectors come in.
"""

import jax
import jax.numpy as jnp

from icl_jax.dims import Array, accumulator
from icl_jax.patches.carry import varying_like


def inner_product(left_D: Array, right_D: Array) -> Array:
    """The dot product, accumulated and returned in float32 or wider."""
    dtype = accumulator(left_D.dtype)
    return jnp.dot(left_D.astype(dtype), right_D.astype(dtype), precision=jax.lax.Precision.HIGHEST)


def vector_norm(vectors: Array) -> Array:
    """``|x|`` over the last axis, (...) of (..., D), in float32 or wider.

    Tiny and huge entries neither underflow nor overflow. The gradient at a vector of zeros, where
    the norm has a kink, is zero.
    """
    wide = vectors.astype(accumulator(vectors.dtype))
    sizes = largest_entry(wide)
    square = jnp.sum((wide / sizes[..., None]) ** 2, axis=-1)
    # Of a square that is zero, the root would have the slope infinity, times zero.
    root = jnp.sqrt(jnp.where(square == 0, 1, square))
    return sizes * jnp.where(square == 0, 0, root)


def largest_entry(rows: Array) -> Array:
    """The largest size of an entry along the last axis, to divide by: 1 where all are zero.

    An eighth of the largest number at most: XLA divides by multiplying with the inverse, which
    devices take for zero where it is subnormal.
    """
    largest = jnp.minimum(jnp.max(jnp.abs(rows), axis=-1), jnp.finfo(rows.dtype).max / 8)
    return jax.lax.stop_gradient(jnp.where(largest > 0, largest, jnp.ones_like(largest)))


def nan_unless(valid: Array, values: Array) -> Array:
    """``values`` where ``valid``, NaN elsewhere, made there and then.

    A NaN written down beforehand stops ``jax.debug_nans`` on good values, too.
    """
    return jnp.where(valid, values, 0) / valid.astype(values.dtype)


def row_triangle(rows_RD: Array) -> Array:
    """The lower triangle ``T`` (R, R) of ``rows = T Q`` with orthonormal rows of ``Q``.

    With ``left = T_l Q_l`` and ``right = T_r Q_r``, ``dW = Q_l^T (T_l^T T_r) Q_r`` has the norm and
    the spectrum of the small core. (Gram matrices would give them squared, and lose half of the
    digits where terms cancel.) Classical Gram-Schmidt, done twice, which is as stable as
    Householder reflections for ``T`` (Giraud et al. 2005). Not ``jnp.linalg.qr``: two batched
    LAPACK calls that run side by side wait for each other for ever on a CPU with two threads
    (jaxlib 0.10), and a norm is asked for anywhere.
    """
    return row_triangle_and_basis(rows_RD)[0]


def row_triangle_and_basis(rows_RD: Array) -> tuple[Array, Array]:
    """``row_triangle`` and the rows of ``Q`` (R, D): orthonormal, zero where a row adds nothing."""
    num_rows = rows_RD.shape[0]
    highest = jax.lax.Precision.HIGHEST

    def step(basis_RD: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        index, row_D = inputs
        first_R = jnp.matmul(basis_RD, row_D, precision=highest)
        rest_D = row_D - jnp.matmul(first_R, basis_RD, precision=highest)
        before = jnp.sum(rest_D * rest_D)
        second_R = jnp.matmul(basis_RD, rest_D, precision=highest)
        rest_D = rest_D - jnp.matmul(second_R, basis_RD, precision=highest)
        square = jnp.sum(rest_D * rest_D)
        # A remainder that the second pass shrinks was rounding inside the span (always so once
        # there are more rows than dimensions): it is no new direction, and must not become one.
        # (Asked this way round, a NaN is present and spreads.)
        present = ~(square <= before / 4)
        length = jnp.sqrt(jnp.where(present, square, jnp.ones_like(square)))
        new_D = jnp.where(present, rest_D / length, jnp.zeros_like(rest_D))
        length = jnp.where(present, length, jnp.zeros_like(length))
        return basis_RD.at[index].set(new_D), (first_R + second_R).at[index].set(length)

    start_RD = varying_like(jnp.zeros_like(rows_RD), rows_RD)
    basis_RD, triangle_RR = jax.lax.scan(step, start_RD, (jnp.arange(num_rows), rows_RD))
    return triangle_RR, basis_RD
