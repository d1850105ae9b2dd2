"""A matrix that is never built: the sum of a few outer products, and its algebra.

Every weight update of this library is a ``LowRank``: a token patch (rank 1), a step of a
trajectory (rank 1), a peel-off product (rank up to the number of tokens), a contribution of one
token and head (rank 1). Functions are written for one matrix; batches go through ``jax.vmap``.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.patches.vectors import largest_entry, row_triangle, vector_norm
from icl_jax.shown import short


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LowRank:
    """The update ``dW = sum_r outer(left_r, right_r)`` of a kernel ``W`` of shape (D, H).

    Attributes:
      left_RD: (R, D), the directions in the kernel's input.
      right_RH: (R, H), what each direction adds to the kernel's output.

    Examples:
      >>> update = LowRank(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0, 5.0]]))
      >>> as_matrix(update).tolist()
      [[3.0, 4.0, 5.0], [6.0, 8.0, 10.0]]
    """

    left_RD: Array
    right_RH: Array

    __repr__ = short


def outer(left_D: Array, right_H: Array) -> LowRank:
    """The rank-1 update ``outer(left, right)``; left (D,), right (H,).

    Raises:
      ValueError: not two vectors.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> as_matrix(outer(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0, 5.0]))).tolist()
      [[3.0, 4.0, 5.0], [6.0, 8.0, 10.0]]
    """
    checks.rank("outer", "left_D", left_D, 1, "(D)")
    checks.rank("outer", "right_H", right_H, 1, "(H)")
    checks.floating("outer", "left_D", left_D)
    checks.same_dtype("outer", left_D=left_D, right_H=right_H)
    return LowRank(left_D[None, :], right_H[None, :])


def add(*updates: LowRank) -> LowRank:
    """The sum of updates of one kernel: their factors side by side.

    Raises:
      ValueError: no update, or kernels of different shapes.
      TypeError: dtypes that differ.

    Examples:
      >>> one = outer(jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0]))
      >>> other = outer(jnp.array([0.0, 1.0]), jnp.array([0.0, 3.0]))
      >>> as_matrix(add(one, other)).tolist()
      [[2.0, 0.0], [0.0, 3.0]]
    """
    if not updates:
        raise ValueError("add: there is nothing to add, not even an update that says of what.")
    check_update("add", updates[0])
    for update in updates[1:]:
        _check_same_kernel("add", updates[0], update)
    return LowRank(
        jnp.concatenate([update.left_RD for update in updates]),
        jnp.concatenate([update.right_RH for update in updates]),
    )


def subtract(first: LowRank, second: LowRank) -> LowRank:
    """``first - second`` as factors. Raises as ``add`` does.

    Examples:
      >>> one = outer(jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0]))
      >>> as_matrix(subtract(one, outer(jnp.array([0.0, 1.0]), jnp.array([0.0, 3.0])))).tolist()
      [[2.0, 0.0], [0.0, -3.0]]
    """
    return add(first, LowRank(second.left_RD, -second.right_RH))


def scale(update: LowRank, factor: float | Array) -> LowRank:
    """``factor dW``, the factor a number or ().

    Raises:
      ValueError: sides that do not fit, or a factor that is not one number.
      TypeError: factors of an update that are not floating point.

    Examples:
      >>> as_matrix(scale(outer(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0])), 0.5)).tolist()
      [[1.5, 2.0], [3.0, 4.0]]
    """
    check_update("scale", update)
    checks.rank("scale", "factor", factor, 0, "()")
    checks.number("scale", "factor", factor)
    return _scaled(update, factor)


def _scaled(update: LowRank, factor: float | Array) -> LowRank:
    # In float32 or wider: a factor that float16 cannot hold may still give what it can.
    dtype = accumulator(update.right_RH.dtype)
    right_RH = update.right_RH.astype(dtype) * jnp.asarray(factor, dtype)
    return LowRank(update.left_RD, right_RH.astype(update.right_RH.dtype))


def mean(updates: LowRank) -> LowRank:
    """The mean of X updates of one kernel: rank up to X R.

    Args:
      updates: factors with a leading axis X, (X, R, D) and (X, R, H), such as those of X tokens.

    Raises:
      ValueError: no leading axis, nothing to take the mean of, or sides that do not fit.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> updates = LowRank(jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]]), jnp.array([[[2.0]], [[4.0]]]))
      >>> as_matrix(mean(updates)).tolist()
      [[1.0], [2.0]]
    """
    check_updates("mean", updates)
    count = updates.left_RD.shape[0]
    checks.positive_int("mean", "the number of updates", count)
    rows = jax.tree.map(lambda factors: factors.reshape(-1, factors.shape[-1]), updates)
    return _scaled(rows, 1 / count)


def compose(first: LowRank, second: LowRank) -> LowRank:
    """``E2 E1 - I`` of two factors ``E = I + update`` (D == H): first ``first``, then ``second``.

    ``W -> E1 W -> E2 E1 W``. With ``E = I + L^T R`` the product needs no matrix:
    ``right_2 + (right_2 left_1^T) right_1`` goes with ``left_2``.

    Raises:
      ValueError: kernels that are not square, or of different widths.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> first = outer(jnp.array([1.0, 0.0]), jnp.array([1.0, 0.0]))  # doubles the first entry
      >>> second = outer(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]))  # adds it to the second
      >>> (jnp.eye(2) + as_matrix(compose(first, second))).tolist()
      [[2.0, 1.0], [0.0, 1.0]]
    """
    check_update("compose", first)
    checks.axis_size("compose", "first.right_RH", first.right_RH, 1, first.left_RD.shape[1], "D")
    _check_same_kernel("compose", first, second)
    dtype, highest = accumulator(first.left_RD.dtype), jax.lax.Precision.HIGHEST
    wide_RD = second.right_RH.astype(dtype)
    overlap_RR = jnp.matmul(wide_RD, first.left_RD.T.astype(dtype), precision=highest)
    carried_RD = jnp.matmul(overlap_RR, first.right_RH.astype(dtype), precision=highest)
    moved_RD = (wide_RD + carried_RD).astype(second.right_RH.dtype)
    return LowRank(
        jnp.concatenate([first.left_RD, second.left_RD]),
        jnp.concatenate([first.right_RH, moved_RD]),
    )


def apply_update(input_D: Array, update: LowRank) -> Array:
    """``z dW`` (H,) for an input ``z`` (D,), in the dtype of the update.

    Raises:
      ValueError: not one vector, or one of another width than the kernel.
      TypeError: a list, or not floating point.

    Examples:
      >>> update = outer(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0, 5.0]))
      >>> apply_update(jnp.array([1.0, 1.0]), update).tolist()
      [9.0, 12.0, 15.0]
    """
    checks.rank("apply_update", "input_D", input_D, 1, "(D)")
    checks.floating("apply_update", "input_D", input_D)
    check_update("apply_update", update)
    checks.axis_size(
        "apply_update", "input_D", input_D, 0, update.left_RD.shape[1], "the kernel's input width"
    )
    dtype = accumulator(input_D.dtype)
    strengths_R = jnp.matmul(
        update.left_RD.astype(dtype), input_D.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )
    result_H = jnp.matmul(
        strengths_R, update.right_RH.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )
    return result_H.astype(update.right_RH.dtype)


def frobenius_inner(first: LowRank, second: LowRank) -> Array:
    """``<dW1, dW2> = sum_rs (left1_r . left2_s)(right1_r . right2_s)``, without either matrix.

    Raises:
      ValueError: updates of kernels of different shapes.
      TypeError: dtypes that differ.

    Examples:
      >>> one = outer(jnp.array([1.0, 2.0]), jnp.array([1.0, 0.0]))
      >>> other = outer(jnp.array([3.0, 1.0]), jnp.array([2.0, 7.0]))
      >>> float(frobenius_inner(one, other))  # (1 3 + 2 1) (1 2 + 0 7)
      10.0
    """
    check_update("frobenius_inner", first)
    _check_same_kernel("frobenius_inner", first, second)
    (left_1_RD, right_1_RH), (left_2_RD, right_2_RH) = (
        balanced_factors(first),
        balanced_factors(second),
    )
    highest = jax.lax.Precision.HIGHEST
    lefts_RR = jnp.matmul(left_1_RD, left_2_RD.T, precision=highest)
    rights_RR = jnp.matmul(right_1_RH, right_2_RH.T, precision=highest)
    return jnp.sum(lefts_RR * rights_RR)


def dense_inner(update: LowRank, matrix_DH: Array) -> Array:
    """``<dW, V>`` for a matrix ``V`` (D, H) that exists anyway, such as a descent's update.

    Raises:
      ValueError: a matrix of another shape than the kernel's, or sides that do not fit.
      TypeError: not floating point.

    Examples:
      >>> update = outer(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0]))
      >>> float(dense_inner(update, jnp.eye(2)))  # the trace
      11.0
    """
    check_update("dense_inner", update)
    checks.rank("dense_inner", "matrix_DH", matrix_DH, 2, "(D, H)")
    checks.floating("dense_inner", "matrix_DH", matrix_DH)
    for axis, width in enumerate((update.left_RD.shape[1], update.right_RH.shape[1])):
        checks.axis_size("dense_inner", "matrix_DH", matrix_DH, axis, width, "the kernel's")
    dtype = accumulator(jnp.promote_types(update.left_RD.dtype, matrix_DH.dtype))
    mapped_RH = jnp.matmul(
        update.left_RD.astype(dtype), matrix_DH.astype(dtype), precision=jax.lax.Precision.HIGHEST
    )
    return jnp.sum(mapped_RH * update.right_RH.astype(dtype))


def frobenius_norm(update: LowRank) -> Array:
    """``|dW|_F``; ``|left| |right|`` at rank 1, through the triangle of the left side otherwise.

    Raises:
      ValueError: not the factors of one update, or sides that do not fit.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> float(frobenius_norm(outer(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0]))))
      10.0
    """
    check_update("frobenius_norm", update)
    if update.left_RD.shape[0] == 1:
        left_D, right_H = update.left_RD[0], update.right_RH[0]
        return vector_norm(left_D) * vector_norm(right_H)
    left_RD, right_RH = balanced_factors(update)
    triangle_RR = row_triangle(left_RD)
    mapped_RH = jnp.matmul(triangle_RR.T, right_RH, precision=jax.lax.Precision.HIGHEST)
    return vector_norm(mapped_RH.reshape(-1))


def singular_values(update: LowRank) -> Array:
    """The spectrum of ``dW``, largest first: (min(R, D, H),) values of an R x R core.

    Raises:
      ValueError: not the factors of one update, or sides that do not fit.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> update = outer(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0]))
      >>> print(singular_values(update).round(4))
      [10.]
    """
    check_update("singular_values", update)
    left_RD, right_RH = balanced_factors(update)
    size = largest_entry(right_RH.reshape(-1))
    left_RR, right_RR = row_triangle(left_RD), row_triangle(right_RH / size)
    core_RR = jnp.matmul(left_RR.T, right_RR, precision=jax.lax.Precision.HIGHEST)
    count = min(*update.left_RD.shape, update.right_RH.shape[1])
    return size * jnp.linalg.svd(core_RR, compute_uv=False)[:count]


def check_update(where: str, update: LowRank) -> None:
    """Raises unless ``update`` is what its type says: (R, D) and (R, H), floating, of one dtype.

    Raises:
      ValueError: another number of axes, or sides of different rank.
      TypeError: lists, not floating point, or dtypes that differ.
    """
    checks.rank(where, "update.left_RD", update.left_RD, 2, "(R, D)")
    checks.rank(where, "update.right_RH", update.right_RH, 2, "(R, H)")
    count = update.left_RD.shape[0]
    checks.axis_size(where, "update.right_RH", update.right_RH, 0, count, "as many as left factors")
    _check_dtypes(where, "update", update)


def check_updates(where: str, updates: LowRank) -> None:
    """``check_update`` for X of them: (X, R, D) and (X, R, H)."""
    checks.rank(where, "updates.left_RD", updates.left_RD, 3, "(X, R, D)")
    checks.rank(where, "updates.right_RH", updates.right_RH, 3, "(X, R, H)")
    left, right = updates.left_RD.shape[:2], updates.right_RH
    checks.axis_size(where, "updates.right_RH", right, 0, left[0], "as many updates as left")
    checks.axis_size(where, "updates.right_RH", right, 1, left[1], "as many as left factors")
    _check_dtypes(where, "updates", updates)


def check_rank_one_updates(where: str, updates: LowRank) -> None:
    """``check_updates`` for X of rank 1: (X, 1, D) and (X, 1, H)."""
    check_updates(where, updates)
    checks.axis_size(where, "updates.left_RD", updates.left_RD, 1, 1, "rank-1 updates")


def _check_dtypes(where: str, name: str, update: LowRank) -> None:
    checks.floating(where, f"{name}.left_RD", update.left_RD)
    sides = {f"{name}.left_RD": update.left_RD, f"{name}.right_RH": update.right_RH}
    checks.same_dtype(where, **sides)


def _check_same_kernel(where: str, first: LowRank, second: LowRank) -> None:
    check_update(where, second)
    kernels = [(u.left_RD.shape[1], u.right_RH.shape[1]) for u in (first, second)]
    if kernels[0] != kernels[1]:
        raise ValueError(
            f"{where}: the updates must be of one kernel (D, H), got {kernels[0]} and {kernels[1]}."
        )
    checks.same_dtype(where, first=first.left_RD, second=second.left_RD)


def balanced_factors(update: LowRank) -> tuple[Array, Array]:
    """The same outer products in float32 or wider, the sizes all on the right.

    The dual vector of an input of 1e-20 is 1e20 long: its square leaves float32, the update's not.
    """
    dtype = accumulator(update.left_RD.dtype)
    left_RD, right_RH = update.left_RD.astype(dtype), update.right_RH.astype(dtype)
    sizes_R1 = largest_entry(left_RD)[:, None]
    return left_RD / sizes_R1, right_RH * sizes_R1


def as_matrix(update: LowRank) -> Array:
    """Builds ``dW`` (D, H). Nothing in the library needs it; ask for it by this name only.

    Raises:
      ValueError: not the factors of one update, or sides that do not fit.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> as_matrix(outer(jnp.array([1.0, 2.0]), jnp.array([3.0, 4.0, 5.0]))).tolist()
      [[3.0, 4.0, 5.0], [6.0, 8.0, 10.0]]
    """
    check_update("as_matrix", update)
    dtype = accumulator(update.left_RD.dtype)
    matrix_DH = jnp.matmul(
        update.left_RD.T.astype(dtype),
        update.right_RH.astype(dtype),
        precision=jax.lax.Precision.HIGHEST,
    )
    return matrix_DH.astype(update.right_RH.dtype)
