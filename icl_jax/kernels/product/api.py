"""Which product is taken, by platform and shape, when a function is traced."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import jax

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.kernels.product import few_rows, one_row, reference
from icl_jax.kernels.target import platform

Implementation = Literal["reference", "few_rows", "one_row"]
_KINDS: dict[str, Callable[[Array, Array], Array]] = {
    "reference": reference.product,
    "few_rows": few_rows.product,
    "one_row": one_row.product,
}
IMPLEMENTATIONS = tuple(_KINDS)

Tree = TypeVar("Tree")


def product(
    rows: Array, kernel_DH: Array, *, implementation: Implementation | None = None
) -> Array:
    """``rows W``, (..., D) and (D, H) to (..., H), both of one dtype.

    Args:
      rows: (..., D).
      kernel_DH: (D, H).
      implementation: picked when left out: on a GPU ``few_rows`` where it pays, or else ``one_row``
        where it can; ``reference`` everywhere else.

    Raises:
      ValueError: no such implementation, or shapes that do not fit.
    """
    checks.rank("product", "kernel_DH", kernel_DH, 2, "(D, H)")
    checks.axis_size("product", "rows", rows, -1, kernel_DH.shape[0], "the kernel's rows")
    if implementation is None:
        implementation = _chosen(rows, kernel_DH)
    checks.one_of("product", "implementation", implementation, IMPLEMENTATIONS)
    return _KINDS[implementation](rows, kernel_DH)


def in_turn(done: Tree, rows: Array, width: int) -> tuple[Tree, Array]:
    """What is done, and the row, not before it: for a product of the same row as the last one.

    XLA would fuse two sums over the same row, and then read both kernels at the pace of one (H200,
    gate and up of Llama 3.2 1B: 48 microseconds together, 41 in turn; of two rows 55 and 59). No
    change where there are more rows or no sums.

    Args:
      done: of the product before.
      rows: (..., D).
      width: H, columns of the next kernel.
    """
    kernel: Any = jax.ShapeDtypeStruct((rows.shape[-1], width), rows.dtype)
    if rows.size > rows.shape[-1] or _chosen(rows, kernel) != "few_rows":
        return done, rows
    return jax.lax.optimization_barrier((done, rows))


def _chosen(rows: Array, kernel_DH: Array) -> Implementation:
    if platform() != "gpu":
        return "reference"
    if few_rows.can(rows, kernel_DH):
        return "few_rows"
    return "one_row" if one_row.can(rows, kernel_DH) else "reference"
