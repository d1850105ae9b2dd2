"""The gated delta rule: a fading memory of keys and values, each new value written over the old.

Letters beside those of ``dims``: A heads of values and G of keys, U features of a value, C channels
of the short convolution (all queries, keys and values), I taps of it that look back.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.affine import dense
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.norms import root_mean_square
from icl_jax.blocks.views import Slots
from icl_jax.dims import Array
from icl_jax.patches.low_rank import accumulator

_LECUN = nn.initializers.lecun_normal()
_INTO_HEADS = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2)
)
_OUT_OF_HEADS = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2
)

#: Added to the squared length of a query or key before it is divided by its length.
LENGTH_EPSILON = 1e-6

HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DeltaMemory:
    """What is remembered of a sequence, however long it is.

    Attributes:
      recent_IC: (I, C), the channels of the last tokens before their convolution; zeros at first.
      state_AFU: (A, F, U), in float32 or wider.
    """

    recent_IC: Array
    state_AFU: Array


class _Tokens(NamedTuple):
    """What each token (or probe) does to the state, and asks of it; float32 or wider."""

    query_TAF: Array
    key_TAF: Array
    value_TAU: Array
    write_TA: Array
    keep_TA: Array


class _Kernels(NamedTuple):
    into_DC: Array
    taps_CX: Array
    gate_DAU: Array
    write_DA: Array
    fade_DA: Array
    rate_A: Array
    fade_bias_A: Array
    scale_U: Array
    out_AUD: Array


class GatedDelta(ContextualLayer):
    """A state ``S`` (F, U) per head that fades, and that each token corrects where its key points.

    With ``q``, ``k``, ``v`` of a token behind a short causal convolution and a SiLU, ``q`` and
    ``k`` of length one, ``q`` over sqrt(F), ``write = sigmoid(x W_b)`` and
    ``keep = exp(-rate softplus(x W_a + b))``:

        S' = keep S + outer(k, write (v - k^T keep S)),   A(S)_t = norm(q^T S') silu(x W_z) W_out

    ``norm`` is a root-mean-square norm of each head. Yang et al. (arXiv 2412.06464), as in
    Qwen3-Next. An absent position leaves state and convolution as they are. The suffixes of a
    context cost one run each: the convolution of their first tokens is another one.

    Attributes:
      num_heads: A, heads of values.
      num_key_heads: G, of queries and keys, each read by A / G heads of values; A when left out.
      key_width: F, features of a query or key.
      value_width: U, of a value.
      taps: tokens that the convolution sees, the own one included.
      norm_epsilon: of the norm, in squared units of what is read from the state.
      dtype: of the parameters; the arithmetic is in the dtype of the input, that of the state in
        float32 or wider.
    """

    num_heads: int = 1
    num_key_heads: int | None = None
    key_width: int = 8
    value_width: int = 8
    taps: int = 4
    norm_epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    def __call__(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """See ``ContextualLayer``."""
        checks.rank("GatedDelta", "stream_TD", stream_TD, 2, "(T, D)")
        checks.places("GatedDelta", stream_TD.shape[0], None, present_T)
        kernels = self._kernels(stream_TD.shape[-1])
        return self._run(kernels, stream_TD, present_T, None)[0]

    @property
    def has_memory(self) -> bool:
        """The state, and the tokens that the convolution still sees."""
        return True

    def empty_memory(self, slots: int, width: int, dtype: Any) -> DeltaMemory:
        """See ``ContextualLayer``: of one size, however many tokens it has seen."""
        del slots, width
        state = (self.num_heads, self.key_width, self.value_width)
        return DeltaMemory(
            jnp.zeros((self.taps - 1, self._channels), dtype), jnp.zeros(state, accumulator(dtype))
        )

    def extend(
        self, reads: tuple[Array, ...], memories: tuple[Any, ...], slots: tuple[Slots, ...]
    ) -> tuple[tuple[Array, ...], tuple[DeltaMemory, ...]]:
        """See ``ContextualLayer``."""
        kernels = self._kernels(reads[0].shape[-1])
        mixed, longer = [], []
        for read_MD, memory, place in zip(reads, memories, slots, strict=True):
            present_M = place.newest(read_MD.shape[0])[1]
            mixed_MD, memory = self._run(kernels, read_MD, present_M, memory)
            mixed.append(mixed_MD)
            longer.append(memory)
        return tuple(mixed), tuple(longer)

    def prefixes(
        self, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Array, Array]:
        """One scan: probe i takes one step from the state after ``c_1..c_i``, which goes on."""
        count, num_probes = context_ND.shape[0], probes_MD.shape[0]
        if not count:
            return context_ND, self(probes_MD, positions_T=positions_M)
        kernels = self._kernels(context_ND.shape[-1])
        rows_NC, rows_MC = dense(context_ND, kernels.into_DC), dense(probes_MD, kernels.into_DC)
        recent_IC = jnp.zeros((self.taps - 1, self._channels), rows_NC.dtype)
        windows_NXC, _ = _windows(rows_NC, None, recent_IC)
        # What stands before probe i stands before token i, and before the one that would follow.
        before_XC = jnp.concatenate([recent_IC, rows_NC])
        windows_MXC = _joined(_before(before_XC, num_probes, self.taps - 1), rows_MC)
        context = self._tokens(kernels, context_ND, windows_NXC)
        probes = self._tokens(kernels, probes_MD, windows_MXC)

        def step(state_AFU: Array, inputs: tuple[_Tokens, _Tokens]) -> tuple[Array, Any]:
            token, probe = inputs
            probed_AU = _read(_stepped(state_AFU, probe), probe)
            state_AFU = _stepped(state_AFU, token)
            return state_AFU, (_read(state_AFU, token), probed_AU)

        first = jax.tree.map(lambda rows_M: rows_M[:count], probes)
        last = jax.tree.map(lambda rows_M: rows_M[count], probes)
        state_AFU, (read_NAU, probed_NAU) = jax.lax.scan(step, _no_state(context), (context, first))
        last_AU = _read(_stepped(state_AFU, last), last)
        probed_MAU = jnp.concatenate([probed_NAU, last_AU[None]])
        return (
            self._out(kernels, context_ND, read_NAU),
            self._out(kernels, probes_MD, probed_MAU),
        )

    @property
    def _groups(self) -> int:
        return self.num_key_heads or self.num_heads

    @property
    def _channels(self) -> int:
        """Queries, keys and values of all heads, one after the other."""
        return 2 * self._groups * self.key_width + self.num_heads * self.value_width

    def _run(
        self,
        kernels: _Kernels,
        stream_TD: Array,
        present_T: Array | None,
        memory: DeltaMemory | None,
    ) -> tuple[Array, DeltaMemory]:
        """The output (T, D) and what is remembered, from a memory or from nothing."""
        rows_TC = dense(stream_TD, kernels.into_DC)
        recent_IC = jnp.zeros((self.taps - 1, rows_TC.shape[1]), rows_TC.dtype)
        if memory is not None:
            recent_IC = memory.recent_IC.astype(rows_TC.dtype)
        windows_TXC, recent_IC = _windows(rows_TC, present_T, recent_IC)
        tokens = self._tokens(kernels, stream_TD, windows_TXC)
        start_AFU = _no_state(tokens)
        if memory is not None:
            start_AFU = start_AFU + memory.state_AFU.astype(start_AFU.dtype)
        if present_T is None:
            present_T = jnp.ones(stream_TD.shape[0], bool)

        def step(state_AFU: Array, inputs: tuple[_Tokens, Array]) -> tuple[Array, Array]:
            token, present = inputs
            state_AFU = jnp.where(present, _stepped(state_AFU, token), state_AFU)
            return state_AFU, _read(state_AFU, token)

        state_AFU, read_TAU = jax.lax.scan(step, start_AFU, (tokens, present_T))
        if memory is not None:
            recent_IC = recent_IC.astype(memory.recent_IC.dtype)
            state_AFU = state_AFU.astype(memory.state_AFU.dtype)
        return self._out(kernels, stream_TD, read_TAU), DeltaMemory(recent_IC, state_AFU)

    def _tokens(self, kernels: _Kernels, stream_TD: Array, windows_TXC: Array) -> _Tokens:
        """What the tokens do, from their own vectors and what their convolution sees."""
        length, wide = stream_TD.shape[0], accumulator(stream_TD.dtype)
        keys, groups = self._groups * self.key_width, self._groups
        taps_CX = kernels.taps_CX.astype(windows_TXC.dtype)
        mixed_TC = jnp.einsum("txc,cx->tc", windows_TXC, taps_CX, precision=HIGHEST)
        mixed_TC = jax.nn.silu(mixed_TC).astype(wide)

        def heads(rows_TC: Array) -> Array:
            rows_TGF = rows_TC.reshape(length, groups, self.key_width)
            square_TG1 = jnp.sum(rows_TGF**2, axis=-1, keepdims=True)
            unit_TGF = rows_TGF / jnp.sqrt(square_TG1 + LENGTH_EPSILON)
            return jnp.repeat(unit_TGF, self.num_heads // groups, axis=1)

        fade_TA = dense(stream_TD, kernels.fade_DA).astype(wide)
        fade_TA = jax.nn.softplus(fade_TA + kernels.fade_bias_A.astype(wide)[None])
        return _Tokens(
            heads(mixed_TC[:, :keys]) * jnp.asarray(1 / math.sqrt(self.key_width), wide),
            heads(mixed_TC[:, keys : 2 * keys]),
            mixed_TC[:, 2 * keys :].reshape(length, self.num_heads, self.value_width),
            jax.nn.sigmoid(dense(stream_TD, kernels.write_DA)).astype(wide),
            jnp.exp(-jnp.exp(kernels.rate_A.astype(wide))[None] * fade_TA),
        )

    def _out(self, kernels: _Kernels, stream_TD: Array, read_TAU: Array) -> Array:
        """What was read (T, A, U), normed and gated by the token itself, as output (T, D)."""
        normed_TAU = read_TAU / root_mean_square(read_TAU, self.norm_epsilon)
        normed_TAU = normed_TAU * kernels.scale_U.astype(read_TAU.dtype)[None, None]
        gate_TAU = jax.nn.silu(dense(stream_TD, kernels.gate_DAU).astype(read_TAU.dtype))
        gated_TAU = (normed_TAU * gate_TAU).astype(stream_TD.dtype)
        return dense(gated_TAU, kernels.out_AUD, axes=2)

    @nn.compact
    def _kernels(self, width: int) -> _Kernels:
        for name in ("num_heads", "key_width", "value_width", "taps"):
            checks.positive_int("GatedDelta", name, getattr(self, name))
        checks.positive_int("GatedDelta", "num_key_heads", self._groups)
        if self.num_heads % self._groups:
            raise ValueError(
                f"GatedDelta: num_key_heads={self._groups} does not divide num_heads="
                f"{self.num_heads}."
            )
        heads, values, start = self.num_heads, (self.num_heads, self.value_width), nn.initializers
        keys = (self._groups, self.key_width)
        into = [
            self.param(name, _INTO_HEADS, (width, *shape), self.dtype).reshape(width, -1)
            for name, shape in (("query", keys), ("key", keys), ("value", values))
        ]
        return _Kernels(
            jnp.concatenate(into, axis=1),
            self.param("taps", start.normal(0.5), (self._channels, self.taps), self.dtype),
            self.param("gate", _INTO_HEADS, (width, *values), self.dtype),
            self.param("write", _LECUN, (width, heads), self.dtype),
            self.param("fade", _LECUN, (width, heads), self.dtype),
            self.param("rate", _spread_rates, (heads,), self.dtype),
            self.param("fade_bias", start.ones, (heads,), self.dtype),
            self.param("scale", start.ones, (self.value_width,), self.dtype),
            self.param("out", _OUT_OF_HEADS, (*values, width), self.dtype),
        )


def _spread_rates(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Logs of rates from 0.01 to 1: heads that remember a hundred tokens, down to one."""
    del key  # Deterministic: the random part of the layer is in its kernels.
    return jnp.linspace(math.log(0.01), 0.0, shape[0], dtype=dtype)


