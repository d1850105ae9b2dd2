"""Multi-head attention, but for what weighs: ``softmax_attention.py`` and ``linear_attention.py``.

What is mixed goes through ``kernels.attention``, in memory linear in the context. The weights
themselves, (A, T, T), are a diagnostic, asked for by name: ``parts`` and ``raw_scores``.
"""

import math
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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
    weighted_sum,
)
from icl_jax.blocks.memory import KeyValues, append, empty_keys, sees_memory
from icl_jax.blocks.rotary import Rotary, rotate, tempered
from icl_jax.blocks.views import Slots
from icl_jax.dims import Array
from icl_jax.kernels.attention import Sees, mask, of_rows

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


class Kernels(NamedTuple):
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
    gate_DAF: Array | None
    gate_bias_AF: Array | None


class Projected(NamedTuple):
    """A whole sequence in heads, and the kernels that put it there.

    Attributes:
      query_MAF: (M, A, F), of all T rows or of some, turned and scaled: scores are products with
        keys.
      key_TGF: (T, G, F).
      value_TGF: (T, G, F).
      kernels: of the layer.
    """

    query_MAF: Array
    key_TGF: Array
    value_TGF: Array
    kernels: Kernels


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
      output_gate: whether what each head of a row has mixed is multiplied by a sigmoid of the row's
        own features (Qwen3-Next). What a token passes on then depends on who reads it, so the layer
        is no sum that ``parts`` could open.
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
    output_gate: bool = False
    dtype: jnp.dtype = jnp.float32

    @property
    def has_memory(self) -> bool:
        """Keys and values of what is before, which nothing behind it changes."""
        return self.causal

    @property
    def is_sum(self) -> bool:
        """Over heads and tokens: ``parts`` opens it."""
        return not self.output_gate

    @property
    def counts_positions(self) -> bool:
        """Whether what a row sees, or how well, depends on position ids (rotary aside)."""
        return self.window is not None

    def weigh(self, scores_AMT: Array, sees_MT: Array) -> Array:
        """Weights (A, M, T) from scores; row m may use only the positions that it sees.

        A layer of your own defines this alone; it is then run with all weights in memory.
        """
        raise TypeError(f"{type(self).__name__} must define weigh(scores_AMT, sees_MT).")

    def mixed(self, query_MAF: Array, key_TGF: Array, value_TGF: Array, sees: Sees) -> Array:
        """Values (M, A, F) summed with the weights of what each row sees."""
        sees_MT = mask(sees, query_MAF.shape[0], key_TGF.shape[0])
        return weighted_sum(self.weigh(scores(query_MAF, key_TGF), sees_MT), value_TGF)

    def probed(
        self,
        query_MAF: Array,
        context: tuple[Array, Array],
        own: tuple[Array, Array],
        before: Sees,
    ) -> Array:
        """As ``mixed``, over what stands ``before`` each row (N) and a column of its own (M)."""
        (key_NGF, value_NGF), (own_key_MGF, own_value_MGF) = context, own
        rows, columns = query_MAF.shape[0], key_NGF.shape[0]
        before_MN = mask(before, rows, columns)
        weights_AMT = self.weigh(
            jnp.concatenate(
                [scores(query_MAF, key_NGF), row_scores(query_MAF, own_key_MGF)[..., None]], axis=-1
            ),
            jnp.concatenate([before_MN, jnp.ones((rows, 1), bool)], axis=-1),
        )
        own_value_MAF = per_query_head(own_value_MGF, self.num_heads)
        own_weight_MA1 = weights_AMT[..., -1].T[..., None].astype(own_value_MAF.dtype)
        return weighted_sum(weights_AMT[..., :-1], value_NGF) + own_weight_MA1 * own_value_MAF

    @property
    def reads_length(self) -> bool:
        """With longrope, whose rates are others for long sequences."""
        return self._short is not None

    @property
    def _short(self) -> int | None:
        """The longest sequence that turns by the rates of short ones; None where all do."""
        scaling = None if self.rotary is None else self.rotary.scaling
        if scaling is None or scaling.kind != "longrope":
            return None
        return scaling.original_length

    def __call__(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """See ``ContextualLayer``."""
        checks.rank(type(self).__name__, "stream_TD", stream_TD, 2, "(T, D)")
        checks.places(type(self).__name__, stream_TD.shape[0], None, present_T)
        query_TAF, key_TGF, value_TGF, kernels = self.projected(stream_TD, positions_T)
        mixed_TAF = self.mixed(query_TAF, key_TGF, value_TGF, self.sees(positions_T, present_T))
        return output(mixed_TAF, stream_TD, kernels)

    def empty_memory(self, slots: int, width: int, dtype: Any) -> KeyValues:
        """See ``ContextualLayer``: keys and values in ``slots``, in ``dtype``."""
        features = self.head_width or width // self.num_heads
        return empty_keys(slots, self.num_kv_heads or self.num_heads, features, dtype)

    def extend(
        self, reads: tuple[Array, ...], memories: tuple[Any, ...], slots: tuple[Slots, ...]
    ) -> tuple[tuple[Array, ...], tuple[KeyValues, ...]]:
        """See ``ContextualLayer``; all sequences go through the kernels as rows of one product."""
        if not self.causal:
            raise ValueError(
                f"{type(self).__name__}.extend: a layer that reads forwards, too, cannot be "
                "continued: what it said of earlier tokens would change. Use causal=True."
            )
        counts = [read_MD.shape[0] for read_MD in reads]
        starts = [sum(counts[:one]) for one in range(1, len(counts))]
        kernels = self._kernels(reads[0].shape[-1])
        places = [one.newest(count)[0] for one, count in zip(slots, counts, strict=True)]
        projected = self._project(jnp.concatenate(reads), jnp.concatenate(places), kernels)
        mixed, longer = [], []
        for query_MAF, key_MGF, value_MGF, memory, place in zip(
            *(jnp.split(rows, starts) for rows in projected), memories, slots, strict=True
        ):
            memory = append(memory, key_MGF, value_MGF, place)
            longer.append(memory)
            sees = sees_memory(
                place, query_MAF.shape[0], self.window, counts_positions=self.counts_positions
            )
            if not place.fresh:
                # A memory may be narrower than the arithmetic, which is in the input's dtype.
                key_MGF = memory.key_TGF.astype(key_MGF.dtype)
                value_MGF = memory.value_TGF.astype(value_MGF.dtype)
            mixed.append(self.mixed(query_MAF, key_MGF, value_MGF, sees))
        outputs_XD = output(jnp.concatenate(mixed), jnp.concatenate(reads), kernels)
        return tuple(jnp.split(outputs_XD, starts)), tuple(longer)

    def prefixes(
        self, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Array, Array]:
        """One pass: the probes share the context's keys and values, and each adds its own."""
        if not context_ND.shape[0]:
            return context_ND, self(probes_MD, positions_T=positions_M)
        longest = self._short
        if longest is not None and probes_MD.shape[0] > longest:
            raise NotImplementedError(
                f"{type(self).__name__}: prefixes of {probes_MD.shape[0]} tokens turn by other "
                f"rates than the whole (longrope, from original_length = {longest} on), so they "
                "share no work. Run each prefix by itself."
            )
        kernels = self._kernels(context_ND.shape[-1])
        positions_N = positions_M[:-1]
        query_NAF, *kept = self._project(context_ND, positions_N, kernels)
        own_query_MAF, *added = self._project(probes_MD, positions_M, kernels)
        context, own = (kept[0], kept[1]), (added[0], added[1])
        mixed_NAF = self.mixed(query_NAF, *context, self.sees(positions_N, None))
        before = Sees(
            # Probe i stands behind column i - 1.
            row_slots_M=np.arange(-1, context_ND.shape[0], dtype=np.int32),
            row_positions_M=positions_M,
            column_positions_T=positions_N,
            causal=True,
            window=self.window,
            itself=False,
        )
        mixed_MAF = self.probed(own_query_MAF, context, own, before)
        return output(mixed_NAF, context_ND, kernels), output(mixed_MAF, probes_MD, kernels)

    def suffixes(self, context_ND: Array, query_D: Array, *, positions_T: Array) -> Array:
        """One pass: row i is the query once more, and sees what stands from i on."""
        stream_TD = jnp.concatenate([context_ND, query_D[None, :]])
        length = stream_TD.shape[0]
        kernels = self._kernels(stream_TD.shape[-1])
        query_TAF, key_TGF, value_TGF = self._project(stream_TD, positions_T, kernels)
        # Counted from the right, "from i on" is "up to i".
        from_right_T = -np.arange(length, dtype=np.int32)
        sees = Sees(
            row_slots_M=from_right_T,
            column_slots_T=from_right_T,
            row_positions_M=jnp.broadcast_to(positions_T[-1:], (length,)),
            column_positions_T=positions_T,
            causal=True,
            window=self.window,
            itself=False,
        )
        queries_MAF = jnp.broadcast_to(query_TAF[-1:], query_TAF.shape)
        rows_MD = jnp.broadcast_to(query_D[None], stream_TD.shape)
        return output(self.mixed(queries_MAF, key_TGF, value_TGF, sees), rows_MD, kernels)

    def parts(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
        rows_M: Array | None = None,
    ) -> tuple[Array, Array]:
        """The layer's sum, opened: who is read how much, and what each passes on.

        Args:
          stream_TD, positions_T, present_T: as in ``__call__``.
          rows_M: (M,), the places of the rows that read; all of them, M = T, when left out.

        Returns:
          Weights (A, M, T), row t reading column j, and ``value_aj W_out,a`` (A, T, D):
          ``sum_aj weights[a, t, j] passed[a, j]``, plus the output bias, is the output at t.

        Raises:
          TypeError: an output gate, which makes what is passed on depend on the row.
        """
        if not self.is_sum:
            raise TypeError(
                f"{type(self).__name__}.parts: with output_gate=True what a token passes on "
                "depends on who reads it; the layer is not a sum over heads and tokens."
            )
        found = self.projected(stream_TD, positions_T, rows_M)
        sees = of_rows(self.sees(positions_T, present_T), rows_M)
        passed_ATD = jnp.einsum(
            "taf,afd->atd",
            per_query_head(found.value_TGF, self.num_heads),
            found.kernels.out_AFD.astype(found.value_TGF.dtype),
            precision=jax.lax.Precision.HIGHEST,
        )
        scores_AMT = self.scored(found, sees)
        return self.weigh(scores_AMT, mask(sees, *scores_AMT.shape[1:])), passed_ATD

    def raw_scores(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        rows_M: Array | None = None,
    ) -> Array:
        """What ``weigh`` is given, (A, M, T): before mask, cap, sinks and softmax."""
        sees = of_rows(self.sees(positions_T, None), rows_M)
        return self.scored(self.projected(stream_TD, positions_T, rows_M), sees)

    def scored(self, projected: Projected, sees: Sees) -> Array:
        """The same of what is in heads already, (A, M, T)."""
        del sees  # Of layers whose scores fall with the distance.
        return scores(projected.query_MAF, projected.key_TGF)

    def projected(
        self, stream_TD: Array, positions_T: Array | None, rows_M: Array | None = None
    ) -> Projected:
        """Keys and values of a whole sequence (T, D), and the queries of ``rows_M``, or of all.

        Raises:
          ValueError: a sequence of another rank.
        """
        checks.rank(type(self).__name__, "stream_TD", stream_TD, 2, "(T, D)")
        kernels = self._kernels(stream_TD.shape[-1])
        if positions_T is None:
            positions_T = jnp.arange(stream_TD.shape[0], dtype=jnp.int32)
        found = Projected(*self._project(stream_TD, positions_T, kernels), kernels)
        return found if rows_M is None else found._replace(query_MAF=found.query_MAF[rows_M])

    def sees(self, positions_T: Array | None, present_T: Array | None) -> Sees:
        """What the rows of a whole sequence see; absent ones still see themselves."""
        # A row that sees nothing has no softmax, and nobody reads it.
        if not self.counts_positions:
            positions_T = None
        return Sees(
            row_positions_M=positions_T,
            column_positions_T=positions_T,
            present_T=present_T,
            causal=self.causal,
            window=self.window,
        )

    @nn.compact
    def _kernels(self, width: int) -> Kernels:
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

        gate_DAF = None
        if self.output_gate:
            gate_DAF = self.param("gate", _INTO_HEADS, (width, *query), self.dtype)
        return Kernels(
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
            gate_DAF,
            bias("gate", query, self.use_bias and self.output_gate),
        )

    def _project(
        self, stream_TD: Array, positions_T: Array, kernels: Kernels
    ) -> tuple[Array, Array, Array]:
        """Queries (T, A, F), keys and values (T, G, F); the queries carry the scores' scale."""
        query_TAF = dense(stream_TD, kernels.query_DAF, kernels.query_bias_AF)
        key_TGF = dense(stream_TD, kernels.key_DGF, kernels.key_bias_GF)
        value_TGF = dense(stream_TD, kernels.value_DGF, kernels.value_bias_GF)
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


def output(mixed_MAF: Array, stream_MD: Array, kernels: Kernels) -> Array:
    """The output projection (M, D), of what the rows themselves let through."""
    if kernels.gate_DAF is not None:
        gate_MAF = dense(stream_MD, kernels.gate_DAF, kernels.gate_bias_AF)
        mixed_MAF = mixed_MAF * jax.nn.sigmoid(gate_MAF)
    return dense(mixed_MAF, kernels.out_AFD, kernels.out_bias_D, axes=2)
