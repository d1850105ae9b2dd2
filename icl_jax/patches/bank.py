"""Patches of a whole stack: every kept position in every layer.

By induction over the layers: patch layer 1 so that its output on the kept positions equals its
output with everything; then layer 2 reads the same input and only its contextual layer differs.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.patches.block import ContextualBlock, Midpoint, TokenPatch
from icl_jax.patches.normed import BalancedPatch, ScalePatch
from icl_jax.patches.output import DownPatch, OutputPolicy, compact_down
from icl_jax.patches.steps import COMPILED, PLAIN
from icl_jax.patches.token import Conditioning

#: ``closed``: each patch repairs the state that the patched run really has. ``open``: all patches
#: from the run with everything; rounding adds up over the layers.
Loop = Literal["closed", "open"]
LOOPS = ("closed", "open")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Bank:
    """One patch per kept position and layer.

    Attributes:
      patches: a ``TokenPatch`` per layer, each with a leading axis K.
      kept_K: (K,), the kept positions in the full sequence, increasing.
      conditioning: the numbers (K,) of each layer's patches.
    """

    patches: tuple[TokenPatch, ...]
    kept_K: Array
    conditioning: tuple[Conditioning, ...]


def stack_patches(
    blocks: Sequence[ContextualBlock],
    params: Sequence[Params],
    hidden_TD: Array,
    kept_K: Array | Sequence[int] | np.ndarray,
    *,
    positions_T: Array | None = None,
    present_T: Array | None = None,
    loop: Loop = "closed",
    output: OutputPolicy = "auto",
    compile_layers: bool = False,
) -> Bank:
    """The patches with which a stack, run on the kept positions alone, gives the full run's output.

    Args:
      blocks: the layers.
      params: the parameters of each.
      hidden_TD: (T, D), the embedded sequence, everything there.
      kept_K: (K,), the positions to keep, increasing; the others are removed.
      positions_T: (T,), integer position ids; 0..T-1 when left out. Kept tokens keep theirs.
      present_T: (T,), False where a position is padding; all present when left out.
      loop: ``closed`` (default) or ``open``.
      output: which weight carries the residual change.
      compile_layers: compile one layer per design instead of running operation by operation, for
        deep models outside jit; the blocks must be hashable values (``FlaxBlock`` is). An MLP input
        of length zero is then left to ``check_patchable``.

    Returns:
      The bank; ``patched_forward`` applies it.

    Raises:
      ValueError: no layers, as many parameters as layers not given, bad kept positions (see
        ``checks.kept_positions``), unknown loop or policy, or (outside jit) an MLP input of length
        zero; inside jit read ``Bank.conditioning`` with ``check_patchable``.
      TypeError: ``hidden_TD`` is not floating point.

    Source: Goldwaser et al. (arXiv 2511.17864), the layer-by-layer algorithm (closed loop).
    """
    _check_stack("stack_patches", blocks, params, hidden_TD)
    checks.one_of("stack_patches", "loop", loop, LOOPS)
    kept_K = checks.kept_positions("stack_patches", kept_K, hidden_TD.shape[0])
    if positions_T is None:
        positions_T = jnp.arange(hidden_TD.shape[0], dtype=jnp.int32)
    kept_present_K = None if present_T is None else present_T[kept_K]
    contextual, patches_of, apply = COMPILED if compile_layers else PLAIN

    patches, numbers = [], []
    full_TD, kept_KD = hidden_TD, hidden_TD[kept_K]
    for block, block_params in zip(blocks, params, strict=True):
        full = contextual(block, block_params, full_TD, positions_T, present_T)
        if loop == "open":
            kept_KD = full_TD[kept_K]
        kept = contextual(block, block_params, kept_KD, positions_T[kept_K], kept_present_K)
        patch, number = patches_of(block, block_params, take(full, kept_K), kept, output)
        if loop == "closed":
            kept_KD = apply(block, block_params, kept, patch)
        full_TD = apply(block, block_params, full, None)
        patches.append(patch)
        numbers.append(number)
    return Bank(tuple(patches), kept_K, tuple(numbers))


def take(midpoint: Midpoint, rows_K: Array) -> Midpoint:
    """The midpoint at some positions."""
    residual_TD = midpoint.residual_TD
    return Midpoint(
        None if residual_TD is None else residual_TD[rows_K], midpoint.mlp_input_TD[rows_K]
    )


def forward(
    blocks: Sequence[ContextualBlock],
    params: Sequence[Params],
    hidden_TD: Array,
    *,
    patches: Sequence[TokenPatch] | None = None,
    positions_T: Array | None = None,
    present_T: Array | None = None,
    compile_layers: bool = False,
) -> Array:
    """Runs a stack, plain or with a patch per row: (T, D) in, (T, D) out.

    Args:
      blocks: the layers.
      params: the parameters of each.
      hidden_TD: (T, D), the embedded tokens.
      patches: one ``TokenPatch`` per layer with a leading axis T, or None for the plain stack.
      positions_T: (T,), position ids; 0..T-1 when left out.
      present_T: (T,), False where a position is padding.
      compile_layers: as in ``stack_patches``.

    Raises:
      ValueError: as many parameters or patches as layers are not given.
    """
    _check_stack("forward", blocks, params, hidden_TD)
    if patches is not None and len(patches) != len(blocks):
        raise ValueError(
            f"forward: patches must hold one patch per layer ({len(blocks)}), got {len(patches)}."
        )
    contextual, _, apply = COMPILED if compile_layers else PLAIN
    for layer, (block, block_params) in enumerate(zip(blocks, params, strict=True)):
        midpoint = contextual(block, block_params, hidden_TD, positions_T, present_T)
        hidden_TD = apply(
            block, block_params, midpoint, None if patches is None else patches[layer]
        )
    return hidden_TD


def patched_forward(
    blocks: Sequence[ContextualBlock],
    params: Sequence[Params],
    hidden_TD: Array,
    bank: Bank,
    *,
    positions_T: Array | None = None,
    present_T: Array | None = None,
    compile_layers: bool = False,
) -> Array:
    """Runs the patched stack on the kept positions alone; the removed ones are never read.

    Arguments as in ``stack_patches``; ``hidden_TD`` is the whole sequence (T, D), and may hold
    anything at removed positions. Returns the outputs (K, D) at the kept positions.

    Raises:
      ValueError: ``hidden_TD`` is no sequence that the kept positions are a part of.
    """
    checks.rank("patched_forward", "hidden_TD", hidden_TD, 2, "(T, D)")
    # Indices outside an array are clamped in JAX: the kept rows alone would be read as others.
    checks.kept_positions("patched_forward", bank.kept_K, hidden_TD.shape[0])
    if positions_T is None:
        positions_T = jnp.arange(hidden_TD.shape[0], dtype=jnp.int32)
    return forward(
        blocks,
        params,
        hidden_TD[bank.kept_K],
        patches=bank.patches,
        positions_T=positions_T[bank.kept_K],
        present_T=None if present_T is None else present_T[bank.kept_K],
        compile_layers=compile_layers,
    )


def compact_bank(bank: Bank) -> Bank:
    """The same bank without the H-vectors of its down patches, which the patched run recomputes.

    What is left are vectors of the model width: at most four per position and layer, whatever the
    width of the MLP. The patched outputs are the same up to rounding; ``down_update`` needs the
    bank as it was.
    """

    def compact(patch: TokenPatch) -> TokenPatch:
        output = patch.output
        if isinstance(output, DownPatch):
            output = compact_down(output)
        elif isinstance(output, BalancedPatch):
            output = dataclasses.replace(output, down=compact_down(output.down))
        return dataclasses.replace(patch, output=output)

    return dataclasses.replace(bank, patches=tuple(compact(patch) for patch in bank.patches))


def check_patchable(bank: Bank) -> None:
    """Raises ValueError when a patch of a computed bank (batched or not) does not exist.

    Runs on the host, after ``jit``: names the layer and the first kept position whose MLP input, or
    hidden activations under a patched down kernel, had length zero or were not finite, or whose
    MLP output had entries that a scale patch would have to divide by zero.
    """
    for layer, (patch, numbers) in enumerate(zip(bank.patches, bank.conditioning, strict=True)):
        if patch.input is not None:
            lengths = np.asarray(numbers.kept_norm)
            index = _first((lengths == 0) | ~np.isfinite(lengths))
            if index is not None:
                raise ValueError(
                    f"check_patchable: the MLP input of layer {layer} at index {index} (prompt "
                    f"axes first, then the kept position) has length {lengths[index]}: no weight "
                    "update changes what it gives. Keep a further position, such as a BOS token."
                )
        down = patch.output.down if isinstance(patch.output, BalancedPatch) else patch.output
        if isinstance(down, DownPatch):
            lengths = np.asarray(down.hidden_norm)
            index = _first((lengths == 0) | ~np.isfinite(lengths))
            if index is not None:
                raise ValueError(
                    f"check_patchable: the hidden activations of layer {layer} at index {index} "
                    f"(prompt axes first, then the kept position) have length {lengths[index]}: no "
                    "update of the down kernel puts the residual change back. Use output='bias' on "
                    "a block with an output bias, or keep a further position."
                )
        if isinstance(patch.output, (ScalePatch, BalancedPatch)):
            index = _first(~np.all(np.isfinite(np.asarray(patch.output.gain_delta_D)), axis=-1))
            if index is not None:
                raise ValueError(
                    f"check_patchable: the MLP's output of layer {layer} at index {index} (prompt "
                    "axes first, then the kept position) has entries of zero, or none at all: its "
                    "norm's gain cannot put the residual change back. Use output='balanced', or "
                    "keep a further position."
                )


def _first(bad: np.ndarray) -> tuple[int, ...] | None:
    """The first index where ``bad`` holds, or None."""
    found = np.argwhere(bad)
    return tuple(int(i) for i in found[0]) if len(found) else None


def _check_stack(
    where: str,
    blocks: Sequence[ContextualBlock],
    params: Sequence[Params],
    hidden_TD: Array,
) -> None:
    if not blocks:
        raise ValueError(f"{where}: blocks is empty; a stack has at least one layer.")
    if len(blocks) != len(params):
        raise ValueError(
            f"{where}: params must hold the parameters of each of the {len(blocks)} blocks, got "
            f"{len(params)} trees."
        )
    checks.rank(where, "hidden_TD", hidden_TD, 2, "(T, D)")
    checks.floating(where, "hidden_TD", hidden_TD)
