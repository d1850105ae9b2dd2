"""Distances between what two models compute."""

import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.patches.low_rank import accumulator


def relative_error(actual: Array, expected: Array) -> Array:
    """``|actual - expected|_F / |expected|_F`` over all axes, in float32 or wider.

    Raises:
      ValueError: the shapes differ.
      TypeError: the dtypes differ.
    """
    checks.same_shape("relative_error", actual=actual, expected=expected)
    checks.same_dtype("relative_error", actual=actual, expected=expected)
    dtype = accumulator(expected.dtype)
    difference = (actual - expected).astype(dtype).ravel()
    return jnp.linalg.norm(difference) / jnp.linalg.norm(expected.astype(dtype).ravel())


def squared_error(predictions: Array, targets: Array) -> Array:
    """``(prediction - target)^2``, element by element, in squared units of the target.

    Raises:
      ValueError: the shapes differ.
    """
    checks.same_shape("squared_error", predictions=predictions, targets=targets)
    return (predictions - targets) ** 2
