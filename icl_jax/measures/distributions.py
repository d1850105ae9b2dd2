"""Distances between the next-token distributions of two models, row by row of their logits."""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.patches.low_rank import accumulator


def kl_divergence(expected: Array, actual: Array) -> Array:
    """``KL(p || q)`` in nats, (...) of logits (..., V): ``p`` expected, ``q`` actual.

    Computed in float32 or wider; rounding can leave a tiny negative number, which is not hidden.

    Raises:
      ValueError: the shapes differ.
    """
    checks.same_shape("kl_divergence", expected=expected, actual=actual)
    dtype = accumulator(jnp.promote_types(expected.dtype, actual.dtype))
    log_p = jax.nn.log_softmax(expected.astype(dtype), axis=-1)
    log_q = jax.nn.log_softmax(actual.astype(dtype), axis=-1)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def same_top1(expected: Array, actual: Array) -> Array:
    """Whether the most probable token is the same, boolean (...) of logits (..., V).

    Raises:
      ValueError: the shapes differ.
    """
    checks.same_shape("same_top1", expected=expected, actual=actual)
    return jnp.argmax(expected, axis=-1) == jnp.argmax(actual, axis=-1)
