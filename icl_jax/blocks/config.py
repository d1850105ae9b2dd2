"""A stack described by names and numbers: what goes on a command line and into a record.

Modules say everything that a configuration can say, and more (your own layers, mixed stacks); this
is the part of it that fits into flags and JSON.
"""

from dataclasses import dataclass, field
from typing import Literal, assert_never

from icl_jax import checks
from icl_jax.blocks.block import Block
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.feedforward import ACTIVATIONS, ActivationName, Dense, Feedforward, Gated
from icl_jax.blocks.linear_attention import LinearAttention
from icl_jax.blocks.norms import NORMS, NormName
from icl_jax.blocks.recurrent import GatedRecurrent, StateSpace
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import Stack, repeat
from icl_jax.blocks.wiring import WIRINGS, WiringName

LayerName = Literal["attention", "linear_attention", "state_space", "recurrent"]
LAYERS: tuple[LayerName, ...] = ("attention", "linear_attention", "state_space", "recurrent")
MlpName = Literal["dense", "gated"]
MLPS = ("dense", "gated")

#: Wirings that only add to the residual stream.
GROWING = ("pre_norm", "parallel", "sandwich", "reordered_norm", "mixer")


@dataclass(frozen=True)
class StackConfig:
    """Blocks of one design, piled up; the defaults are the block of Dherin et al., v1.

    Examples:
      >>> config = StackConfig(layer="recurrent", width=8, wiring="skip", depth=2, num_heads=2)
      >>> type(build_stack(config).blocks[0].contextual_layer).__name__
      'GatedRecurrent'
    """

    layer: LayerName = field(default="attention", metadata={"help": "the contextual layer"})
    num_heads: int = field(default=8, metadata={"help": "attention heads"})
    causal: bool = field(default=True, metadata={"help": "attention reads backwards only"})
    width: int = field(default=32, metadata={"help": "of the residual stream (d_model)"})
    mlp: MlpName = field(default="dense", metadata={"help": "plain or gated MLP"})
    hidden_widths: tuple[int, ...] = field(
        default=(128,), metadata={"help": "hidden layers of the MLP (a gated one has one)"}
    )
    activation: ActivationName = field(default="relu", metadata={"help": "of the MLP"})
    use_bias: bool = field(default=True, metadata={"help": "biases in the MLP"})
    wiring: WiringName = field(default="no_skip", metadata={"help": "skips and the place of norms"})
    norm: NormName = field(default="layer", metadata={"help": "norm, where the wiring has one"})
    depth: int = field(default=1, metadata={"help": "number of blocks"})

    def __post_init__(self) -> None:
        where = "StackConfig"
        checks.one_of(where, "layer", self.layer, LAYERS)
        checks.one_of(where, "mlp", self.mlp, MLPS)
        checks.one_of(where, "activation", self.activation, tuple(ACTIVATIONS))
        checks.one_of(where, "wiring", self.wiring, tuple(WIRINGS))
        checks.one_of(where, "norm", self.norm, NORMS)
        for name in ("num_heads", "width", "depth"):
            checks.positive_int(where, name, getattr(self, name))
        for width in self.hidden_widths:
            checks.positive_int(where, "hidden_widths", width)
        if self.layer.endswith("attention") and self.width % self.num_heads:
            raise ValueError(
                f"{where}: num_heads={self.num_heads} does not divide width={self.width}; choose a "
                "divisor."
            )
        if self.mlp == "gated" and len(self.hidden_widths) != 1:
            raise ValueError(
                f"{where}: a gated MLP has one hidden width, got hidden_widths="
                f"{self.hidden_widths}. Give one number, or mlp='dense'."
            )


def build_stack(config: StackConfig, output_width: int = 1) -> Stack:
    """The Flax stack that a configuration describes.

    Examples:
      >>> stack = build_stack(StackConfig(layer="state_space", wiring="pre_norm", depth=3))
      >>> len(stack.blocks), stack.blocks[0].wiring
      (3, 'pre_norm')
    """
    block = Block(
        contextual_layer=_contextual_layer(config),
        mlp=_mlp(config),
        wiring=config.wiring,
        norm=config.norm,
    )
    return Stack(
        blocks=repeat(block, config.depth),
        width=config.width,
        output_width=output_width,
        # A stream without norms on its path grows with depth: such models norm it before reading.
        final_norm=config.norm if config.wiring in GROWING else "none",
    )


def _contextual_layer(config: StackConfig) -> ContextualLayer:
    if config.layer == "attention":
        return SoftmaxAttention(num_heads=config.num_heads, causal=config.causal)
    if config.layer == "linear_attention":
        return LinearAttention(num_heads=config.num_heads, causal=config.causal)
    if config.layer == "state_space":
        return StateSpace()
    if config.layer == "recurrent":
        return GatedRecurrent()
    assert_never(config.layer)


def _mlp(config: StackConfig) -> Feedforward:
    if config.mlp == "gated":
        return Gated(
            hidden_width=config.hidden_widths[0],
            activation=config.activation,
            use_bias=config.use_bias,
        )
    return Dense(
        hidden_widths=config.hidden_widths,
        activation=config.activation,
        use_bias=config.use_bias,
    )
