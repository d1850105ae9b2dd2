"""Softmax attention and linear attention: one multi-head layer with two ways to weigh."""

import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.affine import dense
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.heads import (
    centred_heads,
    normed_heads,
    per_query_head,
    row_scores,
    scores,
    soft_capped,
    weighted_sum,
)
from icl_jax.blocks.memory import KeyValues, append
from icl_jax.blocks.rotary import Rotary, rotate, tempered
from icl_jax.dims import Array

_INTO_HEADS = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2)
)
_OUT_OF_HEADS = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2
)

#: Whether queries and keys are divided by their root mean square before they turn: not at all, each
#: head by its own (Qwen 3, Gemma 3), all heads by a common one (OLMo 2), or each head by its own
#: standard deviation and with gains of its own (Cohere, StableLM).
QueryKeyNorm = Literal["none", "head", "all", "layer"]
QUERY_KEY_NORMS = ("none", "head", "all", "layer")


class _Kernels(NamedTuple):
    """Query, key and value kernels, output kernel, biases and query-key gains (or None)."""

    query_DAF: Array
    key_DGF: Array
    value_DGF: Array
    out_AFD: Array
    query_bias_AF: Array | None
    key_bias_GF: Array | None
    value_bias_GF: Array | None
    out_bias_D: Array | None
    query_gain: Array | None
    key_gain: Array | None


