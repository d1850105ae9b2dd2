"""The selective state space of Mamba 2: each token says how far the state fades, and what enters.

Letters as in ``fading``, and E = A U, the width of what the layer gives.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax.blocks.affine import dense
from icl_jax.blocks.fading import HIGHEST, FadingState, convolved
from icl_jax.blocks.norms import root_mean_square
from icl_jax.dims import Array, accumulator

#: Steps at initialisation, of the slowest and the fastest head.
STEPS = (0.001, 0.1)


class _Tokens(NamedTuple):
    """What each token (or probe) does to the state, and asks of it; float32 or wider."""

    query_TAF: Array
    key_TAF: Array
    value_TAU: Array  # Times the step, as it enters the state.
    keep_TA: Array
    past_TAU: Array  # What goes past the state.


class _Kernels(NamedTuple):
    into_DP: Array
    into_bias_P: Array | None
    taps_CX: Array
    taps_bias_C: Array | None
    rate_A: Array
    step_bias_A: Array
    skip_A: Array
    scale_E: Array


class SelectiveStateSpace(FadingState):
    """A state ``S`` (F, U) per head that fades by a step of each token's own.

    With ``v``, ``k``, ``q`` of a token behind a short causal convolution and a SiLU, and
    ``step = clip(softplus(x W_s + b), *step_limits)``:

        S' = exp(-rate step) S + outer(k, step v),   y = q^T S' + skip v
        A(S)_t = norm(y silu(x W_z)) scale

    ``norm`` is a root-mean-square norm over the heads that share a key. The output has width
    E = A U, and the kernel that leads back to the stream is no part of the layer: in a block with
    the wiring ``mixer`` and ``Dense(hidden_widths=(), width=D)`` it is the MLP, whose weights the
    context changes. Dao and Gu (arXiv 2405.21060): ``v``, ``k``, ``q`` are their x, B, C, run one
    token after the other (their chunks give the same numbers). Attributes and what all such layers
    share: ``FadingState``.

    Attributes:
      use_bias: whether the kernel that reads the stream has a bias.
      taps_bias: whether the convolution has one.
      step_limits: the least and the longest step.

    Examples:
      >>> layer = SelectiveStateSpace(num_heads=2, key_width=4, value_width=8)
      >>> block = Block(layer, Dense(hidden_widths=(), width=8), "mixer", norm="rms")
      >>> stream = jax.random.normal(jax.random.key(0), (6, 8))
      >>> variables = block.init(jax.random.key(1), stream)
      >>> block.apply(variables, stream).shape
      (6, 8)
      >>> variables["params"]["mlp"]["down"]["kernel"].shape  # (E, D), what the context changes
      (16, 8)
    """

    use_bias: bool = False
    taps_bias: bool = True
    step_limits: tuple[float, float] = (0.0, math.inf)

    def _channels_of(self, kernels: _Kernels, stream_TD: Array) -> Array:
        inner = slice(self._inner, self._inner + self._channels)
        return _into(kernels, stream_TD, inner)

    def _tokens(self, kernels: _Kernels, stream_TD: Array, windows_TXC: Array) -> _Tokens:
        length, wide = stream_TD.shape[0], accumulator(stream_TD.dtype)
        groups, inner = self._groups, self._inner
        mixed_TC = convolved(windows_TXC, kernels.taps_CX, kernels.taps_bias_C)
        value_TAU = mixed_TC[:, :inner].reshape(length, self.num_heads, self.value_width)
        key_TGF, query_TGF = (
            rows.reshape(length, groups, self.key_width)
            for rows in jnp.split(mixed_TC[:, inner:], 2, axis=1)
        )
        step_TA = _into(kernels, stream_TD, slice(inner + self._channels, None)).astype(wide)
        step_TA = jax.nn.softplus(step_TA + kernels.step_bias_A.astype(wide)[None])
        step_TA = jnp.clip(step_TA, *(jnp.asarray(limit, wide) for limit in self.step_limits))
        per_group = self.num_heads // groups
        return _Tokens(
            jnp.repeat(query_TGF, per_group, axis=1),
            jnp.repeat(key_TGF, per_group, axis=1),
            step_TA[:, :, None] * value_TAU,
            jnp.exp(-jnp.exp(kernels.rate_A.astype(wide))[None] * step_TA),
            kernels.skip_A.astype(wide)[None, :, None] * value_TAU,
        )

    def _stepped(self, state_AFU: Array, token: _Tokens) -> Array:
        entering_AFU = token.key_TAF[:, :, None] * token.value_TAU[:, None, :]
        return token.keep_TA[:, None, None] * state_AFU + entering_AFU

    def _read(self, state_AFU: Array, token: _Tokens) -> Array:
        read_AU = jnp.einsum("af,afu->au", token.query_TAF, state_AFU, precision=HIGHEST)
        return read_AU + token.past_TAU

    def _out(self, kernels: _Kernels, stream_TD: Array, read_TAU: Array) -> Array:
        """What was read (T, A, U), gated by the token itself and normed, as output (T, E)."""
        length = read_TAU.shape[0]
        gate_TE = _into(kernels, stream_TD, slice(0, self._inner)).astype(read_TAU.dtype)
        gated_TE = read_TAU.reshape(length, self._inner) * jax.nn.silu(gate_TE)
        gated_TGX = gated_TE.reshape(length, self._groups, self._inner // self._groups)
        normed_TGX = gated_TGX / root_mean_square(gated_TGX, self.norm_epsilon)
        scale_1E = kernels.scale_E.astype(read_TAU.dtype)[None]
        return (normed_TGX.reshape(length, self._inner) * scale_1E).astype(stream_TD.dtype)

    @property
    def _inner(self) -> int:
        """E."""
        return self.num_heads * self.value_width

    @nn.compact
    def _kernels(self, width: int) -> _Kernels:
        self._check_sizes()
        low, high = self.step_limits
        if not 0 <= low <= high:
            raise ValueError(
                f"SelectiveStateSpace: step_limits must be two numbers 0 <= low <= high, got "
                f"{self.step_limits}."
            )
        start, heads, channels = nn.initializers, (self.num_heads,), self._channels
        # Gates, what is convolved (values, keys, queries), steps.
        outputs = self._inner + channels + self.num_heads

        def bias(name: str, size: int) -> Array:
            return self.param(name, start.zeros, (size,), self.dtype)

        return _Kernels(
            self.param("in", start.lecun_normal(), (width, outputs), self.dtype),
            bias("in_bias", outputs) if self.use_bias else None,
            self.param("taps", start.normal(0.5), (channels, self.taps), self.dtype),
            bias("taps_bias", channels) if self.taps_bias else None,
            self.param("rate", _spread_rates, heads, self.dtype),
            self.param("step_bias", _spread_steps, heads, self.dtype),
            self.param("skip", start.ones, heads, self.dtype),
            self.param("scale", start.ones, (self._inner,), self.dtype),
        )


def _into(kernels: _Kernels, stream_TD: Array, outputs: slice) -> Array:
    """Some of the outputs of the kernel that reads the stream."""
    bias_P = kernels.into_bias_P
    return dense(
        stream_TD, kernels.into_DP[:, outputs], None if bias_P is None else bias_P[outputs]
    )


def _spread_rates(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """Logs of the rates 1 to A."""
    del key  # Deterministic: the random part of the layer is in its kernels.
    return jnp.log(jnp.arange(1, shape[0] + 1, dtype=dtype))


def _spread_steps(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """What the softplus makes steps of, evenly spaced in their logs."""
    del key
    low, high = (math.log(step) for step in STEPS)
    return jnp.log(jnp.expm1(jnp.exp(jnp.linspace(low, high, shape[0], dtype=dtype))))
