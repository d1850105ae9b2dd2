"""A contextual block as three pure functions, and the patch of its kept positions.

Anything that can say how it reads a context (``contextual``), what enters its last kernel
(``hidden``) and what leaves it (``output``) is a contextual block: the Flax blocks of this library,
an Equinox or NNX module behind a few lines, or plain functions.
"""

from dataclasses import dataclass
from typing import Protocol

import jax

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.patches.output import (
    OUTPUT_POLICIES,
    BiasPatch,
    DownPatch,
    OutputPolicy,
    bias_patch,
    down_patch,
)
from icl_jax.patches.token import (
    Conditioning,
    InputFactor,
    conditioning,
    input_factor,
)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Midpoint:
    """The state of a block between its contextual layer and its MLP.

    Attributes:
      residual_TD: (T, D), ``h``, what the MLP's output is added to; None without a skip.
      mlp_input_TD: (T, D), ``z``, what the MLP's input kernels read.
    """

    residual_TD: Array | None
    mlp_input_TD: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenPatch:
    """The patch of one kept position in one block; with a leading K axis, a bank of them.

    Attributes:
      input: the factor of all input kernels; None where they do not see the context (parallel).
      output: the change of the output bias or down kernel; None without a skip.
    """

    input: InputFactor | None
    output: BiasPatch | DownPatch | None


class ContextualBlock(Protocol):
    """``T_W(C, x) = M_W(A(C, x))``, opened at the MLP's input and at its last kernel."""

    @property
    def patches_input(self) -> bool:
        """Whether the MLP's input depends on the context (not so in a parallel block)."""

    @property
    def has_output_bias(self) -> bool:
        """Whether the MLP ends in a bias that a patch can use."""

    def contextual(
        self,
        params: Params,
        hidden_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Midpoint:
        """Reads the whole sequence ``hidden_TD``; absent positions contribute nothing."""

    def hidden(self, params: Params, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """The activations (T, H) that enter the last kernel; ``factor`` has a leading T axis."""

    def output(
        self, params: Params, midpoint: Midpoint, hidden_TH: Array, patch: TokenPatch | None
    ) -> Array:
        """The block's output (T, D); ``patch`` has a leading T axis."""


def block_patches(
    block: ContextualBlock,
    params: Params,
    full: Midpoint,
    kept: Midpoint,
    *,
    output: OutputPolicy = "auto",
) -> tuple[TokenPatch, Array, Conditioning]:
    """The patches of the K kept positions of one block, from its two midpoints.

    Args:
      block: the contextual block.
      params: its parameters.
      full: midpoints (K, D) of the kept positions in the run with everything.
      kept: midpoints (K, D) in the run on the kept positions alone.
      output: which weight carries the residual change.

    Returns:
      The bank (leading axis K), the hidden activations (K, H) of the patched run, and the
      conditioning numbers (K,).

    Raises:
      ValueError: an unknown policy, ``bias`` on a block without an output bias, or (outside jit)
        an MLP input of length zero, or hidden activations of length zero where the down kernel
        carries the residual change.

    Source: Dherin et al. 2025, Theorem 2.2 and appendix; Goldwaser et al. (arXiv 2511.17864) for
      blocks without biases and for parallel blocks.
    """
    checks.one_of("block_patches", "output", output, OUTPUT_POLICIES)
    if output == "bias" and not block.has_output_bias:
        raise ValueError(
            "block_patches: output='bias' needs a block whose MLP ends in a bias; this one has "
            "none. Use output='down' or 'auto'."
        )
    factor = None
    if block.patches_input:
        checks.non_zero_rows("block_patches", "the MLP's input", kept.mlp_input_TD)
        factor = jax.vmap(input_factor)(full.mlp_input_TD, kept.mlp_input_TD)
    hidden_KH = block.hidden(params, kept.mlp_input_TD, factor)
    output_patch: BiasPatch | DownPatch | None = None
    if full.residual_TD is not None and kept.residual_TD is not None:
        change_KD = full.residual_TD - kept.residual_TD
        if output == "down" or not block.has_output_bias:
            checks.non_zero_rows("block_patches", "the down kernel's input", hidden_KH)
            output_patch = jax.vmap(down_patch)(hidden_KH, change_KD)
        else:
            output_patch = jax.vmap(bias_patch)(change_KD)
    numbers = jax.vmap(conditioning)(full.mlp_input_TD, kept.mlp_input_TD)
    return TokenPatch(factor, output_patch), hidden_KH, numbers


def apply_block(
    block: ContextualBlock, params: Params, midpoint: Midpoint, patch: TokenPatch | None = None
) -> Array:
    """The rest of the block after its contextual layer, patched row by row or plain."""
    factor = None if patch is None else patch.input
    hidden_TH = block.hidden(params, midpoint.mlp_input_TD, factor)
    return block.output(params, midpoint, hidden_TH, patch)
