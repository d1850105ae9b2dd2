"""A layer as three steps that extraction, patched run and generation share.

Compiled one by one, each step is one executable for all layers of a design, wherever it is called
from: the patched run then repeats the closed loop bit for bit, and no rounding of bfloat16 is left
to grow from layer to layer.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax

from icl_jax.dims import Array, Params
from icl_jax.patches.block import (
    ContextualBlock,
    Midpoint,
    TokenPatch,
    apply_block,
    block_patches,
)
from icl_jax.patches.token import Conditioning


class Steps(NamedTuple):
    """How a layer is run.

    Attributes:
      contextual: ``(block, params, hidden_TD, positions_T, present_T)`` -> midpoint.
      patches: ``block_patches``.
      apply: ``apply_block``.
    """

    contextual: Callable[..., Midpoint]
    patches: Callable[..., tuple[TokenPatch, Conditioning]]
    apply: Callable[..., Array]


def _contextual(
    block: ContextualBlock,
    params: Params,
    hidden_TD: Array,
    positions_T: Array | None,
    present_T: Array | None,
) -> Midpoint:
    return block.contextual(params, hidden_TD, positions_T=positions_T, present_T=present_T)


#: Operation by operation outside jit; for any block.
PLAIN = Steps(_contextual, block_patches, apply_block)

#: One executable per design; for blocks that are hashable values.
COMPILED = Steps(
    jax.jit(_contextual, static_argnames="block"),
    jax.jit(block_patches, static_argnames=("block", "output")),
    jax.jit(apply_block, static_argnames="block"),
)
