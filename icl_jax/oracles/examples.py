"""What the predictors of this folder share: the examples present, checked, and exact products."""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array


def present_examples(
    where: str,
    inputs_ND: Array,
    targets_N: Array,
    query_D: Array | None,
    present_N: Array | None,
) -> tuple[Array, Array, Array]:
    """Checks the examples (and the query, where there is one) and zeroes those that are absent.

    Returns:
      Inputs (N, D) and targets (N,), zero where absent, and the mask (N,).

    Raises:
      ValueError: shapes that disagree.
      TypeError: dtypes that disagree, or are narrower than float32; a mask that is not boolean.
    """
    checks.rank(where, "inputs_ND", inputs_ND, 2, "(N, D)")
    checks.rank(where, "targets_N", targets_N, 1, "(N)")
    num_examples, width = inputs_ND.shape
    arrays = {"inputs_ND": inputs_ND, "targets_N": targets_N}
    if query_D is not None:
        checks.rank(where, "query_D", query_D, 1, "(D)")
        arrays["query_D"] = query_D
    checks.axis_size(where, "targets_N", targets_N, 0, num_examples, "one per example")
    if query_D is not None:
        checks.axis_size(where, "query_D", query_D, 0, width, "the width of an input")
        checks.floating(where, "query_D", query_D)
    checks.floating(where, "inputs_ND", inputs_ND)
    checks.same_dtype(where, **arrays)
    if jnp.finfo(inputs_ND.dtype).bits < 32:
        raise TypeError(
            f"{where}: the oracles need float32 or float64, got {inputs_ND.dtype}. Convert the "
            "prompt first, for example with .astype(jnp.float32)."
        )
    if present_N is None:
        return inputs_ND, targets_N, jnp.ones((num_examples,), bool)
    checks.mask(where, "present_N", present_N, num_examples, "one per example")
    return (
        jnp.where(present_N[:, None], inputs_ND, 0),
        jnp.where(present_N, targets_N, 0),
        present_N,
    )


def product(left: Array, right: Array) -> Array:
    """``left @ right``; a float32 product is a float32 product on every device."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


def count(present_N: Array, like: Array) -> Array:
    """The number of examples present, (), in the dtype of ``like``."""
    return jnp.sum(present_N, dtype=like.dtype)
