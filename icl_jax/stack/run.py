"""The plain pass through a stack, and the same with a patch per row."""

import functools
from collections.abc import Collection
from typing import Any

import jax

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.stack.layers import Layers, PerLayer
from icl_jax.stack.settled import settled, settled_where_narrow
from icl_jax.stack.sites import Edits, Seen, Visit, Watch, feed, named, watch, watched_fold


def forward(
    layers: Layers,
    stream_TD: Array,
    *,
    patches: PerLayer[Any] | None = None,
    positions_T: Array | None = None,
    present_T: Array | None = None,
    remat: bool = False,
) -> Array:
    """Runs a stack, plain or with a patch per row: (T, D) in, (T, D) out, one program.

    The rows are all that there is: a row that is not in ``stream_TD`` is seen by no layer. For the
    kept rows of a longer sequence ``patches.patched_forward`` picks them, their patches and their
    position ids.

    Args:
      layers: the stack.
      stream_TD: (T, D), the embedded tokens.
      patches: one ``TokenPatch`` per layer with a leading axis T, or None for the plain stack.
      positions_T: (T,), integer position ids; 0..T-1 when left out.
      present_T: (T,), False where a position is padding.
      remat: whether a gradient through it recomputes the layers instead of keeping their states.

    Raises:
      ValueError: no layers, patches of another stack, or shapes that do not fit.
      TypeError: ``stream_TD`` is not floating point.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> forward(functional(stack, params), stream).shape
      (6, 8)
    """
    check_run("forward", layers, stream_TD, positions_T, present_T)
    if patches is not None and len(patches) != len(layers):
        raise ValueError(
            f"forward: patches must hold one patch per layer ({len(layers)}), got {len(patches)}."
        )
    nothing = watch("forward", layers)
    return run_watched(layers, stream_TD, patches, nothing, positions_T, present_T, remat=remat)[0]


def observed_forward(
    layers: Layers,
    stream_TD: Array,
    *,
    capture: Collection[str] = (),
    edit: Edits | None = None,
    patches: PerLayer[Any] | None = None,
    positions_T: Array | None = None,
    present_T: Array | None = None,
    remat: bool = False,
) -> tuple[Array, dict[str, Array]]:
    """``forward``, with activations read, edited or replaced on the way.

    Args:
      layers, stream_TD, patches, positions_T, present_T, remat: as in ``forward``.
      capture: names such as ``layers.5.mlp_input``; all of them in ``stack.sites``.
      edit: name -> ``function(values_TD) -> values_TD``, or an array in the place of the values. A
        new function is a new program; ``jax.tree_util.Partial(function, *arrays)`` of a function
        that stays is not, whatever the arrays.

    Returns:
      The output (T, D), and name -> what was there, after an edit: (T, D) or (T, H), of
      ``layers.*`` (L, T, ...).

    Raises:
      ValueError: as ``forward``; no such name; an edit that gives another shape or dtype.
      TypeError: as ``forward``; an edit that is neither function nor array.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> output, seen = observed_forward(
      ...     functional(stack, params), stream, capture=("layers.0.mlp_input",)
      ... )
      >>> seen["layers.0.mlp_input"].shape
      (6, 8)
    """
    check_run("observed_forward", layers, stream_TD, positions_T, present_T)
    watching = watch("observed_forward", layers, capture, edit)
    places = (positions_T, present_T)
    output_TD, seen = run_watched(layers, stream_TD, patches, watching, *places, remat=remat)
    return output_TD, named(capture, watching, seen)


@functools.partial(jax.jit, static_argnames="remat")
def run_watched(
    layers: Layers,
    stream_TD: Array,
    patches: PerLayer[Any] | None,
    watching: Watch,
    positions_T: Array | None = None,
    present_T: Array | None = None,
    *,
    remat: bool = False,
) -> tuple[Array, Seen]:
    """The output, and what was captured, by number; for callers that have checked."""

    def step(
        visit: Visit, block: Any, params: Any, state_TD: Array, patch: Any, seen: Seen
    ) -> tuple[Array, None, Seen]:
        places = {"positions_T": positions_T, "present_T": present_T}
        state_TD, seen = visit.at("residual", state_TD, seen)
        if visit.sees("mixed"):
            mixed_TD, seen = visit.at("mixed", block.mixed(params, state_TD, **places), seen)
            midpoint = block.join(params, state_TD, mixed_TD)
        else:
            midpoint = block.contextual(params, state_TD, **places)
        # The steps of ``patches.extraction``, kept apart in the same places.
        apart = settled_where_narrow if patch is None else settled
        midpoint, patch = apart((midpoint, patch))
        state_TD, seen = feed(visit, block, params, midpoint, seen, patch)
        return apart(state_TD), None, seen

    state_TD, _, seen = watched_fold(layers, step, stream_TD, watching, patches, remat=remat)
    return state_TD, seen


def check_run(
    where: str,
    layers: Layers,
    stream_TD: Array,
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
    checks.rank(where, "stream_TD", stream_TD, 2, "(T, D)")
    checks.floating(where, "stream_TD", stream_TD)
    checks.places(where, stream_TD.shape[0], positions_T, present_T)