def _before(rows_XC: Array, count: int, taps: int) -> Array:
    """The ``taps`` rows from row i on, for ``count`` rows i: (count, I, C)."""
    if not taps:
        return jnp.zeros((count, 0, rows_XC.shape[1]), rows_XC.dtype)
    return jnp.stack([rows_XC[tap : tap + count] for tap in range(taps)], axis=1)


def _windows(rows_TC: Array, present_T: Array | None, recent_IC: Array) -> tuple[Array, Array]:
    """What the convolution of each token sees, itself last, and what those to come still see.

    Absent tokens are seen by nobody but themselves.

    Args:
      rows_TC: (T, C).
      present_T: (T,), or None where all are there.
      recent_IC: (I, C), the rows before.

    Returns:
      (T, I + 1, C) and (I, C).
    """
    back, length = recent_IC.shape[0], rows_TC.shape[0]
    all_XC = jnp.concatenate([recent_IC, rows_TC])
    if present_T is None or not back:
        before_TIC, last_IC = _before(all_XC, length, back), all_XC[length:]
    else:
        present_T = jnp.asarray(present_T, bool)
        there_X = jnp.concatenate([jnp.ones(back, bool), present_T])
        rank_X = jnp.cumsum(there_X, dtype=jnp.int32) - 1
        steps_X, steps_I = (jnp.arange(size, dtype=jnp.int32) for size in (length + back, back))
        # The row of each rank; those that are not there fall off the end.
        place_X = jnp.where(there_X, rank_X, length + back)
        row_X = jnp.zeros(length + back, jnp.int32).at[place_X].set(steps_X, mode="drop")
        behind_T = rank_X[back:] - present_T.astype(jnp.int32)
        first_T = behind_T - (back - 1)
        before_TIC = all_XC[row_X[first_T[:, None] + steps_I[None]]]
        last_IC = all_XC[row_X[rank_X[-1] - (back - 1) + steps_I]]
    return _joined(before_TIC, rows_TC), last_IC


def _joined(before_TIC: Array, rows_TC: Array) -> Array:
    """Windows (T, I + 1, C): what stands before, and the row itself."""
    return jnp.concatenate([before_TIC, rows_TC[:, None]], axis=1)


def _no_state(tokens: _Tokens) -> Array:
    """Zeros (A, F, U), made of the input: under shard_map a loop starts where it runs."""
    return jnp.einsum("taf,tau->afu", tokens.key_TAF[:0], tokens.value_TAU[:0], precision=HIGHEST)


def _stepped(state_AFU: Array, token: _Tokens) -> Array:
    """The state after a token (one row of ``_Tokens``)."""
    _, key_AF, value_AU, write_A, keep_A = token
    faded_AFU = keep_A[:, None, None] * state_AFU
    known_AU = jnp.einsum("af,afu->au", key_AF, faded_AFU, precision=HIGHEST)
    change_AU = write_A[:, None] * (value_AU - known_AU)
    return faded_AFU + key_AF[:, :, None] * change_AU[:, None, :]


def _read(state_AFU: Array, token: _Tokens) -> Array:
    """What a token asks of the state, (A, U)."""
    return jnp.einsum("af,afu->au", token.query_TAF, state_AFU, precision=HIGHEST)
