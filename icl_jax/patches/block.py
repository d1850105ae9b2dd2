"""The patches of the kept positions of one block, from its two midpoints."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.patches.normed import (
    BalancedPatch,
    OutputNorm,
    ScalePatch,
    amplification,
    balanced_patch,
    change_to,
    gain_change,
    scale_patch,
    smallest_normed,
    with_remainder,
)
from icl_jax.patches.output import (
    OUTPUT_POLICIES,
    BiasPatch,
    DownPatch,
    OutputPolicy,
    bias_patch,
    down_amplification,
    down_change,
    down_patch,
    wide,
    with_down_remainder,
)
from icl_jax.patches.token import (
    Conditioning,
    InputFactor,
    conditioning,
    input_factor,
)
from icl_jax.shown import short
from icl_jax.stack.block import ContextualBlock, Midpoint, apply_block
from icl_jax.stack.settled import as_stored, settled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TokenPatch:
    """The patch of one kept position in one block; with a leading K axis, a bank of them.

    Attributes:
      input: the factor of all input kernels; None where they do not see the context (parallel).
      output: the change of the output bias, down kernel or output norm; None without a skip.

    Examples:
      >>> full, kept = jnp.array([1.0, 2.0]), jnp.array([2.0, 0.0])
      >>> patch = TokenPatch(input_factor(full, kept), bias_patch(full - kept))
      >>> apply_factor(kept, patch.input).tolist(), patch.output.delta_D.tolist()
      ([1.0, 2.0], [-1.0, 2.0])
    """

    input: InputFactor | None
    output: BiasPatch | DownPatch | ScalePatch | BalancedPatch | None

    __repr__ = short


@runtime_checkable
class NormedBlock(Protocol):
    """What a block says of the norm on its MLP's output, if it has one."""

    @property
    def norms_output(self) -> bool:
        """Whether a norm of any kind follows the MLP."""

    def output_norm(self, params: Params) -> OutputNorm | None:
        """The norm; None where nothing (or no root-mean-square norm) follows the MLP."""

    def mlp_output(
        self, params: Params, mlp_input_TD: Array, hidden_TH: Array, factor: InputFactor | None
    ) -> Array:
        """What the norm reads (T, D): the MLP's output before any output patch."""


@runtime_checkable
class SplitBlock(ContextualBlock, NormedBlock, Protocol):
    """A block opened behind its last kernel, too: for patches that are right to the last bit."""

    @property
    def ends_in_sum(self) -> bool:
        """Whether its output is the residual stream plus what the MLP gives, and nothing more."""

    def finish(
        self, params: Params, midpoint: Midpoint, output_TD: Array, hidden_TH: Array, patch: Any
    ) -> Array:
        """The block's output (T, D) from what ``mlp_output`` gave; ``patch`` as in ``output``.

        Patches aim at ``normed_sum`` or ``down_sum``, rounded once.
        """


def block_patches(
    block: ContextualBlock,
    params: Params,
    full: Midpoint,
    kept: Midpoint,
    output: OutputPolicy = "auto",
    full_output_KD: Array | None = None,
) -> tuple[TokenPatch, Conditioning]:
    """The patches of the K kept positions of one block, from its two midpoints.

    Args:
      block: the contextual block.
      params: its parameters.
      full: midpoints (K, D) of the kept positions in the run with everything.
      kept: midpoints (K, D) in the run on the kept positions alone.
      output: which weight carries the residual change.
      full_output_KD: (K, D), the block's output at the kept positions in the run with everything,
        which all patches but those of a bias aim at; run again from ``full`` when left out.

    Returns:
      The bank (leading axis K) and the conditioning numbers (K,).

    Raises:
      ValueError: an unknown policy, one that the block has no weights for, or (outside jit) an MLP
        input of length zero, or hidden activations of length zero where the down kernel carries the
        residual change.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), wiring="skip"))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> block, block_params = functional(stack, params)[0]
      >>> everything = block.contextual(block_params, stream)
      >>> full = jax.tree.map(lambda rows: rows[5:], everything)  # the last position
      >>> kept = block.contextual(block_params, stream[5:])  # and the same without its context
      >>> patch, numbers = block_patches(block, block_params, full, kept)
      >>> patched = apply_block(block, block_params, kept, patch)
      >>> bool(jnp.allclose(patched, apply_block(block, block_params, full), atol=1e-5))
      True

    Source: Dherin et al. 2025, Theorem 2.2 and appendix; Goldwaser et al. (arXiv 2511.17864) for
      blocks without biases, parallel blocks and norms on the output.
    """
    factor = input_patches(block, full, kept)
    # What the patched run will read: left alone, a compiler keeps bfloat16 wider here than there.
    hidden_KH = settled(block.hidden(params, kept.mlp_input_TD, factor))
    return output_patches(
        block, params, full, kept, factor, hidden_KH, output, full_output_KD=full_output_KD
    )


@jax.named_scope("patches")
def input_patches(block: ContextualBlock, full: Midpoint, kept: Midpoint) -> InputFactor | None:
    """The input factors of the K kept positions; None where the MLP does not read the context.

    Arguments and errors as in ``block_patches``.
    """
    if not block.patches_input:
        return None
    checks.non_zero_rows("block_patches", "the MLP's input", kept.mlp_input_TD)
    return as_stored(jax.vmap(input_factor)(full.mlp_input_TD, kept.mlp_input_TD))


