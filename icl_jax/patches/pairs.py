"""Sums and products of two numbers as pairs: what the dtype makes of it, and what rounding left.

A patch is a number of the model's dtype, but what it is added to is larger: rounded at every step,
``h + n (s + ds)`` cannot be told to the last bit of the state that it has to be, rounded once at
the end it can. ``high + low`` of a pair is exact unless something overflows (then ``low`` is zero)
or what is left is below the smallest number.

Source: Knuth, The Art of Computer Programming 2, 4.2.2 (sum); Dekker 1971, A floating-point
  technique for extending the available precision (product).
"""

import jax.numpy as jnp

from icl_jax.dims import Array
from icl_jax.stack.settled import as_stored


def two_sum(left: Array, right: Array) -> tuple[Array, Array]:
    """``left + right`` as a pair.

    Examples:
      >>> from icl_jax.patches.pairs import two_sum
      >>> high, low = two_sum(jnp.float32(1), jnp.float32(1e-9))
      >>> float(high), float(low)
      (1.0, 9.999999717180685e-10)
    """
    # Compilers take a constant that is added and taken away again for nothing, but not of bits.
    high = as_stored(left + right)
    share = as_stored(high - left)
    low = (left - (high - share)) + (right - share)
    return high, jnp.where(jnp.isfinite(high), low, 0)


def two_product(left: Array, right: Array) -> tuple[Array, Array]:
    """``left * right`` as a pair.

    Examples:
      >>> from icl_jax.patches.pairs import two_product
      >>> high, low = two_product(jnp.float32(1 + 2**-12), jnp.float32(1 + 2**-12))
      >>> float(high) - 1 == 2**-11, float(low) == 2**-24
      (True, True)
    """
    high = as_stored(left * right)
    (left_high, left_low), (right_high, right_low) = _halves(left), _halves(right)
    low = left_high * right_high - high
    low = ((low + left_high * right_low) + left_low * right_high) + left_low * right_low
    whole = jnp.isfinite(high) & _splits(left) & _splits(right)
    return high, jnp.where(whole, low, 0)


def _halves(values: Array) -> tuple[Array, Array]:
    """Numbers of half as many digits, whose products are exact and whose sum is the number."""
    values = jnp.where(_splits(values), values, 0)
    shifted = as_stored(values * _shift(values))
    high = shifted - (shifted - values)
    return high, values - high


def _splits(values: Array) -> Array:
    """Where the halves do not overflow."""
    return jnp.abs(values) < float(jnp.finfo(values.dtype).max) / (2 * _shift(values))


def _shift(values: Array) -> float:
    return 2.0 ** ((jnp.finfo(values.dtype).nmant + 2) // 2) + 1
