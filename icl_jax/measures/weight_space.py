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
    row_triangle,
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
    """
    if not isinstance(second, LowRank):
        checks.rank("norm_ratio", "second", second, 2, "(D, H)")
    return frobenius_norm(first) / _norm(second)


def _norm(update: LowRank | Array) -> Array:
    if isinstance(update, LowRank):
        return frobenius_norm(update)
    return jnp.linalg.norm(update.astype(accumulator(update.dtype)))


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


def effective_rank_of_updates(updates: LowRank | Array) -> Array:
    """The ``effective_rank`` of X updates, each flattened into a row, (): how many differ.

    Only the X x X Gram matrix ``<dW_x, dW_y>`` is built, whose eigenvalues are the squares of the
    singular values. So singular values below ``sqrt(X eps)`` of the largest (2e-3 for 40 updates in
    float32) are rounding, and count as zero.

    Args:
      updates: rank-1 factors with a leading axis X, (X, 1, D) and (X, 1, H), as in ``alignment``;
        or X updates that exist as matrices, flattened, (X, P).

    Returns:
      (), between 1 and X; NaN when all updates are zero.

    Raises:
      ValueError: neither a batch of rank-1 factors nor flattened matrices.

    Source: Roy and Vetterli 2007, "The effective rank".
    """
    where = "effective_rank_of_updates"
    if isinstance(updates, LowRank):
        checks.rank(where, "updates.left_RD", updates.left_RD, 3, "(X, 1, D)")
        checks.axis_size(where, "updates.left_RD", updates.left_RD, 1, 1, "rank-1 updates")
        left_XD, left_X = _directions(updates.left_RD[:, 0])
        right_XH, right_X = _directions(updates.right_RH[:, 0])
        cosines_XX = _gram(left_XD) * _gram(right_XH)
        # Two factors: a dual vector of 1e20 goes with a difference of 1e-20.
        sizes_X = left_X / jnp.max(left_X) * right_X
    else:
        checks.rank(where, "updates", updates, 2, "(X, P)")
        rows_XP, sizes_X = _directions(updates)
        cosines_XX = _gram(rows_XP)
    sizes_X = sizes_X / jnp.max(sizes_X)
    eigenvalues_X = _spectrum(cosines_XX * sizes_X[:, None] * sizes_X[None, :])
    rounding = jnp.finfo(eigenvalues_X.dtype).eps * eigenvalues_X.shape[0] * eigenvalues_X[0]
    kept_X = jnp.where(eigenvalues_X <= rounding, jnp.zeros_like(eigenvalues_X), eigenvalues_X)
    return effective_rank(jnp.sqrt(kept_X))


def principal_angles(first_XD: Array, second_YD: Array) -> Array:
    """The angles between the spans of two sets of vectors, smallest first, (min(X, Y),) radians.

    With orthonormal bases ``P`` and ``Q`` of the spans, ``cos`` of the angles are the singular
    values of ``P Q^T`` and ``sin`` those of ``Q - Q P^T P``. Each angle is the arctangent of the
    two, and so has an absolute error of eps times the condition of the sets: the cosine alone would
    say nothing of angles below ``sqrt(eps)``.

    Args:
      first_XD: (X, D), linearly independent rows, such as the left factors of updates.
      second_YD: (Y, D), likewise.

    Returns:
      The angles, from 0 to pi/2; all NaN when the vectors of a set depend on each other.

    Raises:
      ValueError: not two sets of vectors of one width, or more of them than dimensions.
      TypeError: the dtypes differ.

    Source: Bjorck and Golub 1973, "Numerical methods for computing angles between linear
      subspaces"; sine and cosine together as in Knyazev and Argentati 2002.
    """
    where = "principal_angles"
    for name, rows in {"first_XD": first_XD, "second_YD": second_YD}.items():
        checks.rank(where, name, rows, 2, "(vectors, D)")
        if rows.shape[0] > rows.shape[1]:
            raise ValueError(
                f"{where}: {name} has more vectors than dimensions (shape {rows.shape}), so they "
                "depend on each other. Give a basis of their span."
            )
    checks.axis_size(where, "second_YD", second_YD, 1, first_XD.shape[1], "the first's D")
    checks.same_dtype(where, first_XD=first_XD, second_YD=second_YD)
    num_first, num_second = first_XD.shape[0], second_YD.shape[0]

    # In a basis that begins with the first span, the rows of P are unit vectors.
    rows = jnp.concatenate([_directions(first_XD)[0], _directions(second_YD)[0]])
    coordinates = row_triangle(rows)
    # What the triangle says of the unit vectors that follow are the columns of Q.
    identity = jnp.eye(num_first + num_second, dtype=coordinates.dtype)
    triangle = row_triangle(jnp.concatenate([coordinates[num_first:], identity]))
    basis_YR = triangle[num_second:, :num_second].T

    count = min(num_first, num_second)
    cosines = _spectrum(basis_YR[:, :num_first])[:count]
    sines = _spectrum(basis_YR[:, num_first:])[::-1][:count]
    lengths = jnp.concatenate(
        [jnp.diagonal(coordinates)[:num_first], jnp.diagonal(triangle)[:num_second]]
    )
    angles = jnp.arctan2(sines, cosines)
    # Rows of length 1: what is left of one outside the span of the others is rounding, or not.
    rounding = jnp.finfo(angles.dtype).eps * max(first_XD.shape[1], 8)
    return jnp.where(jnp.all(lengths > rounding), angles, jnp.full_like(angles, jnp.nan))


def _directions(vectors_XD: Array) -> tuple[Array, Array]:
    """Unit vectors (X, D) and lengths (X,), in float32 or wider; zero where there is no length."""
    wide_XD = vectors_XD.astype(accumulator(vectors_XD.dtype))
    lengths_X = jax.vmap(vector_norm)(wide_XD)
    divisors_X = jnp.where(lengths_X == 0, jnp.ones_like(lengths_X), lengths_X)
    return wide_XD / divisors_X[:, None], lengths_X


def _gram(vectors_XD: Array) -> Array:
    return jnp.matmul(vectors_XD, vectors_XD.T, precision=jax.lax.Precision.HIGHEST)


def _spectrum(rows_XD: Array) -> Array:
    """The singular values of a small matrix, largest first, (X,): X - D zeros where X > D.

    One-sided Jacobi: rotates pairs of rows until all are orthogonal; the singular values are their
    lengths. Every round takes all rows in disjoint pairs (a round robin: Brent and Luk 1985). Not
    LAPACK, for the reason given in ``low_rank.row_triangle``.
    """
    num_rows = rows_XD.shape[0]
    half = (num_rows + 1) // 2
    rows_XD = jnp.pad(rows_XD, ((0, 2 * half - num_rows), (0, 0)))
    tolerance = jnp.finfo(rows_XD.dtype).eps * max(rows_XD.shape[1], 8)

    def rotate(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        rows_XD, worst = state
        upper, lower = rows_XD[:half], rows_XD[half:][::-1]
        upper_square, lower_square = jnp.sum(upper**2, axis=1), jnp.sum(lower**2, axis=1)
        product = jnp.sum(upper * lower, axis=1)
        bound = jnp.sqrt(upper_square) * jnp.sqrt(lower_square)
        slanted = jnp.abs(product) > tolerance * bound
        # The smaller of the two angles that make the pair orthogonal.
        slope = (lower_square - upper_square) / jnp.where(slanted, 2 * product, 1)
        sign = jnp.where(slope < 0, -jnp.ones_like(slope), jnp.ones_like(slope))
        tangent = jnp.where(slanted, sign / (jnp.abs(slope) + jnp.sqrt(1 + slope**2)), 0)
        cosine = (1 / jnp.sqrt(1 + tangent**2))[:, None]
        sine = cosine * tangent[:, None]
        turned = (cosine * upper - sine * lower, (sine * upper + cosine * lower)[::-1])
        rows_XD = jnp.concatenate(turned)
        # The first row stays, the others move on by one seat.
        rows_XD = jnp.concatenate([rows_XD[:1], jnp.roll(rows_XD[1:], 1, axis=0)])
        return rows_XD, worst | jnp.any(slanted)

    def sweep(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        rows_XD, _, count = state
        start = (rows_XD, jnp.zeros((), bool))
        rows_XD, slanted = jax.lax.fori_loop(0, max(2 * half - 1, 1), rotate, start)
        return rows_XD, slanted, count + 1

    # Convergence is quadratic: ten sweeps or fewer; the bound is for what is not a number.
    start = (rows_XD, jnp.ones((), bool), jnp.zeros((), jnp.int32))
    rows_XD, _, _ = jax.lax.while_loop(lambda state: state[1] & (state[2] < 30), sweep, start)
    lengths_X = jnp.sqrt(jnp.sum(rows_XD**2, axis=1))
    return jnp.sort(lengths_X, descending=True)[:num_rows]