@jax.named_scope("patches")
def output_patches(
    block: ContextualBlock,
    params: Params,
    full: Midpoint,
    kept: Midpoint,
    factor: InputFactor | None,
    hidden_KH: Array,
    output: OutputPolicy,
    *,
    full_output_KD: Array | None = None,
    output_KD: Array | None = None,
) -> tuple[TokenPatch, Conditioning]:
    """The rest of ``block_patches``, once the patched run's hidden activations (K, H) are there.

    ``hidden_KH`` is settled; so is ``output_KD`` (K, D), what the MLP gives for it before an output
    patch, which is computed when left out.
    """
    norm = block.output_norm(params) if isinstance(block, NormedBlock) else None
    policy = chosen_policy(output, block, norm is not None)
    numbers = jax.vmap(conditioning)(full.mlp_input_TD, kept.mlp_input_TD)
    if full.residual_TD is None or kept.residual_TD is None:
        return TokenPatch(factor, None), numbers
    if policy == "bias":
        change_KD = full.residual_TD - kept.residual_TD
        return TokenPatch(factor, jax.vmap(bias_patch)(change_KD)), numbers
    if policy != "scale":
        checks.non_zero_rows("block_patches", "the down kernel's input", hidden_KH)
    if policy == "down" and not (isinstance(block, SplitBlock) and block.ends_in_sum):
        # A norm behind the sum hides what the sum was, and other blocks do not open it.
        change_KD = wide(full.residual_TD) - wide(kept.residual_TD)
        patch_K = jax.vmap(down_patch)(wide(hidden_KH), change_KD)
        return TokenPatch(factor, patch_K), _down_numbers(numbers, patch_K, full.residual_TD)

    assert isinstance(block, NormedBlock)  # chosen_policy has seen to it
    if output_KD is None:
        output_KD = settled(block.mlp_output(params, kept.mlp_input_TD, hidden_KH, factor))
    if full_output_KD is None:
        full_output_KD = settled(apply_block(block, params, full))
    if policy == "down":
        ends_KD = full_output_KD, kept.residual_TD, output_KD
        change_KD = jax.vmap(down_change)(*ends_KD)
        patch_K = settled(jax.vmap(down_patch)(wide(hidden_KH), change_KD))
        patch_K = jax.vmap(with_down_remainder)(patch_K, hidden_KH, *ends_KD)
        return TokenPatch(factor, patch_K), _down_numbers(numbers, patch_K, full.residual_TD)

    assert norm is not None
    # What the norm has to give: the difference of two stored states, without another rounding.
    target_KD = wide(full_output_KD) - wide(kept.residual_TD)
    change_KD = jax.vmap(change_to, in_axes=(0, 0, None))(target_KD, output_KD, norm)
    patch: ScalePatch | BalancedPatch
    if policy == "scale":
        patch = jax.vmap(scale_patch, in_axes=(0, 0, None))(output_KD, change_KD, norm)
    else:
        patch = jax.vmap(balanced_patch, in_axes=(0, 0, 0, None))(
            output_KD, hidden_KH, change_KD, norm
        )
        if policy == "balanced+remainder":
            patch = jax.vmap(with_remainder, in_axes=(0, 0, 0, None, 0, 0))(
                settled(patch), output_KD, hidden_KH, norm, kept.residual_TD, full_output_KD
            )
    gain_change_KD = jax.vmap(gain_change, in_axes=(0, None))(patch, norm)
    numbers = dataclasses.replace(
        numbers,
        max_gain_change=jnp.max(jnp.abs(gain_change_KD), axis=-1),
        min_normalised=jax.vmap(smallest_normed)(output_KD),
        amplification=jax.vmap(amplification, in_axes=(0, None, 0, 0))(
            output_KD, norm, patch, full_output_KD
        ),
    )
    return TokenPatch(factor, patch), numbers


def _down_numbers(numbers: Conditioning, patch: DownPatch, residual_KD: Array) -> Conditioning:
    share_K = jax.vmap(down_amplification)(patch.delta_D, residual_KD)
    return dataclasses.replace(numbers, amplification=share_K)


def chosen_policy(output: OutputPolicy, block: ContextualBlock, has_gain: bool) -> OutputPolicy:
    """The weights that ``auto`` stands for in a block; any other policy is itself.

    Args:
      output: the policy asked for.
      block: the block.
      has_gain: whether a root-mean-square norm stands on its MLP's output.

    Raises:
      ValueError: an unknown policy, or one that the block has no weights for.
    """
    checks.one_of("block_patches", "output", output, OUTPUT_POLICIES)
    if output == "auto":
        if block.has_output_bias:
            return "bias"
        return "balanced+remainder" if has_gain else "down"
    if output == "bias" and not block.has_output_bias:
        raise ValueError(
            "block_patches: output='bias' needs a block that ends in a bias; this one has none. "
            f"Use output={'balanced+remainder' if has_gain else 'down'!r} or 'auto'."
        )
    if output == "down" and isinstance(block, NormedBlock) and block.norms_output:
        raise ValueError(
            "block_patches: output='down' cannot restore the residual stream of a block with a "
            "norm on its MLP's output, which takes away lengths. Use output='auto'."
        )
    if output in ("scale", "balanced", "balanced+remainder") and not has_gain:
        raise ValueError(
            f"block_patches: output={output!r} needs a root-mean-square norm on the MLP's output; "
            "this block has none. Use output='auto'."
        )
    return output
