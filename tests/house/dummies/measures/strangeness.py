"""How unlike two predictions are, as a share of their sizes."""

import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array


def strangeness(first_Q: Array, second_Q: Array) -> Array:
    """``|a - b|_1 / (|a|_1 + |b|_1)``: 0 for the same answers, 1 for opposite ones.

    Returns:
      (); NaN when both are zero.

    Raises:
      ValueError: the shapes differ, or there is nothing in them.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> float(strangeness(jnp.array([1.0, 3.0]), jnp.array([1.0, -3.0])))  # 6 of 8
      0.75
    """
    checks.comparable("strangeness", first_Q=first_Q, second_Q=second_Q)
    checks.not_empty("strangeness", "first_Q", first_Q)
    apart = jnp.sum(jnp.abs(first_Q - second_Q))
    return apart / (jnp.sum(jnp.abs(first_Q)) + jnp.sum(jnp.abs(second_Q)))
