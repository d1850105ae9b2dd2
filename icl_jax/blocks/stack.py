"""A stack of blocks between real-valued tokens and outputs: the in-context learner."""

import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.affine import Affine
from icl_jax.blocks.block import Block
from icl_jax.blocks.functional import declare_layers, functional
from icl_jax.blocks.norms import Norm, NormName
from icl_jax.dims import Array
from icl_jax.stack.run import forward


class Stack(nn.Module):
    """Embedding, blocks, final norm and readout: an in-context learner on real-valued tokens.

    Attributes:
      blocks: the layers; alike or not. ``repeat(block, depth)`` makes copies of one.
      width: D, of the residual stream.
      output_width: O.
      final_norm: ``layer``, ``rms`` or ``none``, before the readout.
      dtype: of the parameters; the arithmetic is in the dtype of the input.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Dense(hidden_widths=(16,)), "pre_norm")
      >>> stack = Stack(repeat(block, 2), width=8, final_norm="layer")
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> variables = stack.init(jax.random.key(1), tokens)
      >>> stack.apply(variables, tokens).shape
      (6, 1)
    """

    blocks: tuple[Block, ...]
    width: int
    output_width: int = 1
    final_norm: NormName = "none"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        checks.positive_int("Stack", "width", self.width)
        checks.positive_int("Stack", "output_width", self.output_width)
        if not self.blocks:
            raise ValueError("Stack: blocks is empty; a stack has at least one block.")
        self.embedding = Affine(self.width, dtype=self.dtype)
        self.norm = Norm(self.final_norm, dtype=self.dtype)
        self.head = Affine(self.output_width, dtype=self.dtype)
        declare_layers(self, self.width)

    def __call__(
        self,
        tokens_TC: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """Outputs (T, O) for tokens (T, C), of every position, with all that its layers see."""
        layers = functional(self, self.variables["params"])
        stream_TD = forward(
            layers, self.embed(tokens_TC), positions_T=positions_T, present_T=present_T
        )
        return self.readout(stream_TD)

    def embed(self, tokens_TC: Array) -> Array:
        """The residual stream (T, D) before the first block, of any rows: each by itself."""
        return self.embedding(tokens_TC)

    def readout(self, stream_TD: Array) -> Array:
        """Outputs (T, O) from the residual stream behind the last block, of rows by themselves.

        So the K rows of ``patched_forward`` go in as the T of ``forward`` do.
        """
        return self.head(self.norm(stream_TD))


def repeat(block: Block, depth: int) -> tuple[Block, ...]:
    """``depth`` blocks of one design, each with parameters of its own.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Dense(hidden_widths=(16,)))
      >>> [one == block for one in repeat(block, 3)]
      [True, True, True]
    """
    checks.positive_int("repeat", "depth", depth)
    # The same instance twice would mean shared parameters, so every layer is a clone.
    return tuple(
        block.clone(contextual_layer=block.contextual_layer.clone(), mlp=block.mlp.clone())
        for _ in range(depth)
    )
