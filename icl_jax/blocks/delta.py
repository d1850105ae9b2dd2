"""The gated delta rule: a fading memory of keys and values, each new value written over the old.

Letters beside those of ``dims``: A heads of values and G of keys, U features of a value, C channels
of the short convolution (all queries, keys and values), I taps of it that look back.
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

_LECUN = nn.initializers.lecun_normal()
_INTO_HEADS = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=0, out_axis=(1, 2)
)
_OUT_OF_HEADS = nn.initializers.variance_scaling(
    1.0, "fan_in", "truncated_normal", in_axis=(0, 1), out_axis=2
)

#: Added to the squared length of a query or key before it is divided by its length.
LENGTH_EPSILON = 1e-6


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


class GatedDelta(FadingState):
    """A state ``S`` (F, U) per head that fades, and that each token corrects where its key points.

    With ``q``, ``k``, ``v`` of a token behind a short causal convolution and a SiLU, ``q`` and
    ``k`` of length one, ``q`` over sqrt(F), ``write = sigmoid(x W_b)`` and
    ``keep = exp(-rate softplus(x W_a + b))``:

        S' = keep S + outer(k, write (v - k^T keep S)),   A(S)_t = norm(q^T S') silu(x W_z) W_out

    ``norm`` is a root-mean-square norm of each head. Yang et al. (arXiv 2412.06464), as in
    Qwen3-Next. Attributes and what all such layers share: ``FadingState``.

    Examples:
      >>> layer = GatedDelta(num_heads=2, key_width=4, value_width=4)
      >>> stream = jax.random.normal(jax.random.key(0), (6, 8))
      >>> variables = layer.init(jax.random.key(1), stream)
      >>> moved = layer.apply(variables, stream.at[2].add(1.0)) - layer.apply(variables, stream)
      >>> (jnp.abs(moved).max(1) > 0).tolist()  # read by itself and whatever follows
      [False, False, True, True, True, True]
      >>> layer.empty_memory(1000, 8, jnp.float32).state_AFU.shape  # however long the context
      (2, 4, 4)
    """

    def _channels_of(self, kernels: _Kernels, stream_TD: Array) -> Array:
        return dense(stream_TD, kernels.into_DC)

    def _tokens(self, kernels: _Kernels, stream_TD: Array, windows_TXC: Array) -> _Tokens:
        length, wide = stream_TD.shape[0], accumulator(stream_TD.dtype)
        keys, groups = self._groups * self.key_width, self._groups
        mixed_TC = convolved(windows_TXC, kernels.taps_CX)

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

    def _stepped(self, state_AFU: Array, token: _Tokens) -> Array:
        _, key_AF, value_AU, write_A, keep_A = token
        faded_AFU = keep_A[:, None, None] * state_AFU
        known_AU = jnp.einsum("af,afu->au", key_AF, faded_AFU, precision=HIGHEST)
        change_AU = write_A[:, None] * (value_AU - known_AU)
        return faded_AFU + key_AF[:, :, None] * change_AU[:, None, :]

    def _read(self, state_AFU: Array, token: _Tokens) -> Array:
        return jnp.einsum("af,afu->au", token.query_TAF, state_AFU, precision=HIGHEST)

    def _out(self, kernels: _Kernels, stream_TD: Array, read_TAU: Array) -> Array:
        """What was read (T, A, U), normed and gated by the token itself, as output (T, D)."""
        normed_TAU = read_TAU / root_mean_square(read_TAU, self.norm_epsilon)
        normed_TAU = normed_TAU * kernels.scale_U.astype(read_TAU.dtype)[None, None]
        gate_TAU = jax.nn.silu(dense(stream_TD, kernels.gate_DAU).astype(read_TAU.dtype))
        gated_TAU = (normed_TAU * gate_TAU).astype(stream_TD.dtype)
        return dense(gated_TAU, kernels.out_AUD, axes=2)

    @nn.compact
    def _kernels(self, width: int) -> _Kernels:
        self._check_sizes()
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
