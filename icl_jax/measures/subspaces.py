"""Spectra and subspaces of sets of weight updates, from their factors.

No LAPACK: see ``vectors.row_triangle``.
"""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.patches.carry import varying_like
from icl_jax.patches.low_rank import LowRank, check_rank_one_updates
from icl_jax.patches.vectors import largest_entry, nan_unless, row_triangle, vector_norm


def effective_rank(singular_values_R: Array) -> Array:
    """``exp`` of the entropy of the normalised spectrum, between 1 and R, in float32 or wider.

    Returns:
      (); NaN when all values are zero, or one of them is negative, which no singular value is.

    Raises:
      ValueError: not one spectrum of at least one value.
      TypeError: not floating point.

    Examples:
      >>> spectra = jnp.array([1.0, 1.0]), jnp.array([1.0, 0.0])
      >>> [round(float(effective_rank(spectrum)), 3) for spectrum in spectra]
      [2.0, 1.0]

    Source: Roy and Vetterli 2007, "The effective rank".
    """
    checks.rank("effective_rank", "singular_values_R", singular_values_R, 1, "(R)")
    checks.floating("effective_rank", "singular_values_R", singular_values_R)
    checks.not_empty("effective_rank", "singular_values_R", singular_values_R)
    values_R = singular_values_R.astype(accumulator(singular_values_R.dtype))
    values_R = nan_unless(values_R >= 0, values_R)
    values_R = values_R / largest_entry(values_R)
    share_R = values_R / jnp.sum(values_R)
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
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> updates = jnp.array([[1.0, 0.0], [0.0, 1.0]])  # two that have nothing in common
      >>> round(float(effective_rank_of_updates(updates)), 3)
      2.0

    Source: Roy and Vetterli 2007, "The effective rank".
    """
    where = "effective_rank_of_updates"
    if isinstance(updates, LowRank):
        check_rank_one_updates(where, updates)
        left_XD, left_X = _directions(updates.left_RD[:, 0])
        right_XH, right_X = _directions(updates.right_RH[:, 0])
        cosines_XX = _gram(left_XD) * _gram(right_XH)
        # Two factors: a dual vector of 1e20 goes with a difference of 1e-20.
        sizes_X = left_X / jnp.max(left_X) * right_X
    else:
        checks.rank(where, "updates", updates, 2, "(X, P)")
        checks.floating(where, "updates", updates)
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

    Examples:
      >>> print(principal_angles(jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 1.0]])).round(4))
      [0.7854]

    Source: Bjorck and Golub 1973, "Numerical methods for computing angles between linear
      subspaces"; sine and cosine together as in Knyazev and Argentati 2002.
    """
    where = "principal_angles"
    for name, rows in {"first_XD": first_XD, "second_YD": second_YD}.items():
        checks.rank(where, name, rows, 2, "(vectors, D)")
        checks.floating(where, name, rows)
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
    return nan_unless(jnp.all(lengths > rounding), angles)


def leading_angles(first: LowRank, second: Array, count: int) -> Array:
    """The angles between the directions in which two paths of weights mostly go, (count,) radians.

    Each path is a set of updates, flattened into rows; its leading directions are the right
    singular vectors of the ``count`` largest singular values, and the angles are the principal
    angles between the two spans, smallest first. Only Gram matrices of X x X, Y x Y and X x Y are
    built, so an angle below ``sqrt(eps)`` (0.02 degrees in float32) is rounding.

    Args:
      first: rank-1 factors with a leading axis X, (X, 1, D) and (X, 1, H).
      second: (Y, D, H), updates of the same kernel that exist as matrices, such as a descent's.
      count: how many directions of each, at most X and Y.

    Returns:
      From 0 to pi/2; all NaN when a path has fewer directions.

    Raises:
      ValueError: not a batch of rank-1 factors and one of matrices of the same kernel; more
        directions than updates.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> updates = LowRank(jnp.array([[[1.0, 0.0]]]), jnp.array([[[1.0, 0.0]]]))
      >>> print(leading_angles(updates, jnp.eye(2)[None], 1).round(4))
      [0.7854]

    Source: Bjorck and Golub 1973, "Numerical methods for computing angles between linear
      subspaces".
    """
    where = "leading_angles"
    check_rank_one_updates(where, first)
    checks.rank(where, "second", second, 3, "(Y, D, H)")
    checks.same_dtype(where, **{"first.left_RD": first.left_RD, "second": second})
    for axis, factors in enumerate((first.left_RD, first.right_RH), start=1):
        checks.axis_size(where, "second", second, axis, factors.shape[2], "the kernel's")
    checks.positive_int(where, "count", count)
    most = min(first.left_RD.shape[0], second.shape[0])
    if count > most:
        raise ValueError(
            f"{where}: count must be at most {most}, the number of updates of the shorter path, "
            f"got {count}."
        )
    left_XD, left_X = _directions(first.left_RD[:, 0])
    right_XH, right_X = _directions(first.right_RH[:, 0])
    rows_YP, sizes_Y = _directions(second.reshape(second.shape[0], -1))
    mapped_YXH = jnp.matmul(
        left_XD, rows_YP.reshape(second.shape), precision=jax.lax.Precision.HIGHEST
    )
    cosines_XY = jnp.einsum("yxh,xh->xy", mapped_YXH, right_XH, precision=jax.lax.Precision.HIGHEST)
    sizes_X = left_X / jnp.max(left_X) * right_X
    first_CX = _leading(_gram(left_XD) * _gram(right_XH), sizes_X, count)
    second_CY = _leading(_gram(rows_YP), sizes_Y, count)
    overlap_CC = jnp.linalg.multi_dot(
        [first_CX, cosines_XY, second_CY.T], precision=jax.lax.Precision.HIGHEST
    )
    return jnp.arccos(jnp.minimum(_spectrum(overlap_CC), 1.0))


