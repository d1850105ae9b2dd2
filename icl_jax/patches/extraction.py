"""Patches of a whole stack: every kept position in every layer, made and applied.

By induction over the layers: patch layer 0 so that its output on the kept positions equals its
output with everything; then layer 1 reads the same input and only its contextual layer differs.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.patches.bank import Bank, check_patchable
from icl_jax.patches.block import (
    SplitBlock,
    TokenPatch,
    input_patches,
    output_patches,
)
from icl_jax.patches.output import OutputPolicy
from icl_jax.patches.prediction import check_open_loop, open_loop_rounding
from icl_jax.patches.token import Conditioning
from icl_jax.stack.block import ContextualBlock, Midpoint, apply_block, take
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import Layers
from icl_jax.stack.run import check_run, forward
from icl_jax.stack.settled import settled, settled_where_narrow

#: ``closed``: each patch repairs the state that the patched run really has. ``open``: all patches
#: from the run with everything; rounding adds up over the layers.
Loop = Literal["closed", "open"]
LOOPS = ("closed", "open")


def stack_patches(
    layers: Layers,
    stream_TD: Array,
    kept_K: Array | Sequence[int] | np.ndarray,
    *,
    positions_T: Array | None = None,
    present_T: Array | None = None,
    loop: Loop = "closed",
    output: OutputPolicy = "auto",
) -> Bank:
    """The patches with which a stack, run on the kept positions alone, gives the full run's output.

    One program, whatever the depth, compiled once per stack and shapes.

    Args:
      layers: the stack; ``functional(stack, params)``, or ``stack_layers`` of your own blocks.
      stream_TD: (T, D), the embedded sequence, everything there.
      kept_K: (K,), the positions to keep, increasing; the others are removed.
      positions_T: (T,), integer position ids; 0..T-1 when left out. Kept tokens keep theirs.
      present_T: (T,), False where a position is padding; all present when left out.
      loop: ``closed`` (default) or ``open``.
      output: which weight carries the residual change.

    Returns:
      The bank; ``patched_forward`` applies it.

    Raises:
      ValueError: no layers, bad kept positions (see ``checks.kept_positions``), unknown loop or
        policy, or (outside jit) a position that has no patch, or patches that an open loop would
        turn into noise; inside jit ask ``check_patchable`` and ``patches.prediction``.
      TypeError: ``stream_TD`` is not floating point.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(layers, stream, [5])  # keep the last token only
      >>> patched = patched_forward(layers, stream, bank)
      >>> bool(jnp.allclose(patched, forward(layers, stream)[5:], atol=1e-5))
      True

    Source: Goldwaser et al. (arXiv 2511.17864), the layer-by-layer algorithm (closed loop).
    """
    check_run("stack_patches", layers, stream_TD, positions_T, present_T)
    checks.one_of("stack_patches", "loop", loop, LOOPS)
    kept_K = checks.kept_positions("stack_patches", kept_K, stream_TD.shape[0])
    bank = extract(layers, stream_TD, kept_K, positions_T, present_T, loop=loop, output=output)
    if checks.is_concrete(bank.kept_K) and checks.is_concrete(jax.tree.leaves(bank.patches)[0]):
        check_patchable(bank)
        if loop == "open":
            check_open_loop(bank.conditioning, open_loop_rounding(layers, stream_TD.dtype))
    return bank


@functools.partial(jax.jit, static_argnames=("loop", "output"))
def extract(
    layers: Layers,
    stream_TD: Array,
    kept_K: Array,
    positions_T: Array | None = None,
    present_T: Array | None = None,
    present_K: Array | None = None,
    *,
    loop: Loop,
    output: OutputPolicy,
) -> Bank:
    """``stack_patches`` without a look at values, for callers that have had theirs.

    ``present_K`` (K,) is False where a kept row is padding, which may then be any row again.
    """
    positions_K = kept_K if positions_T is None else positions_T[kept_K]
    if present_K is None and present_T is not None:
        present_K = present_T[kept_K]

    def step(
        block: ContextualBlock, params: Params, state: tuple[Array, Array], _: None
    ) -> tuple[tuple[Array, Array], tuple[TokenPatch, Conditioning]]:
        full_TD, kept_KD = state
        full = block.contextual(params, full_TD, positions_T=positions_T, present_T=present_T)
        kept = block.contextual(params, kept_KD, positions_T=positions_K, present_T=present_K)
        (full_TD, kept_KD), found = closed_step(block, params, full, kept, kept_K, output)
        return (full_TD, full_TD[kept_K] if loop == "open" else kept_KD), found

    _, found = fold(layers, step, (stream_TD, stream_TD[kept_K]))
    return Bank(
        found.map(lambda pair: pair[0]), kept_K, positions_K, found.map(lambda pair: pair[1])
    )


def closed_step(
    block: ContextualBlock,
    params: Params,
    full: Midpoint,
    kept: Midpoint,
    rows_K: Array,
    output: OutputPolicy,
) -> tuple[tuple[Array, Array], tuple[TokenPatch, Conditioning]]:
    """One layer of closed-loop extraction, after both contextual layers.

    Args:
      block: the block.
      params: its parameters.
      full: midpoints (T, D) of the run with everything.
      kept: midpoints (K, D) of the patched run.
      rows_K: (K,), where the kept positions stand among the T.
      output: which weight carries the residual change.

    Returns:
      The states after the layer, plain (T, D) and patched (K, D); and the patches with their
      conditioning.
    """
    full, kept = settled((full, kept))
    full_TD = settled(apply_block(block, params, full))
    at_rows = take(full, rows_K)
    factor = settled(input_patches(block, at_rows, kept))
    # One ``a`` for the patch and for the run that it is used in.
    hidden_KH = settled(block.hidden(params, kept.mlp_input_TD, factor))
    patch, numbers = output_patches(
        block, params, at_rows, kept, factor, hidden_KH, output, full_output_KD=full_TD[rows_K]
    )
    patch = settled(patch)
    return (full_TD, settled(block.output(params, kept, hidden_KH, patch))), (patch, numbers)


def joint_step(
    block: SplitBlock, params: Params, full: Midpoint, kept: Midpoint, output: OutputPolicy
) -> tuple[tuple[Array, Array], tuple[TokenPatch, Conditioning]]:
    """``closed_step`` with both runs' rows in one product, so that weights are read once.

    For the few rows of a step of generation, where reading the weights is what takes the time; the
    same up to the rounding of products of another shape. ``full`` has the kept rows only (K, D).
    """
    full, kept = settled_where_narrow((full, kept))  # As in the run that this one is beside.
    count = full.mlp_input_TD.shape[0]
    factor = input_patches(block, full, kept)
    rows = _on_top(full, kept)
    factors = None if factor is None else _on_top(jax.tree.map(jnp.zeros_like, factor), factor)
    hidden_XH = settled(block.hidden(params, rows.mlp_input_TD, factors))
    output_XD = settled(block.mlp_output(params, rows.mlp_input_TD, hidden_XH, factors))
    # What the patch has to reach is the state that the other run has stored.
    full_KD = settled(block.finish(params, full, output_XD[:count], hidden_XH[:count], None))
    output_KD, hidden_KH = output_XD[count:], hidden_XH[count:]
    patch, numbers = output_patches(
        block,
        params,
        full,
        kept,
        factor,
        hidden_KH,
        output,
        full_output_KD=full_KD,
        output_KD=output_KD,
    )
    kept_KD = settled(block.finish(params, kept, output_KD, hidden_KH, patch))
    return (full_KD, kept_KD), (patch, numbers)


def _on_top(upper: Any, lower: Any) -> Any:
    return jax.tree.map(lambda *rows: jnp.concatenate(rows), upper, lower)


def patched_forward(
    layers: Layers, stream_TD: Array, bank: Bank, *, present_T: Array | None = None
) -> Array:
    """Runs the patched stack on the kept positions alone; the removed ones are never read.

    Arguments as in ``stack_patches``; ``stream_TD`` is the whole sequence (T, D), and may hold
    anything at removed positions. Returns the outputs (K, D) at the kept positions.

    Raises:
      ValueError: ``stream_TD`` is no sequence that the kept positions are a part of; a mask of
        another length, or position ids in the bank that do not increase.
      TypeError: ``stream_TD`` is not floating point, a mask that is not boolean, or position ids in
        the bank that are not signed integers.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> bank = stack_patches(layers, stream, [5])
      >>> forgotten = stream.at[:5].set(jnp.nan)  # the context is never read
      >>> patched = patched_forward(layers, forgotten, bank)
      >>> bool(jnp.allclose(patched, forward(layers, stream)[5:], atol=1e-5))
      True
    """
    check_run("patched_forward", layers, stream_TD, None, present_T)
    # Indices outside an array are clamped in JAX: the kept rows alone would be read as others.
    kept_K = checks.kept_positions("patched_forward", bank.kept_K, stream_TD.shape[0])
    present_K = None if present_T is None else present_T[kept_K]
    checks.places("patched_forward", kept_K.shape[0], bank.positions_K, present_K, "K")
    return forward(
        layers,
        stream_TD[kept_K],
        patches=bank.patches,
        positions_T=bank.positions_K,
        present_T=present_K,
    )