class Attention(ContextualLayer):
    """``A(S)_t = sum_a sum_j weight_atj (value_aj W_out,a)``; a subclass says what weighs.

    Attributes:
      num_heads: A, the number of heads.
      head_width: F, features of one head; D / A when left out.
      num_kv_heads: G, heads of keys and values, each read by A / G query heads (Ainslie et al.,
        arXiv 2305.13245); A when left out, 1 is multi-query attention.
      use_bias: whether the query, key and value projections have biases.
      out_bias: whether the output projection has one; as ``use_bias`` when left out.
      rotary: rotary position embeddings; None for none, which makes the layer blind to the order of
        what it sees.
      window: a row sees what is fewer than so many position ids away; None for everything.
      scale: of the scores; 1/sqrt(F) when left out.
      qk_norm: see ``QueryKeyNorm``.
      norm_epsilon: of the query-key norm, in squared units of queries and keys.
      clip: queries, keys and values are clipped to within so much of zero (OLMo); None for none.
      value_scale: by which values, and so the whole output before its bias, are multiplied (the
        residual multiplier of Granite).
      temper: beta and period of queries that grow with their position (Ministral 3); None for none.
      dtype: of the parameters; the arithmetic is in the dtype of the input.
    """

    num_heads: int = 1
    head_width: int | None = None
    num_kv_heads: int | None = None
    use_bias: bool = False
    out_bias: bool | None = None
    rotary: Rotary | None = None
    window: int | None = None
    scale: float | None = None
    qk_norm: QueryKeyNorm = "none"
    norm_epsilon: float = 1e-6
    clip: float | None = None
    value_scale: float = 1.0
    temper: tuple[float, int] | None = None
    dtype: jnp.dtype = jnp.float32

    def weigh(self, scores_AMT: Array, sees_MT: Array) -> Array:
        """Weights (A, M, T) from scores; row m may use only the positions that it sees."""
        raise TypeError(f"{type(self).__name__} must define weigh(scores_AMT, sees_MT).")

    def __call__(
        self,
        hidden_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """See ``ContextualLayer``."""
        weights_ATT, value_TGF, kernels = self._weights(hidden_TD, positions_T, present_T)
        return _out(weighted_sum(weights_ATT, value_TGF), kernels)

    def extend(
        self,
        hidden_MD: Array,
        memory: KeyValues,
        *,
        positions_M: Array,
        present_M: Array | None = None,
    ) -> tuple[Array, KeyValues]:
        """Reads new tokens after those in the memory, and puts them there (causal layers only).

        Args:
          hidden_MD: (M, D), the new tokens.
          memory: keys and values of the tokens before, with room for M more.
          positions_M: (M,), position ids of the new tokens.
          present_M: (M,), False where a new token is padding.

        Returns:
          The layer's output (M, D) on the new tokens, and the memory with them in it.
        """
        if not self.causal:
            raise ValueError(
                f"{type(self).__name__}.extend: a layer that reads forwards, too, cannot be "
                "continued: what it said of earlier tokens would change. Use causal=True."
            )
        kernels = self._kernels(hidden_MD.shape[-1])
        query_MAF, key_MGF, value_MGF = self._project(hidden_MD, positions_M, kernels)
        memory, sees_MT = append(memory, key_MGF, value_MGF, positions_M, present_M)
        sees_MT &= self._near(positions_M.astype(jnp.int32), memory.positions_T)
        # A memory may be narrower than the arithmetic, which is in the dtype of the input.
        key_TGF = memory.key_TGF.astype(hidden_MD.dtype)
        value_TGF = memory.value_TGF.astype(hidden_MD.dtype)
        weights_AMT = self.weigh(scores(query_MAF, key_TGF), sees_MT)
        return _out(weighted_sum(weights_AMT, value_TGF), kernels), memory

    def prefixes(
        self, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Array, Array]:
        """One pass: the probes share the context's keys and values, and each adds its own."""
        kernels = self._kernels(context_ND.shape[-1])
        positions_N = positions_M[:-1]
        query_NAF, key_NGF, value_NGF = self._project(context_ND, positions_N, kernels)
        own_query_MAF, own_key_MGF, own_value_MGF = self._project(probes_MD, positions_M, kernels)
        weights_ANN = self.weigh(scores(query_NAF, key_NGF), self._sees(positions_N, None))

        num_context = context_ND.shape[0]
        before_MN = jnp.tri(num_context + 1, num_context, -1, dtype=bool)
        before_MN &= self._near(positions_M, positions_N)
        itself_M1 = jnp.ones((num_context + 1, 1), bool)
        own_scores_AM1 = row_scores(own_query_MAF, own_key_MGF)[..., None]
        weights_AMT = self.weigh(
            jnp.concatenate([scores(own_query_MAF, key_NGF), own_scores_AM1], axis=-1),
            jnp.concatenate([before_MN, itself_M1], axis=-1),
        )
        own_value_MAF = per_query_head(own_value_MGF, self.num_heads)
        own_weight_MA1 = weights_AMT[..., -1].T[..., None].astype(own_value_MAF.dtype)
        mixed_MAF = weighted_sum(weights_AMT[..., :-1], value_NGF) + own_weight_MA1 * own_value_MAF
        return _out(weighted_sum(weights_ANN, value_NGF), kernels), _out(mixed_MAF, kernels)

    def suffixes(self, context_ND: Array, query_D: Array, *, positions_T: Array) -> Array:
        """One pass: the query's scores serve every suffix, only what it sees differs."""
        hidden_TD = jnp.concatenate([context_ND, query_D[None, :]])
        length = hidden_TD.shape[0]
        kernels = self._kernels(hidden_TD.shape[-1])
        query_TAF, key_TGF, value_TGF = self._project(hidden_TD, positions_T, kernels)
        scores_A1T = scores(query_TAF[-1:], key_TGF)
        sees_MT = ~jnp.tri(length, length, -1, dtype=bool)
        weights_AMT = self.weigh(
            jnp.broadcast_to(scores_A1T, (self.num_heads, length, length)),
            sees_MT & self._near(positions_T[-1:], positions_T),
        )
        return _out(weighted_sum(weights_AMT, value_TGF), kernels)

    def parts(
        self,
        hidden_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> tuple[Array, Array]:
        """The layer's sum, opened: who is read how much, and what each passes on.

        Returns:
          Weights (A, T, T), row t reading column j, and ``value_aj W_out,a`` (A, T, D):
          ``sum_aj weights[a, t, j] passed[a, j]``, plus the output bias, is the output at t.
        """
        weights_ATT, value_TGF, kernels = self._weights(hidden_TD, positions_T, present_T)
        passed_ATD = jnp.einsum(
            "taf,afd->atd",
            per_query_head(value_TGF, self.num_heads),
            kernels.out_AFD.astype(value_TGF.dtype),
            precision=jax.lax.Precision.HIGHEST,
        )
        return weights_ATT, passed_ATD

    def raw_scores(self, hidden_TD: Array, *, positions_T: Array | None = None) -> Array:
        """What ``weigh`` is given, (A, T, T): before mask, cap and softmax."""
        return self._scores(hidden_TD, self._positions(hidden_TD, positions_T))[0]

    def _weights(
        self, hidden_TD: Array, positions_T: Array | None, present_T: Array | None
    ) -> tuple[Array, Array, _Kernels]:
        positions_T = self._positions(hidden_TD, positions_T)
        scores_ATT, value_TGF, kernels = self._scores(hidden_TD, positions_T)
        return self.weigh(scores_ATT, self._sees(positions_T, present_T)), value_TGF, kernels

    def _scores(self, hidden_TD: Array, positions_T: Array) -> tuple[Array, Array, _Kernels]:
        kernels = self._kernels(hidden_TD.shape[-1])
        query_TAF, key_TGF, value_TGF = self._project(hidden_TD, positions_T, kernels)
        return scores(query_TAF, key_TGF), value_TGF, kernels

    def _positions(self, hidden_TD: Array, positions_T: Array | None) -> Array:
        checks.rank(type(self).__name__, "hidden_TD", hidden_TD, 2, "(T, D)")
        if positions_T is None:
            return jnp.arange(hidden_TD.shape[0], dtype=jnp.int32)
        return positions_T

    @nn.compact
    def _kernels(self, width: int) -> _Kernels:
        name = type(self).__name__
        checks.positive_int(name, "num_heads", self.num_heads)
        checks.one_of(name, "qk_norm", self.qk_norm, QUERY_KEY_NORMS)
        for option in ("num_kv_heads", "head_width", "window"):
            if getattr(self, option) is not None:
                checks.positive_int(name, option, getattr(self, option))
        if self.head_width is None and width % self.num_heads:
            raise ValueError(
                f"{name}: num_heads={self.num_heads} does not divide the width {width}. Choose a "
                "divisor, or set head_width."
            )
        groups = self.num_kv_heads or self.num_heads
        if self.num_heads % groups:
            raise ValueError(
                f"{name}: num_kv_heads={groups} does not divide num_heads={self.num_heads}."
            )
        features = self.head_width or width // self.num_heads
        query, key = (self.num_heads, features), (groups, features)
        out_bias = self.use_bias if self.out_bias is None else self.out_bias
        zeros, ones = nn.initializers.zeros, nn.initializers.ones

        def bias(name: str, shape: tuple[int, ...], present: bool) -> Array | None:
            return self.param(f"{name}_bias", zeros, shape, self.dtype) if present else None

        def gain(name: str, shape: tuple[int, ...]) -> Array | None:
            if self.qk_norm == "none":
                return None
            shape = shape[1:] if self.qk_norm == "head" else shape
            return self.param(f"{name}_norm", ones, shape, self.dtype)

        return _Kernels(
            self.param("query", _INTO_HEADS, (width, *query), self.dtype),
            self.param("key", _INTO_HEADS, (width, *key), self.dtype),
            self.param("value", _INTO_HEADS, (width, *key), self.dtype),
            self.param("out", _OUT_OF_HEADS, (*query, width), self.dtype),
            bias("query", query, self.use_bias),
            bias("key", key, self.use_bias),
            bias("value", key, self.use_bias),
            bias("out", (width,), out_bias),
            gain("query", query),
            gain("key", key),
        )

    def _project(
        self, hidden_TD: Array, positions_T: Array, kernels: _Kernels
    ) -> tuple[Array, Array, Array]:
        """Queries (T, A, F), keys and values (T, G, F); the queries carry the scores' scale."""
        query_TAF = dense(hidden_TD, kernels.query_DAF, kernels.query_bias_AF)
        key_TGF = dense(hidden_TD, kernels.key_DGF, kernels.key_bias_GF)
        value_TGF = dense(hidden_TD, kernels.value_DGF, kernels.value_bias_GF)
        if self.clip is not None:
            checks.positive(type(self).__name__, "clip", self.clip)
            query_TAF, key_TGF, value_TGF = (
                jnp.clip(features, -self.clip, self.clip)
                for features in (query_TAF, key_TGF, value_TGF)
            )
        if self.value_scale != 1.0:
            value_TGF = value_TGF * jnp.asarray(self.value_scale, value_TGF.dtype)
        if kernels.query_gain is not None and kernels.key_gain is not None:
            norm = centred_heads if self.qk_norm == "layer" else normed_heads
            query_TAF = norm(query_TAF, kernels.query_gain, self.norm_epsilon)
            key_TGF = norm(key_TGF, kernels.key_gain, self.norm_epsilon)
        if self.rotary is not None:
            query_TAF = rotate(query_TAF, positions_T, self.rotary)
            key_TGF = rotate(key_TGF, positions_T, self.rotary)
        if self.temper is not None:
            query_TAF = tempered(query_TAF, positions_T, *self.temper)
        scale = 1 / math.sqrt(query_TAF.shape[-1]) if self.scale is None else self.scale
        return query_TAF * jnp.asarray(scale, query_TAF.dtype), key_TGF, value_TGF

    def _sees(self, positions_T: Array, present_T: Array | None) -> Array:
        """Which columns each row (T, T) reads, in a sequence of one's own."""
        length = positions_T.shape[0]
        sees_TT = jnp.tri(length, dtype=bool) if self.causal else jnp.ones((length, length), bool)
        sees_TT &= self._near(positions_T, positions_T)
        if present_T is None:
            return sees_TT
        return self._but_absent(sees_TT, present_T)

    def _but_absent(self, sees_TT: Array, present_T: Array) -> Array:
        """What is seen when nobody sees the absent ones."""
        # They still see themselves: a row that sees nothing has no softmax, and nobody reads it.
        return (sees_TT & present_T[None, :]) | jnp.eye(len(present_T), dtype=bool)

    def _near(self, rows_M: Array, columns_T: Array) -> Array:
        """Which position ids lie within the window of each row; broadcastable to (M, T)."""
        if self.window is None:
            return jnp.ones((1, 1), bool)
        return jnp.abs(rows_M[:, None] - columns_T[None, :]) < self.window


class SoftmaxAttention(Attention):
    """Multi-head softmax attention; the weights of each row sum to 1 (Vaswani et al. 2017).

    Attributes:
      soft_cap: scores s become ``cap tanh(s / cap)`` (Gemma 2); None for none.
    """

    soft_cap: float | None = None

    def weigh(self, scores_AMT: Array, sees_MT: Array) -> Array:
        """Softmax in float32 or wider over what each row sees."""
        if self.soft_cap is not None:
            checks.positive("SoftmaxAttention", "soft_cap", self.soft_cap)
        lowest = jnp.finfo(scores_AMT.dtype).min
        capped_AMT = soft_capped(scores_AMT, self.soft_cap)
        return jax.nn.softmax(jnp.where(sees_MT[None], capped_AMT, lowest), axis=-1)


class LinearAttention(Attention):
    """Attention without the softmax: the weights are the scaled scores themselves.

    The scale is that of the queries, 1/sqrt(F), and does not depend on the length of the context,
    so the output is a plain sum over what a row sees (von Oswald et al., arXiv 2212.07677, without
    their 1/N). A position that is not present reads the others, and nobody reads it, itself
    included: so a query is asked about the examples only (the mask of Ahn et al., arXiv
    2306.00297).
    """

    def weigh(self, scores_AMT: Array, sees_MT: Array) -> Array:
        """The scores where a row sees, zero elsewhere."""
        return jnp.where(sees_MT[None], scores_AMT, jnp.zeros_like(scores_AMT))

    def _but_absent(self, sees_TT: Array, present_T: Array) -> Array:
        return sees_TT & present_T[None, :]


def _out(mixed_MAF: Array, kernels: _Kernels) -> Array:
    """The output projection (M, D)."""
    return dense(mixed_MAF, kernels.out_AFD, kernels.out_bias_D, axes=2)
