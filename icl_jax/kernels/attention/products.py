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
    rows, heads, features = query_MAF.shape
    length, groups, _ = key_TGF.shape
    # One plain product per group of heads, the small factors turned for it: left to XLA on a CPU,
    # the large result would be turned, at the price of the product itself.
    query_AMF = query_MAF.transpose(1, 0, 2)
    scores_GXT = jnp.matmul(
        query_AMF.reshape(groups, heads // groups * rows, features),
        key_TGF.transpose(1, 2, 0),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulator(query_MAF.dtype),
    )
    return scores_GXT.reshape(heads, rows, length)


def weighted_sum(weights_AMT: Array, value_TGF: Array) -> Array:
    """Values (M, A, F) summed with the weights, in the dtype of the values."""
    heads, rows, length = weights_AMT.shape
    groups, features = value_TGF.shape[1:]
    # As in ``scores``: the weights stay where they are.
    mixed_GXF = jnp.matmul(
        weights_AMT.astype(value_TGF.dtype).reshape(groups, heads // groups * rows, length),
        value_TGF.transpose(1, 0, 2),
        precision=jax.lax.Precision.HIGHEST,
    )
    return mixed_GXF.reshape(heads, rows, features).transpose(1, 0, 2)
