"""Layers that read a context through a state: a diagonal state space and a gated cell.

For them, "the context removed" is a scan that never saw it, and every prefix is a state that the
scan went through anyway.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.affine import dense
from icl_jax.blocks.carried import CarriedState
from icl_jax.dims import Array


class StateSpace(CarriedState):
    """A diagonal linear recurrence, run as an associative scan.

    ``s_t = decay * s_{t-1} + x_t W_in``, ``A(S)_t = s_t W_out + skip * x_t``, with one real decay
    in (0, 1) per state channel (the diagonal, input-independent case of Gu et al., arXiv
    2111.00396; Orvieto et al., arXiv 2303.06349).

    Attributes:
      state_width: number of state channels; the model width when left out.
      slowest: decay of the slowest channel at initialisation; the fastest starts at 0.5.
      dtype: of the parameters; the arithmetic is in the dtype of the input.

    Examples:
      >>> layer = StateSpace(state_width=4)
      >>> stream = jax.random.normal(jax.random.key(0), (6, 8))
      >>> variables = layer.init(jax.random.key(1), stream)
      >>> layer.apply(variables, stream).shape
      (6, 8)
      >>> layer.empty_memory(1000, 8, jnp.float32).shape  # all that is kept of 1,000 tokens
      (4,)
    """

    state_width: int | None = None
    slowest: float = 0.99
    dtype: jnp.dtype = jnp.float32

    def empty_memory(self, slots: int, width: int, dtype: Any) -> Array:
        """See ``ContextualLayer``: the state (S,), however many tokens it has seen."""
        del slots
        return jnp.zeros(self.state_width or width, dtype)

    def _run(
        self, parameters: Any, stream_TD: Array, present_T: Array | None, memory: Any
    ) -> tuple[Array, Array]:
        return _state_space(parameters, stream_TD, present_T, memory)

    def prefixes(
        self, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Array, Array]:
        """One scan: probe i takes one step from the state after ``c_1..c_i``."""
        decay_S, into_DS, out_SD, skip_D = self._parameters(context_ND)
        drive_NS = dense(context_ND, into_DS)
        states_NS = _scan(jnp.broadcast_to(decay_S, drive_NS.shape), drive_NS)
        before_MS = jnp.concatenate([_no_state(drive_NS), states_NS])
        stepped_MS = decay_S * before_MS + dense(probes_MD, into_DS)
        return (
            dense(states_NS, out_SD) + context_ND * skip_D,
            dense(stepped_MS, out_SD) + probes_MD * skip_D,
        )

    def suffixes(self, context_ND: Array, query_D: Array, *, positions_T: Array) -> Array:
        """One scan from the right: a token's share of the last state is its drive, decayed.

        Subtracting prefix states from the last one would cancel; adding shares from the right does
        not.
        """
        decay_1S, into_DS, out_SD, skip_1D = self._parameters(context_ND)
        drive_NS = dense(context_ND, into_DS)
        steps_left_N = jnp.arange(context_ND.shape[0] - 1, -1, -1, dtype=decay_1S.dtype)
        shares_NS = decay_1S ** steps_left_N[:, None] * drive_NS
        from_right_NS = jax.lax.associative_scan(jnp.add, shares_NS, reverse=True)
        before_MS = jnp.concatenate([from_right_NS, _no_state(drive_NS)])
        stepped_MS = decay_1S * before_MS + dense(query_D[None, :], into_DS)
        return dense(stepped_MS, out_SD) + query_D[None, :] * skip_1D

    @nn.compact
    def _parameters(self, stream_TD: Array) -> tuple[Array, Array, Array, Array]:
        """Decay (1, S), input kernel (D, S), output kernel (S, D) and skip (1, D)."""
        width, states = stream_TD.shape[-1], self.state_width or stream_TD.shape[-1]
        checks.positive_int("StateSpace", "state_width", states)
        if not 0.5 <= self.slowest < 1:
            raise ValueError(
                f"StateSpace: slowest must lie in [0.5, 1), got {self.slowest!r}: it is the decay "
                "of the slowest channel at initialisation."
            )
        lecun = nn.initializers.lecun_normal()
        logit_S = self.param("decay_logit", self._spread_decays, (states,), self.dtype)
        decay_S = jax.nn.sigmoid(logit_S.astype(stream_TD.dtype))
        into_DS = self.param("in", lecun, (width, states), self.dtype)
        out_SD = self.param("out", lecun, (states, width), self.dtype)
        skip_D = self.param("skip", nn.initializers.ones, (width,), self.dtype)
        return decay_S[None], into_DS, out_SD, skip_D.astype(stream_TD.dtype)[None]

    def _spread_decays(self, key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        """Logits of decays from 0.5 to ``slowest``, evenly spaced in log(1 - decay)."""
        del key  # Deterministic: the random part of the layer is in its kernels.
        slowest = jnp.log(1 - jnp.asarray(self.slowest, dtype))
        decays = 1 - jnp.exp(jnp.linspace(jnp.log(jnp.asarray(0.5, dtype)), slowest, shape[0]))
        return jnp.log(decays / (1 - decays)).astype(dtype)


def _state_space(
    parameters: tuple[Array, Array, Array, Array],
    stream_TD: Array,
    present_T: Array | None,
    state_S: Array | None,
) -> tuple[Array, Array]:
    """The output (T, D) and the last state (S,), from a state or from zero."""
    decay_1S, into_DS, out_SD, skip_1D = parameters
    drive_TS = dense(stream_TD, into_DS)
    decay_TS = jnp.broadcast_to(decay_1S, drive_TS.shape)
    if present_T is not None:
        drive_TS = jnp.where(present_T[:, None], drive_TS, jnp.zeros_like(drive_TS))
        decay_TS = jnp.where(present_T[:, None], decay_TS, jnp.ones_like(decay_TS))
    if state_S is not None:  # It stands before the first token, like a token that is all drive.
        drive_TS = jnp.concatenate([state_S[None].astype(drive_TS.dtype), drive_TS])
        decay_TS = jnp.concatenate([jnp.ones_like(decay_1S), decay_TS])
    states_TS = _scan(decay_TS, drive_TS)
    if state_S is not None:
        states_TS = states_TS[1:]
    return dense(states_TS, out_SD) + stream_TD * skip_1D, states_TS[-1]


def _no_state(states_NS: Array) -> Array:
    """The state (1, S) before the first token; there may be no token at all."""
    return jnp.zeros((1, states_NS.shape[1]), states_NS.dtype)


def _scan(decay_TS: Array, drive_TS: Array) -> Array:
    """All states ``s_t = decay_t s_{t-1} + drive_t`` (T, S), from ``s_0 = 0``, in log T steps."""

    def join(earlier: tuple[Array, Array], later: tuple[Array, Array]) -> tuple[Array, Array]:
        return earlier[0] * later[0], later[0] * earlier[1] + later[1]

    return jax.lax.associative_scan(join, (decay_TS, drive_TS))[1]


class GatedRecurrent(CarriedState):
    """A gated recurrent unit (Cho et al. 2014, arXiv 1406.1078) and an output projection.

    ``reset, keep = sigmoid(x W + s U + b)``, ``new = tanh(x W_n + b_n + reset * (s U_n))``,
    ``s' = keep * s + (1 - keep) * new``, ``A(S)_t = s_t W_out``. The suffixes of a context cost one
    run each: a nonlinear state cannot be split after the fact.

    Attributes:
      state_width: number of state channels; the model width when left out.
      dtype: of the parameters; the arithmetic is in the dtype of the input.

    Examples:
      >>> layer = GatedRecurrent(state_width=4)
      >>> stream = jax.random.normal(jax.random.key(0), (6, 8))
      >>> variables = layer.init(jax.random.key(1), stream)
      >>> moved = layer.apply(variables, stream.at[2].add(1.0)) - layer.apply(variables, stream)
      >>> (jnp.abs(moved).max(1) > 0).tolist()  # read by itself and whatever follows
      [False, False, True, True, True, True]
    """

    state_width: int | None = None
    dtype: jnp.dtype = jnp.float32

    def empty_memory(self, slots: int, width: int, dtype: Any) -> Array:
        """See ``ContextualLayer``: the state (S,), however many tokens it has seen."""
        del slots
        return jnp.zeros(self.state_width or width, dtype)

    def _run(
        self, parameters: Any, stream_TD: Array, present_T: Array | None, memory: Any
    ) -> tuple[Array, Array]:
        states_TS = _gated_states(parameters, stream_TD, present_T, memory)
        return dense(states_TS, parameters.out_SD), states_TS[-1]

    def prefixes(
        self, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Array, Array]:
        """One scan: probe i takes one step from the state after ``c_1..c_i``."""
        kernels = self._kernels(context_ND.shape[-1])
        states_NS = _gated_states(kernels, context_ND, None)
        before_MS = jnp.concatenate([_no_state(states_NS), states_NS])
        drive_MG = dense(probes_MD, kernels.into_DG, kernels.bias_G)
        stepped_MS = _gated_step(kernels, before_MS, drive_MG)
        return dense(states_NS, kernels.out_SD), dense(stepped_MS, kernels.out_SD)

    @nn.compact
    def _kernels(self, width: int) -> "_GatedKernels":
        states = self.state_width or width
        checks.positive_int("GatedRecurrent", "state_width", states)
        lecun = nn.initializers.lecun_normal()
        return _GatedKernels(
            self.param("in", lecun, (width, 3 * states), self.dtype),
            self.param("recurrent", lecun, (states, 3 * states), self.dtype),
            self.param("bias", nn.initializers.zeros, (3 * states,), self.dtype),
            self.param("out", lecun, (states, width), self.dtype),
        )


class _GatedKernels(NamedTuple):
    """Kernels of the three gates side by side, G = 3 S: reset, keep, new."""

    into_DG: Array
    recurrent_SG: Array
    bias_G: Array
    out_SD: Array


def _gated_step(kernels: _GatedKernels, state: Array, drive: Array) -> Array:
    """One step from ``state`` (..., S) with ``drive = x W + b`` (..., G)."""
    reset_in, keep_in, new_in = jnp.split(drive, 3, axis=-1)
    reset_s, keep_s, new_s = jnp.split(dense(state, kernels.recurrent_SG), 3, axis=-1)
    keep = jax.nn.sigmoid(keep_in + keep_s)
    new = jnp.tanh(new_in + jax.nn.sigmoid(reset_in + reset_s) * new_s)
    return keep * state + (1 - keep) * new


def _gated_states(
    kernels: _GatedKernels,
    stream_TD: Array,
    present_T: Array | None,
    start_S: Array | None = None,
) -> Array:
    """All states (T, S) of the cell, from a state or from zero."""
    drive_TG = dense(stream_TD, kernels.into_DG, kernels.bias_G)
    if present_T is None:
        present_T = jnp.ones(stream_TD.shape[0], bool)

    def step(state_S: Array, inputs: tuple[Array, Array]) -> tuple[Array, Array]:
        drive_G, present = inputs
        stepped_S = jnp.where(present, _gated_step(kernels, state_S, drive_G), state_S)
        return stepped_S, stepped_S

    if start_S is None:
        # Zero, made of the input: under shard_map a loop has to start on the devices it runs on.
        start_S = jnp.sum(drive_TG[:0, : kernels.out_SD.shape[0]], axis=0)
    return jax.lax.scan(step, start_S, (drive_TG, present_T))[1]
