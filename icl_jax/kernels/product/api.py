"""Which product is taken, by platform and shape, when a function is traced."""

from typing import Literal

import jax

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.kernels.product import few_rows, reference

Implementation = Literal["reference", "few_rows"]
IMPLEMENTATIONS = ("reference", "few_rows")


def product(
    rows: Array, kernel_DH: Array, *, implementation: Implementation | None = None
) -> Array:
    """``rows W``, (..., D) and (D, H) to (..., H), both of one dtype.

    Args:
      rows: (..., D).
      kernel_DH: (D, H).
      implementation: picked when left out: ``few_rows`` on a GPU where it pays, else ``reference``.

    Raises:
      ValueError: no such implementation, or shapes that do not fit.
    """
    checks.rank("product", "kernel_DH", kernel_DH, 2, "(D, H)")
    checks.axis_size("product", "rows", rows, -1, kernel_DH.shape[0], "the kernel's rows")
    if implementation is None:
        fits = jax.default_backend() == "gpu" and few_rows.can(rows, kernel_DH)
        implementation = "few_rows" if fits else "reference"
    checks.one_of("product", "implementation", implementation, IMPLEMENTATIONS)
    if implementation == "few_rows":
        return few_rows.product(rows, kernel_DH)
    return reference.product(rows, kernel_DH)
