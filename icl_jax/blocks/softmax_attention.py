"""Softmax attention, with soft caps, slopes and sinks."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.attention import Attention, Projected
from icl_jax.blocks.heads import per_query_head, row_scores, soft_capped
from icl_jax.dims import Array, accumulator
from icl_jax.kernels.attention import Sees, attend, gaps, mask, merge, of_rows, sloped


class SoftmaxAttention(Attention):
    """Multi-head softmax attention; the weights of each row sum to 1 (Vaswani et al. 2017).

    Attributes:
      soft_cap: scores s become ``cap tanh(s / cap)`` (Gemma 2); None for none.
      slopes: of each head, by how much a score falls per position id of distance, before any cap
        (ALiBi; Press et al., arXiv 2108.12409); None for none.
      sinks: whether each head has one more score, a parameter, that takes its share of the weights
        and gives nothing: the others then sum to less than 1 (gpt-oss; Xiao et al., arXiv
        2309.17453).

    Examples:
      >>> layer = SoftmaxAttention(num_heads=4, num_kv_heads=2, rotary=Rotary(), window=3)
      >>> stream = jax.random.normal(jax.random.key(0), (6, 8))
      >>> variables = layer.init(jax.random.key(1), stream)
      >>> moved = layer.apply(variables, stream.at[0].add(1.0)) - layer.apply(variables, stream)
      >>> (jnp.abs(moved).max(1) > 0).tolist()  # who sees the first token
      [True, True, True, False, False, False]
    """

    soft_cap: float | None = None
    slopes: tuple[float, ...] | None = None
    sinks: bool = False

    @property
    def normalised(self) -> bool:
        """They do, together with a sink's where there is one."""
        return True

    @property
    def has_sink(self) -> bool:
        """Where each head has a score of its own."""
        return self.sinks

    @property
    def counts_positions(self) -> bool:
        """See ``Attention``; slopes do, too."""
        return self.window is not None or self.slopes is not None

    def weigh(self, scores_AMT: Array, sees_MT: Array) -> Array:
        """Softmax in float32 or wider over what each row sees, and the sink, which is left out."""
        return self._softmax(scores_AMT, sees_MT)[0]

    def sink_weights(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
        rows_M: Array | None = None,
    ) -> Array:
        """See ``ContextualLayer``; (A, M)."""
        scores_AMT = self.raw_scores(stream_TD, positions_T=positions_T, rows_M=rows_M)
        sees = of_rows(self.sees(positions_T, present_T), rows_M)
        return self._softmax(scores_AMT, mask(sees, *scores_AMT.shape[1:]))[1]

    def _softmax(self, scores_AMT: Array, sees_MT: Array) -> tuple[Array, Array]:
        """Weights (A, M, T), and those of the sinks (A, M); zero without."""
        lowest = jnp.finfo(scores_AMT.dtype).min
        capped_AMT = soft_capped(scores_AMT, self._cap())
        seen_AMT = jnp.where(sees_MT[None], capped_AMT, lowest)
        sinks_A = self._sinks()
        if sinks_A is None:
            return jax.nn.softmax(seen_AMT, axis=-1), jnp.zeros_like(seen_AMT[..., 0])
        sinks_A11 = sinks_A.astype(seen_AMT.dtype)[:, None, None]
        sinks_AM1 = jnp.broadcast_to(sinks_A11, (*seen_AMT.shape[:2], 1))
        weights_AMX = jax.nn.softmax(jnp.concatenate([seen_AMT, sinks_AM1], axis=-1), axis=-1)
        return weights_AMX[..., :-1], weights_AMX[..., -1]

    def mixed(self, query_MAF: Array, key_TGF: Array, value_TGF: Array, sees: Sees) -> Array:
        """See ``Attention``; the weights are never in memory together."""
        return attend(query_MAF, key_TGF, value_TGF, sees, **self._options(query_MAF))[0]

    def probed(
        self,
        query_MAF: Array,
        context: tuple[Array, Array],
        own: tuple[Array, Array],
        before: Sees,
    ) -> Array:
        """See ``Attention``: two softmaxes merged by their log-sum-exps (THEORY 3)."""
        own_key_MGF, own_value_MGF = own
        own_scores_AM = soft_capped(row_scores(query_MAF, own_key_MGF), self._cap())
        own_value_MAF = per_query_head(own_value_MGF, self.num_heads)
        # A probe is no distance away from itself, and the sink counts once.
        before_M = attend(query_MAF, *context, before, **self._options(query_MAF))
        return merge(*before_M, own_value_MAF, own_scores_AM)[0]

    def scored(self, projected: Projected, sees: Sees) -> Array:
        """See ``Attention``; slopes make them fall with the distance."""
        scores_AMT = super().scored(projected, sees)
        slopes_A = self._slopes(scores_AMT.dtype)
        if slopes_A is None:
            return scores_AMT
        return sloped(scores_AMT, gaps(sees, *scores_AMT.shape[1:]), slopes_A)

    def _options(self, query_MAF: Array) -> dict[str, Any]:
        """What ``attend`` is told of this layer."""
        slopes_A = self._slopes(accumulator(query_MAF.dtype))
        return {"cap": self._cap(), "sinks_A": self._sinks(), "slopes_A": slopes_A}

    @nn.compact
    def _sinks(self) -> Array | None:
        if not self.sinks:
            return None
        return self.param("sink", nn.initializers.zeros, (self.num_heads,), self.dtype)

    def _slopes(self, dtype: jnp.dtype) -> Array | None:
        if self.slopes is None:
            return None
        if len(self.slopes) != self.num_heads:
            raise ValueError(
                f"SoftmaxAttention: slopes must have one number for each of num_heads="
                f"{self.num_heads} heads, got {len(self.slopes)}."
            )
        return jnp.asarray(self.slopes, dtype)

    def _cap(self) -> float | None:
        if self.soft_cap is not None:
            checks.positive("SoftmaxAttention", "soft_cap", self.soft_cap)
        return self.soft_cap
