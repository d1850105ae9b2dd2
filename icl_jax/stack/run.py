"""The plain pass through a stack, and the same with a patch per row."""

import functools
from typing import Any

import jax

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.stack.block import apply_block, settled
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import Layers, PerLayer


def forward(
    layers: Layers,
    hidden_TD: Array,
    *,
    patches: PerLayer[Any] | None = None,
    positions_T: Array | None = None,
    present_T: Array | None = None,
    remat: bool = False,
) -> Array:
    """Runs a stack, plain or with a patch per row: (T, D) in, (T, D) out, one program.

    Args:
      layers: the stack.
      hidden_TD: (T, D), the embedded tokens.
      patches: one ``TokenPatch`` per layer with a leading axis T, or None for the plain stack.
      positions_T: (T,), integer position ids; 0..T-1 when left out.
      present_T: (T,), False where a position is padding.
      remat: whether a gradient through it recomputes the layers instead of keeping their states.

    Raises:
      ValueError: no layers, patches of another stack, or shapes that do not fit.
      TypeError: ``hidden_TD`` is not floating point.
    """
    check_run("forward", layers, hidden_TD, positions_T, present_T)
    if patches is not None and len(patches) != len(layers):
        raise ValueError(
            f"forward: patches must hold one patch per layer ({len(layers)}), got {len(patches)}."
        )
    return _forward(layers, hidden_TD, patches, positions_T, present_T, remat=remat)


@functools.partial(jax.jit, static_argnames="remat")
def _forward(
    layers: Layers,
    hidden_TD: Array,
    patches: PerLayer[Any] | None,
    positions_T: Array | None,
    present_T: Array | None,
    *,
    remat: bool,
) -> Array:
    def step(block: Any, params: Any, state_TD: Array, patch: Any) -> tuple[Array, None]:
        midpoint = block.contextual(params, state_TD, positions_T=positions_T, present_T=present_T)
        if patch is None:
            return apply_block(block, params, midpoint), None
        # The steps of ``patches.bank``, kept apart in the same places.
        midpoint, patch = settled((midpoint, patch))
        return settled(apply_block(block, params, midpoint, patch)), None

    return fold(layers, step, hidden_TD, patches, remat=remat)[0]


def check_run(
    where: str,
    layers: Layers,
    hidden_TD: Array,
    positions_T: Array | None = None,
    present_T: Array | None = None,
) -> None:
    """Raises where a sequence cannot run through a stack.

    Raises:
      ValueError: no layers; a sequence that is no matrix, or position ids or a mask of another
        length; a mask that is no mask.
      TypeError: a sequence that is not floating point, or position ids that are not integers.
    """
    if not isinstance(layers, Layers):
        raise TypeError(
            f"{where}: layers must be a Layers, got {type(layers).__name__}. Make one with "
            "functional(stack, params), or with stack_layers(blocks, params) from blocks of your "
            "own."
        )
    if not len(layers):
        raise ValueError(f"{where}: the stack is empty; a stack has at least one layer.")
    checks.rank(where, "hidden_TD", hidden_TD, 2, "(T, D)")
    checks.floating(where, "hidden_TD", hidden_TD)
    checks.places(where, hidden_TD.shape[0], positions_T, present_T)
