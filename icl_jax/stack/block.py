"""A contextual block as pure functions on arrays.

Anything that can say how it reads a context (``contextual``), what enters its last kernel
(``hidden``) and what leaves it (``output``) is a contextual block: the Flax blocks of this library,
an Equinox or NNX module behind a few lines, or plain functions. Blocks are hashable values, equal
when they compute the same from the same parameters; what is learned is in ``params``.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import jax

from icl_jax.dims import Array, Params
from icl_jax.shown import short
from icl_jax.stack.settled import settled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Midpoint:
    """The state of a block between its contextual layer and its MLP.

    Attributes:
      residual_TD: (T, D), ``h``, what the MLP's output is added to; None without a skip.
      mlp_input_TD: (T, D), ``z``, what the MLP's input kernels read; in a mixer of a width
        of its own.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), wiring="skip"))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> block, block_params = functional(stack, params)[0]
      >>> midpoint = block.contextual(block_params, stream)
      >>> midpoint.residual_TD.shape, midpoint.mlp_input_TD.shape
      ((6, 8), (6, 8))
    """

    residual_TD: Array | None
    mlp_input_TD: Array

    __repr__ = short


class ContextualBlock(Protocol):
    """``T_W(C, x) = M_W(A(C, x))``, opened at the MLP's input and at its last kernel.

    A block with a norm on its MLP's output also has the methods of ``patches.block.NormedBlock``.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> block, block_params = functional(stack, params)[0]
      >>> midpoint = block.contextual(block_params, stream)
      >>> hidden = block.hidden(block_params, midpoint.mlp_input_TD, None)
      >>> block.output(block_params, midpoint, hidden, None).shape
      (6, 8)
    """

    @property
    def patches_input(self) -> bool:
        """Whether the MLP's input depends on the context (not so in a parallel block)."""

    @property
    def has_output_bias(self) -> bool:
        """Whether the MLP ends in a bias that a patch can use."""

    def contextual(
        self,
        params: Params,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Midpoint:
        """Reads the whole sequence ``stream_TD``; absent positions contribute nothing."""

    def hidden(self, params: Params, mlp_input_TD: Array, factor: Any) -> Array:
        """The activations (T, H) that enter the last kernel.

        ``factor`` is an ``InputFactor`` with a leading T axis, or None.
        """

    def output(self, params: Params, midpoint: Midpoint, hidden_TH: Array, patch: Any) -> Array:
        """The block's output (T, D); ``patch``: a ``TokenPatch`` with a leading T axis, or None."""


def take(midpoint: Midpoint, rows_K: Array) -> Midpoint:
    """The midpoint at some positions."""
    return jax.tree.map(lambda rows_TD: rows_TD[rows_K], midpoint)


def apply_block(
    block: ContextualBlock, params: Params, midpoint: Midpoint, patch: Any = None
) -> Array:
    """The rest of the block after its contextual layer, patched row by row or plain.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> block, block_params = layers[0]
      >>> output = apply_block(block, block_params, block.contextual(block_params, stream))
      >>> bool(jnp.allclose(output, forward(layers, stream), atol=1e-5))
      True
    """
    if patch is None:
        hidden_TH = block.hidden(params, midpoint.mlp_input_TD, None)
    else:
        hidden_TH = settled(block.hidden(params, midpoint.mlp_input_TD, patch.input))
    return block.output(params, midpoint, hidden_TH, patch)
