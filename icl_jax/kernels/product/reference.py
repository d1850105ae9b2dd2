"""The product as XLA does it: in the dtype of the rows, a float32 product on every device."""

import jax
import jax.numpy as jnp

from icl_jax.dims import Array


def product(rows: Array, kernel_DH: Array) -> Array:
    """``rows W``, (..., D) and (D, H) to (..., H)."""
    return jnp.matmul(rows, kernel_DH, precision=jax.lax.Precision.HIGHEST)
