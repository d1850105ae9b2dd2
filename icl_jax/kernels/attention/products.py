"""The two products of attention, in layouts that are fast everywhere, and what scores become."""

import jax
import jax.numpy as jnp

from icl_jax.dims import Array, accumulator


def soft_capped(values: Array, cap: float | None) -> Array:
    """``cap tanh(x / cap)``, which keeps values within the cap; no change without one."""
    if cap is None:
        return values
    bound = jnp.asarray(cap, values.dtype)
    return bound * jnp.tanh(values / bound)


def sloped(scores_AMT: Array, distance_MT: Array, slopes_A: Array) -> Array:
    """Scores less ``slope_a`` times the distance, in their own dtype (which is a wide one)."""
    slopes_A11 = slopes_A.astype(scores_AMT.dtype)[:, None, None]
    return scores_AMT - slopes_A11 * distance_MT.astype(scores_AMT.dtype)[None]


def scores(query_MAF: Array, key_TGF: Array) -> Array:
    """Scores (A, M, T), accumulated in float32 or wider; head a reads group ``a // (A / G)``."""
    rows, heads, _ = query_MAF.shape
    groups = key_TGF.shape[1]
    # One plain product per group of heads, the small factors turned for it: left to XLA on a CPU,
    # the large result would be turned, at the price of the product itself.
    query_AMF = query_MAF.transpose(1, 0, 2)
    scores_GXT = jnp.matmul(
        _by_groups(query_AMF, groups),
        key_TGF.transpose(1, 2, 0),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulator(query_MAF.dtype),
    )
    return _by_heads(scores_GXT, heads, rows)


def weighted_sum(weights_AMT: Array, value_TGF: Array) -> Array:
    """Values (M, A, F) summed with the weights, in the dtype of the values."""
    heads, rows, _ = weights_AMT.shape
    groups = value_TGF.shape[1]
    # As in ``scores``: the weights stay where they are.
    mixed_GXF = jnp.matmul(
        _by_groups(weights_AMT.astype(value_TGF.dtype), groups),
        value_TGF.transpose(1, 0, 2),
        precision=jax.lax.Precision.HIGHEST,
    )
    return _by_heads(mixed_GXF, heads, rows).transpose(1, 0, 2)


def _by_groups(array_AMF: Array, groups: int) -> Array:
    """The rows of all heads of a group one after another, (G, X, F).

    Split and merged one at a time: on a mesh with explicit axes JAX refuses both at once.
    """
    heads, rows, features = array_AMF.shape
    split = array_AMF.reshape(groups, heads // groups, rows, features)
    return split.reshape(groups, heads // groups * rows, features)


def _by_heads(array_GXF: Array, heads: int, rows: int) -> Array:
    """What ``_by_groups`` laid together, head by head, (A, M, F)."""
    groups, _, features = array_GXF.shape
    split = array_GXF.reshape(groups, heads // groups, rows, features)
    return split.reshape(heads, rows, features)
