"""The arithmetic of attention heads: A query heads read G heads of keys and values, A / G each."""

import jax
import jax.numpy as jnp

from icl_jax.blocks.norms import root_mean_square
from icl_jax.dims import Array
from icl_jax.patches.low_rank import accumulator


def soft_capped(values: Array, cap: float | None) -> Array:
    """``cap tanh(x / cap)``, which keeps values within the cap; no change without one."""
    if cap is None:
        return values
    bound = jnp.asarray(cap, values.dtype)
    return bound * jnp.tanh(values / bound)


def normed_heads(features_TAF: Array, gain: Array, epsilon: float) -> Array:
    """Heads (T, A, F) over their own root mean square (gain (F,)) or that of all (gain (A, F))."""
    wide_TAF = features_TAF.astype(accumulator(features_TAF.dtype))
    axes = tuple(range(-gain.ndim, 0))
    gain_1AF = gain.astype(wide_TAF.dtype).reshape((1,) * (3 - gain.ndim) + gain.shape)
    normed_TAF = wide_TAF / root_mean_square(wide_TAF, epsilon, axes) * gain_1AF
    return normed_TAF.astype(features_TAF.dtype)


def centred_heads(features_TAF: Array, gain_AF: Array, epsilon: float) -> Array:
    """The layer norm of each head (T, A, F), without a bias; each head has its gains (A, F)."""
    wide_TAF = features_TAF.astype(accumulator(features_TAF.dtype))
    centred_TAF = wide_TAF - jnp.mean(wide_TAF, axis=-1, keepdims=True)
    scaled_TAF = centred_TAF / root_mean_square(centred_TAF, epsilon)
    return (scaled_TAF * gain_AF.astype(wide_TAF.dtype)[None]).astype(features_TAF.dtype)


def per_query_head(grouped_TGF: Array, num_heads: int) -> Array:
    """Keys or values (T, A, F), one per query head."""
    return jnp.repeat(grouped_TGF, num_heads // grouped_TGF.shape[1], axis=1)


def scores(query_MAF: Array, key_TGF: Array) -> Array:
    """Scores (A, M, T), accumulated in float32 or wider."""
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


def row_scores(query_MAF: Array, key_MGF: Array) -> Array:
    """Scores (A, M) of each row with its own key."""
    return jnp.einsum(
        "maf,maf->am",
        query_MAF,
        per_query_head(key_MGF, query_MAF.shape[1]),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulator(query_MAF.dtype),
    )


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
