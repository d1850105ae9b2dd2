"""The arithmetic of attention heads: A query heads read G heads of keys and values, A / G each."""

import jax
import jax.numpy as jnp

from icl_jax.blocks.norms import root_mean_square
from icl_jax.dims import Array, accumulator
from icl_jax.kernels.attention import scores, soft_capped, weighted_sum

__all__ = [
    "normed_heads",
    "per_query_head",
    "row_scores",
    "scores",
    "soft_capped",
    "weighted_sum",
]


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


def row_scores(query_MAF: Array, key_MGF: Array) -> Array:
    """Scores (A, M) of each row with its own key."""
    return jnp.einsum(
        "maf,maf->am",
        query_MAF,
        per_query_head(key_MGF, query_MAF.shape[1]),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=accumulator(query_MAF.dtype),
    )
