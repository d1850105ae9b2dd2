"""Layer and root-mean-square norms, and their linear part once the denominator is frozen."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.dims import Array, accumulator

NormName = Literal["layer", "layer_gain", "layer_plain", "rms", "none"]
NORMS = ("layer", "layer_gain", "layer_plain", "rms", "none")


class Norm(nn.Module):
    """``gain * centre(x) / sqrt(mean(centre(x)^2) + epsilon) (+ bias)`` over the last axis.

    ``centre`` subtracts the mean for ``layer`` and does nothing for ``rms``; ``none`` is the
    identity and has no parameters. A layer norm has gain and bias, ``layer_gain`` has no bias
    (Cohere) and ``layer_plain`` neither (OLMo). The statistics are taken in float32 or wider.

    Attributes:
      kind: ``layer``, ``layer_gain``, ``layer_plain``, ``rms`` or ``none``.
      epsilon: added to the mean square, in squared units of the input.
      dtype: of the parameters.
    """

    kind: NormName = "layer"
    epsilon: float = 1e-6
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        checks.one_of("Norm", "kind", self.kind, NORMS)

    def __call__(self, stream_TD: Array) -> Array:
        """The norm of each row."""
        if self.kind == "none":
            return stream_TD
        centred_TD = self._centre(stream_TD.astype(accumulator(stream_TD.dtype)))
        gain_D, bias_D = self._parameters(stream_TD.shape[-1])
        scaled_TD = centred_TD / self._denominator(centred_TD) * _like(gain_D, centred_TD)
        if bias_D is not None:
            scaled_TD = scaled_TD + _like(bias_D, centred_TD)
        return scaled_TD.astype(stream_TD.dtype)

    def frozen(self, vectors_TD: Array, reference_D: Array) -> Array:
        """The norm's linear part on each row, with the denominator that ``reference_D`` has.

        ``norm(x) - norm(y) = frozen(x - y, x) + (terms of y's own denominator)``: what makes an
        attribution through a norm a sum.
        """
        if self.kind == "none":
            return vectors_TD
        dtype = accumulator(vectors_TD.dtype)
        gain_D, _ = self._parameters(vectors_TD.shape[-1])
        denominator = self._denominator(self._centre(reference_D.astype(dtype)))
        # One denominator for all rows: without axes it meets them at any rank.
        denominator = jnp.squeeze(denominator, axis=-1)
        centred_TD = self._centre(vectors_TD.astype(dtype))
        return (centred_TD / denominator * _like(gain_D, centred_TD)).astype(vectors_TD.dtype)

    def gain(self, width: int) -> Array:
        """The gain (width,) that the normed vector is multiplied by."""
        return self._parameters(width)[0]

    @nn.compact
    def _parameters(self, width: int) -> tuple[Array, Array | None]:
        if self.kind == "layer_plain":
            return jnp.ones((width,), self.dtype), None
        gain_D = self.param("scale", nn.initializers.ones, (width,), self.dtype)
        if self.kind != "layer":
            return gain_D, None
        return gain_D, self.param("bias", nn.initializers.zeros, (width,), self.dtype)

    def _centre(self, wide_TD: Array) -> Array:
        if self.kind == "rms":
            return wide_TD
        return wide_TD - jnp.mean(wide_TD, axis=-1, keepdims=True)

    def _denominator(self, centred_TD: Array) -> Array:
        return root_mean_square(centred_TD, self.epsilon)


def root_mean_square(
    values: Array, epsilon: float = 0.0, axes: int | tuple[int, ...] = -1
) -> Array:
    """``sqrt(mean(x^2) + epsilon)`` over some axes, which stay as axes of one entry."""
    return jnp.sqrt(jnp.mean(values**2, axis=axes, keepdims=True) + epsilon)


def _like(vector_D: Array, rows: Array) -> Array:
    """``vector_D`` in the dtype of ``rows`` and with as many axes, so that nothing is promoted."""
    shape = (1,) * (rows.ndim - 1) + vector_D.shape
    return vector_D.astype(rows.dtype).reshape(shape)
