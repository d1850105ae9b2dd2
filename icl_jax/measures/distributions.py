"""Distances between the next-token distributions of two models, row by row of their logits."""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator


def kl_divergence(expected: Array, actual: Array) -> Array:
    """``KL(p || q)`` in nats, (...) of logits (..., V): ``p`` expected, ``q`` actual.

    Summed as ``p log(p / q) - p + q``, whose terms are none of them negative and which add up to
    the same: equal models are 0 apart, and rounding makes nothing negative. A token that both give
    probability zero counts for nothing, one that ``q`` alone does makes it infinite.

    Returns:
      (...) in float32 or wider; NaN where a logit is.

    Raises:
      ValueError: the shapes differ, or there is no token.
      TypeError: not floating point.

    Examples:
      >>> logits = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
      >>> round(float(kl_divergence(*logits)), 4)
      0.1438
    """
    _check_logits("kl_divergence", expected, actual)
    dtype = accumulator(jnp.promote_types(expected.dtype, actual.dtype))
    log_p = jax.nn.log_softmax(expected.astype(dtype), axis=-1)
    log_q = jax.nn.log_softmax(actual.astype(dtype), axis=-1)
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    # Asked this way round, a NaN is present and spreads.
    absent = p == 0
    ratio = jnp.where(absent, 0, log_q) - jnp.where(absent, 0, log_p)
    near = jnp.abs(ratio) < 1
    # Near 1 the ratio itself holds all the digits, of which q - p would cancel some.
    inner = jnp.where(near, ratio, 0)
    terms = jnp.where(near, p * (jnp.expm1(inner) - inner), q - p - p * ratio)
    terms = jnp.where(absent, q, terms)
    return jnp.sum(jnp.where(terms < 0, 0, terms), axis=-1)


def same_top1(expected: Array, actual: Array) -> Array:
    """Whether the most probable token is the same, boolean (...) of logits (..., V).

    A row with a NaN, or whose largest logit is infinite, has no most probable token: it agrees
    with nothing.

    Raises:
      ValueError: the shapes differ, or there is no token.
      TypeError: not floating point.

    Examples:
      >>> expected = jnp.array([[1.0, 2.0], [1.0, 2.0]])
      >>> same_top1(expected, jnp.array([[0.0, 1.0], [1.0, 0.0]])).tolist()
      [True, False]
    """
    _check_logits("same_top1", expected, actual)
    known = _are_distributions(expected) & _are_distributions(actual)
    return known & (jnp.argmax(expected, axis=-1) == jnp.argmax(actual, axis=-1))


def total_variation(expected: Array, actual: Array) -> Array:
    """``sum_v |p_v - q_v| / 2``, (...) of logits (..., V), in [0, 1], in float32 or wider.

    The largest difference of the probabilities that the two give to one set of tokens.

    Raises:
      ValueError: the shapes differ, or there is no token.
      TypeError: not floating point.

    Examples:
      >>> logits = jnp.log(jnp.array([0.5, 0.5])), jnp.log(jnp.array([0.25, 0.75]))
      >>> round(float(total_variation(*logits)), 4)
      0.25

    Source: Levin and Peres, "Markov Chains and Mixing Times", proposition 4.2.
    """
    _check_logits("total_variation", expected, actual)
    dtype = accumulator(jnp.promote_types(expected.dtype, actual.dtype))
    p = jax.nn.softmax(expected.astype(dtype), axis=-1)
    q = jax.nn.softmax(actual.astype(dtype), axis=-1)
    return jnp.sum(jnp.abs(p - q), axis=-1) / 2


def top_k_overlap(expected: Array, actual: Array, *, k: int) -> Array:
    """The share of common tokens among the ``k`` most probable, (...) of logits (..., V).

    Their order among the ``k`` does not count. Of tokens with equal logits the first is taken. A
    row with a NaN, or whose largest logit is infinite, shares nothing.

    Args:
      expected: (..., V), logits.
      actual: (..., V), logits.
      k: from 1 to V; at V the share is 1 for any two models.

    Returns:
      (...) in float32 or wider, in [0, 1].

    Raises:
      ValueError: the shapes differ, or ``k`` is not an integer from 1 to V.
      TypeError: not floating point.

    Examples:
      >>> float(top_k_overlap(jnp.array([3.0, 2.0, 1.0]), jnp.array([3.0, 1.0, 2.0]), k=2))
      0.5

    Source: Shen, Mishra and Khashabi 2023 (arXiv 2310.08540), token overlap.
    """
    _check_logits("top_k_overlap", expected, actual)
    checks.positive_int("top_k_overlap", "k", k)
    if k > expected.shape[-1]:
        raise ValueError(
            f"top_k_overlap: k must be at most the number of tokens, {expected.shape[-1]}, got {k}."
        )
    _, expected_tokens = jax.lax.top_k(expected, k)
    _, actual_tokens = jax.lax.top_k(actual, k)
    common = expected_tokens[..., :, None] == actual_tokens[..., None, :]
    known = _are_distributions(expected) & _are_distributions(actual)
    dtype = accumulator(jnp.promote_types(expected.dtype, actual.dtype))
    return jnp.where(known, jnp.sum(common, axis=(-2, -1)), 0).astype(dtype) / k


def _check_logits(where: str, expected: Array, actual: Array) -> None:
    for name, logits in (("expected", expected), ("actual", actual)):
        checks.floating(where, name, logits)
        if jnp.ndim(logits) == 0 or logits.shape[-1] == 0:
            raise ValueError(
                f"{where}: {name} must be logits (..., V) with a last axis of tokens, got shape "
                f"{logits.shape}."
            )
    checks.same_shape(where, expected=expected, actual=actual)


def _are_distributions(logits: Array) -> Array:
    """Whether a softmax of each row exists, (...): its largest logit is a number, and finite."""
    return jnp.isfinite(jnp.max(logits, axis=-1))
