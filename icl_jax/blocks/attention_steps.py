"""Attention with every step of it kept: what a walk through the layers shows.

The weights and scores are (A, T, T), so this is for short sequences that somebody looks at.
"""

from dataclasses import dataclass

import jax

from icl_jax.blocks.attention import Attention, output
from icl_jax.blocks.heads import weighted_sum
from icl_jax.dims import Array
from icl_jax.kernels.attention import mask
from icl_jax.shown import short


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class AttentionSteps:
    """Attention on a whole sequence, step by step.

    Attributes:
      query_TAF: (T, A, F), turned and scaled: scores are products with keys.
      key_TGF: (T, G, F).
      value_TGF: (T, G, F).
      scores_ATT: (A, T, T), before mask and softmax; row t reads column j.
      weights_ATT: (A, T, T), zero where a row does not see.
      heads_TAF: (T, A, F), values summed with the weights.
      mixed_TD: (T, D), all heads through the output kernel.
    """

    query_TAF: Array
    key_TGF: Array
    value_TGF: Array
    scores_ATT: Array
    weights_ATT: Array
    heads_TAF: Array
    mixed_TD: Array

    __repr__ = short


def attention_steps(
    layer: Attention, stream_TD: Array, *, positions_T: Array | None = None
) -> AttentionSteps:
    """The layer on a whole sequence, all that lies between in memory.

    Args:
      layer: bound to its parameters.
      stream_TD: (T, D), what the layer reads.
      positions_T: (T,), position ids; 0, 1, ... when left out.

    Raises:
      ValueError: a sequence of another rank.
    """
    found, sees = layer.projected(stream_TD, positions_T), layer.sees(positions_T, None)
    scores_ATT = layer.scored(found, sees)
    weights_ATT = layer.weigh(scores_ATT, mask(sees, *scores_ATT.shape[1:]))
    heads_TAF = weighted_sum(weights_ATT, found.value_TGF)
    return AttentionSteps(
        query_TAF=found.query_MAF,
        key_TGF=found.key_TGF,
        value_TGF=found.value_TGF,
        scores_ATT=scores_ATT,
        weights_ATT=weights_ATT,
        heads_TAF=heads_TAF,
        mixed_TD=output(heads_TAF, stream_TD, found.kernels),
    )
