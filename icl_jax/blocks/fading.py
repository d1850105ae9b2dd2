"""Layers whose state is a matrix per head that fades, behind a short causal convolution.

What stays of the gated delta rule and of a selective state space when the rule of a step is taken
out: how tokens are convolved, how the state is carried, and what is remembered. Letters beside
those of ``dims``: A heads of values and G of keys, U features of a value, C channels of the
convolution (all queries, keys and values), I taps of it that look back.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.blocks.carried import CarriedState
from icl_jax.dims import Array, accumulator

HIGHEST = jax.lax.Precision.HIGHEST


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FadingMemory:
    """What is remembered of a sequence, however long it is.

    Attributes:
      recent_IC: (I, C), the channels of the last tokens before their convolution; zeros at first.
      state_AFU: (A, F, U), in float32 or wider.
    """

    recent_IC: Array
    state_AFU: Array


class FadingState(CarriedState):
    """The base of these layers; a subclass says what a token does to the state, and reads of it.

    A subclass has a record of what each token does (a NamedTuple of arrays (T, ...), among them
    ``key_TAF`` and ``value_TAU``) and defines ``_kernels``, ``_channels_of``, ``_tokens``,
    ``_stepped``, ``_read`` and ``_out``. The suffixes of a context cost one run each: the
    convolution of their first tokens is another one.

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

    def empty_memory(self, slots: int, width: int, dtype: Any) -> FadingMemory:
        """See ``ContextualLayer``: of one size, however many tokens it has seen."""
        del slots, width
        state = (self.num_heads, self.key_width, self.value_width)
        return FadingMemory(
            jnp.zeros((self.taps - 1, self._channels), dtype), jnp.zeros(state, accumulator(dtype))
        )

    def prefixes(
        self, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Array, Array]:
        """One scan: probe i takes one step from the state after ``c_1..c_i``, which goes on."""
        count, num_probes = context_ND.shape[0], probes_MD.shape[0]
        if not count:
            probed_MD = self(probes_MD, positions_T=positions_M)
            return probed_MD[:0], probed_MD
        kernels = self._kernels(context_ND.shape[-1])
        rows_NC = self._channels_of(kernels, context_ND)
        rows_MC = self._channels_of(kernels, probes_MD)
        recent_IC = jnp.zeros((self.taps - 1, self._channels), rows_NC.dtype)
        windows_NXC, _ = _windows(rows_NC, None, recent_IC)
        # What stands before probe i stands before token i, and before the one that would follow.
        before_XC = jnp.concatenate([recent_IC, rows_NC])
        windows_MXC = _joined(_before(before_XC, num_probes, self.taps - 1), rows_MC)
        context = self._tokens(kernels, context_ND, windows_NXC)
        probes = self._tokens(kernels, probes_MD, windows_MXC)

        def step(state_AFU: Array, inputs: tuple[Any, Any]) -> tuple[Array, Any]:
            token, probe = inputs
            probed_AU = self._read(self._stepped(state_AFU, probe), probe)
            state_AFU = self._stepped(state_AFU, token)
            return state_AFU, (self._read(state_AFU, token), probed_AU)

        first = jax.tree.map(lambda rows_M: rows_M[:count], probes)
        last = jax.tree.map(lambda rows_M: rows_M[count], probes)
        state_AFU, (read_NAU, probed_NAU) = jax.lax.scan(step, _no_state(context), (context, first))
        last_AU = self._read(self._stepped(state_AFU, last), last)
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
        self, kernels: Any, stream_TD: Array, present_T: Array | None, memory: FadingMemory | None
    ) -> tuple[Array, FadingMemory]:
        """The output of the tokens and what is remembered, from a memory or from nothing."""
        rows_TC = self._channels_of(kernels, stream_TD)
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

        def step(state_AFU: Array, inputs: tuple[Any, Array]) -> tuple[Array, Array]:
            token, present = inputs
            state_AFU = jnp.where(present, self._stepped(state_AFU, token), state_AFU)
            return state_AFU, self._read(state_AFU, token)

        state_AFU, read_TAU = jax.lax.scan(step, start_AFU, (tokens, present_T))
        if memory is not None:
            recent_IC = recent_IC.astype(memory.recent_IC.dtype)
            state_AFU = state_AFU.astype(memory.state_AFU.dtype)
        return self._out(kernels, stream_TD, read_TAU), FadingMemory(recent_IC, state_AFU)

    def _channels_of(self, kernels: Any, stream_TD: Array) -> Array:
        """What is convolved, (T, C)."""
        raise TypeError(f"{type(self).__name__} must define _channels_of(kernels, stream_TD).")

    def _tokens(self, kernels: Any, stream_TD: Array, windows_TXC: Array) -> Any:
        """What the tokens do, from their own vectors and what their convolution sees."""
        raise TypeError(f"{type(self).__name__} must define _tokens(kernels, stream_TD, windows).")

    def _stepped(self, state_AFU: Array, token: Any) -> Array:
        """The state after a token (one row of what ``_tokens`` gives)."""
        raise TypeError(f"{type(self).__name__} must define _stepped(state_AFU, token).")

    def _read(self, state_AFU: Array, token: Any) -> Array:
        """What a token asks of the state, (A, U)."""
        raise TypeError(f"{type(self).__name__} must define _read(state_AFU, token).")

    def _out(self, kernels: Any, stream_TD: Array, read_TAU: Array) -> Array:
        """The layer's output, of what the tokens are and what they have read (T, A, U)."""
        raise TypeError(f"{type(self).__name__} must define _out(kernels, stream_TD, read_TAU).")

    def _check_sizes(self) -> None:
        name = type(self).__name__
        for size in ("num_heads", "key_width", "value_width", "taps"):
            checks.positive_int(name, size, getattr(self, size))
        checks.positive_int(name, "num_key_heads", self._groups)
        if self.num_heads % self._groups:
            raise ValueError(
                f"{name}: num_key_heads={self._groups} does not divide num_heads={self.num_heads}."
            )


def convolved(windows_TXC: Array, taps_CX: Array, bias_C: Array | None = None) -> Array:
    """A SiLU of the convolution (T, C), in float32 or wider."""
    mixed_TC = jnp.einsum(
        "txc,cx->tc", windows_TXC, taps_CX.astype(windows_TXC.dtype), precision=HIGHEST
    )
    if bias_C is not None:
        mixed_TC = mixed_TC + bias_C.astype(mixed_TC.dtype)[None]
    return jax.nn.silu(mixed_TC).astype(accumulator(windows_TXC.dtype))


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


def _no_state(tokens: Any) -> Array:
    """Zeros (A, F, U), made of the input: under shard_map a loop starts where it runs."""
    return jnp.einsum("taf,tau->afu", tokens.key_TAF[:0], tokens.value_TAU[:0], precision=HIGHEST)