def _leading(cosines_XX: Array, sizes_X: Array, count: int) -> Array:
    """The leading directions of X vectors as sums of their unit vectors: coefficients (count, X).

    The Gram matrix is symmetric: its right singular vectors ``u`` are its eigenvectors, and
    ``u^T V / sqrt(eigenvalue)`` is a unit vector for the rows ``V``.
    """
    sizes_X = sizes_X / jnp.max(sizes_X)
    eigenvalues_X, rows_XX = _orthogonal_rows(cosines_XX * sizes_X[:, None] * sizes_X[None, :])
    rounding = jnp.finfo(eigenvalues_X.dtype).eps * eigenvalues_X.shape[0] * eigenvalues_X[0]
    kept_C = nan_unless(eigenvalues_X[:count] > rounding, eigenvalues_X[:count])
    return rows_XX[:count] * (kept_C**-1.5)[:, None] * sizes_X[None, :]


def _directions(vectors_XD: Array) -> tuple[Array, Array]:
    """Unit vectors (X, D) and lengths (X,), in float32 or wider; zero where there is no length."""
    wide_XD = vectors_XD.astype(accumulator(vectors_XD.dtype))
    lengths_X = vector_norm(wide_XD)
    divisors_X = jnp.where(lengths_X == 0, jnp.ones_like(lengths_X), lengths_X)
    return wide_XD / divisors_X[:, None], lengths_X


def _gram(vectors_XD: Array) -> Array:
    return jnp.matmul(vectors_XD, vectors_XD.T, precision=jax.lax.Precision.HIGHEST)


def _spectrum(rows_XD: Array) -> Array:
    """The singular values of a small matrix, largest first, (X,): X - D zeros where X > D."""
    return _orthogonal_rows(rows_XD)[0]


def _orthogonal_rows(rows_XD: Array) -> tuple[Array, Array]:
    """The singular values of a small matrix, (X,), and its rows turned into one another, (X, D).

    One-sided Jacobi: rotates pairs of rows until all are orthogonal. Their lengths are the singular
    values, their directions the right singular vectors, both largest first. Every round takes all
    rows in disjoint pairs (a round robin: Brent and Luk 1985).
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
        start = (rows_XD, varying_like(jnp.zeros((), bool), rows_XD))
        rows_XD, slanted = jax.lax.fori_loop(0, max(2 * half - 1, 1), rotate, start)
        return rows_XD, slanted, count + 1

    # Convergence is quadratic: ten sweeps or fewer; the bound is for what is not a number.
    start = (rows_XD, varying_like(jnp.ones((), bool), rows_XD), jnp.zeros((), jnp.int32))
    rows_XD, _, _ = jax.lax.while_loop(lambda state: state[1] & (state[2] < 30), sweep, start)
    lengths_X = jnp.sqrt(jnp.sum(rows_XD**2, axis=1))
    order_X = jnp.argsort(lengths_X, descending=True)[:num_rows]
    return lengths_X[order_X], rows_XD[order_X]
