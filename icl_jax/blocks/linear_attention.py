"""Linear attention: the scores are the weights."""

import dataclasses

import jax.numpy as jnp

from icl_jax.blocks.attention import Attention
from icl_jax.blocks.heads import per_query_head, row_scores
from icl_jax.dims import Array
from icl_jax.kernels.attention import Sees, accumulate


class LinearAttention(Attention):
    """Attention without the softmax: the weights are the scaled scores themselves.

    The scale is that of the queries, 1/sqrt(F), and does not depend on the length of the context,
    so the output is a plain sum over what a row sees (von Oswald et al., arXiv 2212.07677, without
    their 1/N). A position that is not present reads the others, and nobody reads it, itself
    included: so a query is asked about the examples only (the mask of Ahn et al., arXiv
    2306.00297).

    Examples:
      >>> layer = LinearAttention(num_heads=2)
      >>> stream = jax.random.normal(jax.random.key(0), (6, 8))
      >>> variables = layer.init(jax.random.key(1), stream)
      >>> def last(*seen):  # what the last position reads of these alone
      ...     present = jnp.isin(jnp.arange(6), jnp.array(seen))
      ...     return layer.apply(variables, stream, present_T=present)[-1]
      >>> parts = last(0, 1) + last(2, 3, 4)
      >>> bool(jnp.allclose(parts, last(0, 1, 2, 3, 4), atol=1e-5))  # a plain sum
      True
    """

    @property
    def normalised(self) -> bool:
        """They do not: what goes leaves the others as they are."""
        return False

    def weigh(self, scores_AMT: Array, sees_MT: Array) -> Array:
        """The scores where a row sees, zero elsewhere."""
        return jnp.where(sees_MT[None], scores_AMT, jnp.zeros_like(scores_AMT))

    def mixed(self, query_MAF: Array, key_TGF: Array, value_TGF: Array, sees: Sees) -> Array:
        """See ``Attention``; the weights are never in memory together."""
        return accumulate(query_MAF, key_TGF, value_TGF, dataclasses.replace(sees, itself=False))

    def probed(
        self,
        query_MAF: Array,
        context: tuple[Array, Array],
        own: tuple[Array, Array],
        before: Sees,
    ) -> Array:
        """See ``Attention``: two sums."""
        own_key_MGF, own_value_MGF = own
        own_value_MAF = per_query_head(own_value_MGF, self.num_heads)
        own_weight_MA1 = row_scores(query_MAF, own_key_MGF).T[..., None].astype(own_value_MAF.dtype)
        return accumulate(query_MAF, *context, before) + own_weight_MA1 * own_value_MAF

    def sees(self, positions_T: Array | None, present_T: Array | None) -> Sees:
        """See ``Attention``; a row that sees nothing sums nothing."""
        return dataclasses.replace(super().sees(positions_T, present_T), itself=False)
