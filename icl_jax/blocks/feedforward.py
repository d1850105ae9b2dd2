"""The MLP of a block, opened at its last kernel, where an output patch goes in.

An input patch reaches every kernel that reads the MLP's input through one factor ``E``: the
unpatched kernels read ``z E`` instead of ``z``.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.affine import Affine
from icl_jax.dims import Array
from icl_jax.kernels.product import in_turn
from icl_jax.patches.token import InputFactor, apply_factor

ActivationName = Literal[
    "relu", "gelu", "gelu_tanh", "gelu_tanh_8", "quick_gelu", "silu", "tanh", "identity"
]


def _gelu_tanh_8(inputs: Array) -> Array:
    """``gelu_tanh`` with eight digits of sqrt(2 / pi), as BLOOM writes it: 1e-9 off."""
    half, rate, cubic, one = (
        jnp.asarray(number, inputs.dtype) for number in (0.5, 0.79788456, 0.044715, 1.0)
    )
    return half * inputs * (one + jnp.tanh(rate * inputs * (one + cubic * inputs * inputs)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu_tanh_8": _gelu_tanh_8,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(jnp.asarray(1.702, x.dtype) * x),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "identity": lambda x: x,
}


class Feedforward(nn.Module):
    """An MLP ``M(z)`` as its two halves; subclasses define both.

    Attributes:
      activation: a name in ``ACTIVATIONS``.
      use_bias: biases on all kernels.
      dtype: of the parameters; the arithmetic is in the dtype of the input.
    """

    activation: ActivationName = "relu"
    use_bias: bool = True
    dtype: jnp.dtype = jnp.float32

    @property
    def ends_in_bias(self) -> bool:
        """Whether the last thing is a bias that every token gets whole: what can carry a patch."""
        return self.use_bias

    @property
    def input_kernels(self) -> tuple[str, ...]:
        """The names of what reads ``z`` in the parameters: what an input patch changes."""
        raise TypeError(f"{type(self).__name__} must define input_kernels.")

    @property
    def shares_down(self) -> bool:
        """Whether every token goes through the same last kernel."""
        return True

    def __call__(self, mlp_input_TD: Array) -> Array:
        """``M(z)``, (T, D)."""
        return self.output(self.hidden(mlp_input_TD, None), mlp_input_TD, None)

    def hidden(self, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """The activations (T, H) that enter the last kernel."""
        raise TypeError(f"{type(self).__name__} must define hidden(mlp_input_TD, factor).")

    def output(self, hidden_TH: Array, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """The last kernel and its bias, (T, D), on hidden activations of this input and factor."""
        raise TypeError(
            f"{type(self).__name__} must define output(hidden_TH, mlp_input_TD, factor)."
        )

    @nn.compact
    def _affine(self, name: str, inputs: Array, width: int) -> Array:
        return Affine(width, self.use_bias, self.dtype, name=name)(inputs)

    def _act(self, inputs: Array) -> Array:
        checks.one_of(type(self).__name__, "activation", self.activation, tuple(ACTIVATIONS))
        return ACTIVATIONS[self.activation](inputs)


class Dense(Feedforward):
    """``z -> act(z W_0 + b_0) -> ... -> a W_down + b_down``, of any depth.

    Attributes:
      hidden_widths: widths of the hidden layers; ``()`` is a single linear layer.
      width: of the output; that of the input when left out.

    Examples:
      >>> mlp = Dense(hidden_widths=(16, 12), activation="gelu")
      >>> params = mlp.init(jax.random.key(0), jnp.zeros(8))["params"]
      >>> {name: layer["kernel"].shape for name, layer in sorted(params.items())}
      {'down': (12, 8), 'layer_0': (8, 16), 'layer_1': (16, 12)}
    """

    hidden_widths: tuple[int, ...] = (128,)
    width: int | None = None

    @property
    def input_kernels(self) -> tuple[str, ...]:
        """The first layer; the only one where there is no other."""
        return ("layer_0",) if self.hidden_widths else ("down",)

    def hidden(self, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """The last hidden layer; without one, the MLP's own (unpatched) input."""
        activations = mlp_input_TD
        if self.hidden_widths:
            activations = patched_input(activations, factor)
        for layer, width in enumerate(self.hidden_widths):
            checks.positive_int("Dense", "hidden_widths", width)
            activations = self._act(self._affine(f"layer_{layer}", activations, width))
        return activations

    def output(self, hidden_TH: Array, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """The down kernel; without a hidden layer it is also the kernel that ``factor`` patches."""
        inputs = hidden_TH if self.hidden_widths else patched_input(mlp_input_TD, factor)
        width = mlp_input_TD.shape[-1] if self.width is None else self.width
        checks.positive_int("Dense", "width", width)
        return self._affine("down", inputs, width)


class Gated(Feedforward):
    """``(act(z W_gate) * (z W_up)) W_down`` (Shazeer 2020, arXiv 2002.05202).

    Attributes:
      hidden_width: H.
      scale: by which the hidden activations, and so the output before its bias, are multiplied (the
        residual multiplier of Granite). In front of the down kernel, where patches of that kernel
        and of its weights in a file are the same.

    Examples:
      >>> mlp = Gated(hidden_width=16, activation="silu", use_bias=False)
      >>> params = mlp.init(jax.random.key(0), jnp.zeros(8))["params"]
      >>> {name: layer["kernel"].shape for name, layer in sorted(params.items())}
      {'down': (16, 8), 'gate': (8, 16), 'up': (8, 16)}
    """

    hidden_width: int = 128
    scale: float = 1.0

    @property
    def input_kernels(self) -> tuple[str, ...]:
        """The gate and what it multiplies."""
        return ("gate", "up")

    def hidden(self, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """Gate times up; both read the same patched input."""
        checks.positive_int("Gated", "hidden_width", self.hidden_width)
        inputs_TD = patched_input(mlp_input_TD, factor)
        gate_TH = self._act(self._affine("gate", inputs_TD, self.hidden_width))
        gate_TH, inputs_TD = in_turn(gate_TH, inputs_TD, self.hidden_width)
        hidden_TH = gate_TH * self._affine("up", inputs_TD, self.hidden_width)
        if self.scale != 1.0:
            hidden_TH = hidden_TH * jnp.asarray(self.scale, hidden_TH.dtype)
        return hidden_TH

    def output(self, hidden_TH: Array, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """The down kernel."""
        return self._affine("down", hidden_TH, mlp_input_TD.shape[-1])


def patched_input(mlp_input_TD: Array, factor: InputFactor | None) -> Array:
    """``z E``, row by row: what the unpatched input kernels have to read."""
    return mlp_input_TD if factor is None else jax.vmap(apply_factor)(mlp_input_TD, factor)
