"""Named activations of a stack: read, edited or replaced where they arise, in the one fold.

A name is ``layers.N.SITE``; N counts from 0, from the end where it is negative, and is ``*`` for
every layer (what is read is then stacked, (L, T, ...)). SITE is one of

    residual    (T, D)  what the layer is given: the residual stream in front of it
    mixed       (T, D)  what its contextual layer gives, before a norm on it and the skip
    mlp_input   (T, D)  what its MLP reads, behind the norm
    hidden      (T, H)  what enters the MLP's last kernel
    output      (T, D)  what it hands on

Which layer is meant is data that the fold carries, a boolean per layer: nothing is unrolled, and
another layer of the same design is the same program. What is captured is what the run goes on with:
an edit of the same place has been done.
"""

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from icl_jax.dims import Array, Params
from icl_jax.stack.block import ContextualBlock, Midpoint
from icl_jax.stack.fold import check_given, fold
from icl_jax.stack.layers import Layers, PerLayer, side_by_side
from icl_jax.stack.settled import settled

SITES = ("residual", "mixed", "mlp_input", "hidden", "output")

#: ``function(values_TD) -> values_TD``, or what the values are replaced by, (T, D) or (D).
Edit = Callable[[Array], Array] | Array | np.ndarray
Edits = Mapping[str, Edit]
#: What has been captured, by the number of its name.
Seen = dict[int, Array]
#: ``step(visit, block, params, state, given, seen) -> (state, found, seen)``, of one layer.
WatchedStep = Callable[["Visit", Any, Params, Any, Any, Seen], tuple[Any, Any, Seen]]

_NAME = re.compile(r"layers\.(\*|-?\d+)\.(\w+)")


@runtime_checkable
class OpenBlock(Protocol):
    """A block whose contextual layer can be watched: its first half in two."""

    def mixed(
        self,
        params: Params,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """What the contextual layer gives (T, D)."""

    def join(self, params: Params, stream_TD: Array, mixed_TD: Array) -> Midpoint:
        """It, joined to the residual stream, and what the MLP reads of that."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Watch:
    """What of a run is edited and captured; names are numbered, those of edits first.

    Attributes:
      marks: of every layer: number of a name -> whether this is its layer, (R,) booleans; None
        where it is every layer's. Names of other layers are not there.
      functions: the edits; what they close over as a ``Partial`` is data.
      sites: of every name.
    """

    marks: PerLayer[dict[int, Array | None]]
    functions: tuple[Partial, ...]
    sites: tuple[str, ...] = field(metadata={"static": True})

    def outside(self) -> "Visit":
        """What is watched in front of the layers and behind them."""
        ends = (number for number, site in enumerate(self.sites) if site not in SITES)
        return Visit(self, dict.fromkeys(ends))


@dataclass(frozen=True)
class Visit:
    """What is watched in one layer (or around all); made inside a step of the fold."""

    watch: Watch
    marks: Mapping[int, Array | None]

    def sees(self, site: str) -> bool:
        """Whether anything is watched at a site of this layer, or of one with the same program."""
        return any(self.watch.sites[number] == site for number in self.marks)

    def at(self, site: str, values_TD: Array, seen: Seen) -> tuple[Array, Seen]:
        """The values that the run goes on with, and what has been captured so far."""
        edits = self.watch.functions
        for number, here in self.marks.items():  # Of a dictionary that jax has sorted.
            if self.watch.sites[number] != site:
                continue
            if number < len(edits):
                values_TD = _edited(site, values_TD, here, edits[number])
            elif here is None or number not in seen:
                seen = {**seen, number: values_TD}
            else:
                seen = {**seen, number: jnp.where(here, values_TD, seen[number])}
        return values_TD, seen


def feed(
    visit: Visit,
    block: ContextualBlock,
    params: Params,
    midpoint: Midpoint,
    seen: Seen,
    patch: Any = None,
) -> tuple[Array, Seen]:
    """The second half of a block, watched, and patched row by row or plain."""
    mlp_input_TD, seen = visit.at("mlp_input", midpoint.mlp_input_TD, seen)
    midpoint = Midpoint(midpoint.residual_TD, mlp_input_TD)
    factor = None if patch is None else patch.input
    hidden_TH = block.hidden(params, mlp_input_TD, factor)
    if patch is not None:  # The steps of ``apply_block``, kept apart in the same place.
        hidden_TH = settled(hidden_TH)
    hidden_TH, seen = visit.at("hidden", hidden_TH, seen)
    return visit.at("output", block.output(params, midpoint, hidden_TH, patch), seen)


def watched_fold(
    layers: Layers,
    step: WatchedStep,
    state: Any,
    watch: Watch,
    given: PerLayer[Any] | None = None,
    *,
    remat: bool = False,
) -> tuple[Any, PerLayer[Any], Seen]:
    """``fold`` of steps that also carry what has been captured.

    Args:
      layers: the stack.
      step: ``(visit, block, params, state, given, seen) -> (state, found, seen)``.
      state: what the first layer starts from.
      watch: what to edit and to capture.
      given, remat: see ``fold``.

    Returns:
      The last state, what was found in every layer, and all that was captured: (T, ...), and
      (L, T, ...) of names of every layer.

    Raises:
      ValueError: a name of every layer where layers differ in shape, or ``given`` of another stack.
    """
    given = layers.params.map(lambda _: None) if given is None else given
    check_given(layers, given)
    rows = side_by_side(given, watch.marks)

    def look(block: Any, params: Any, state: Any, row: Any) -> tuple[Any, Seen]:
        state, _, seen = step(Visit(watch, row[1]), block, params, state, row[0], {})
        return state, {number: seen[number] for number in seen if row[1][number] is not None}

    def carry(block: Any, params: Any, state: Any, row: Any) -> tuple[Any, tuple[Any, Seen]]:
        state, found, seen = step(Visit(watch, row[1]), block, params, state[0], row[0], state[1])
        every = {one: seen[one] for one, here in row[1].items() if is_capture(one, here)}
        return (state, {number: seen[number] for number in room}), (found, every)

    def is_capture(number: int, here: Array | None) -> bool:
        return here is None and number >= len(watch.functions)

    room: Seen = {}
    if len(watch.sites) > len(watch.functions):
        for period in jax.eval_shape(lambda: fold(layers, look, state, rows)[1]).segments:
            for one in period:
                room |= {key: jnp.zeros(leaf.shape[1:], leaf.dtype) for key, leaf in one.items()}
    (state, seen), found = fold(layers, carry, (state, room), rows, remat=remat)
    every = found.map(lambda pair: pair[1])
    kinds = {str(jax.tree.map(lambda leaf: leaf.shape[1:], one)) for one in chain(*every.segments)}
    if len(kinds) > 1:
        raise ValueError(
            "capture: layers.* needs layers of one shape, and this stack has several. Name each."
        )
    return state, found.map(lambda pair: pair[0]), {**seen, **every.joined()}


def watch(
    where: str,
    layers: Layers,
    capture: Collection[str] = (),
    edit: Edits | None = None,
    ends: tuple[str, ...] = (),
) -> Watch:
    """What to edit and to capture, by names, checked.

    Args:
      where: the caller, for errors.
      layers: the stack.
      capture: names.
      edit: name -> function of the values, or what replaces them.
      ends: names of what is not in a layer.

    Raises:
      ValueError: a name that is none, or of a layer that is not there.
      TypeError: an edit that is neither; a block that cannot be opened there.
    """
    if isinstance(capture, str):
        raise TypeError(
            f"{where}: capture must hold names, got the text {capture!r}. Write ({capture!r},)."
        )
    edit = {} if edit is None else edit
    names = (*edit, *capture)
    places = layers.params.places()
    marks: list[list[dict[int, Any]]] = [[{} for _ in period] for period in layers.designs]
    sites = []
    for number, name in enumerate(names):
        layer, site = parsed(where, name, len(places), ends)
        sites.append(site)
        if site not in SITES:
            continue
        for place in set(places) if layer is None else {places[layer]}:
            block = layers.designs[place.segment][place.block]
            if site == "mixed" and not isinstance(block, OpenBlock):
                raise TypeError(
                    f"{where}: {name}: a {type(block).__name__} gives its midpoint in one piece. "
                    "Give it the methods mixed and join (stack.sites.OpenBlock)."
                )
            repeats = layers.params.repeats[place.segment]
            hit_R = None if layer is None else np.arange(repeats) == place.repeat
            marks[place.segment][place.block][number] = hit_R
    functions = tuple(_function(where, name, one) for name, one in edit.items())
    segments = tuple(tuple(period) for period in marks)
    return Watch(PerLayer(segments, layers.params.repeats), functions, tuple(sites))


def named(capture: Collection[str], watching: Watch, seen: Seen) -> dict[str, Array]:
    """What was captured, by name."""
    first = len(watching.functions)
    return {name: seen[first + number] for number, name in enumerate(capture)}


def parsed(where: str, name: str, depth: int, ends: tuple[str, ...]) -> tuple[int | None, str]:
    """Layer (None for every one, or for none of them) and site of a name.

    Raises:
      ValueError: no such name; with the nearest that there is.
    """
    if name in ends:
        return None, name
    match = _NAME.fullmatch(name) if isinstance(name, str) else None
    if match is None or match[2] not in SITES:
        layer = "N" if match is None else match[1]
        known = [*ends, *(f"layers.{layer}.{site}" for site in SITES)]
        near = difflib.get_close_matches(str(name), known, 1, 0.6)
        hint = f"Did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{where}: there is no activation {name!r}. {hint}Names are "
            f"{', '.join([*ends, 'layers.N.SITE'])}, SITE one of {', '.join(SITES)}, N a layer "
            f"from 0 to {depth - 1}, or * for all."
        )
    if match[1] == "*":
        return None, match[2]
    layer = int(match[1])
    if not -depth <= layer < depth:
        raise ValueError(f"{where}: {name!r}: layers run from 0 to {depth - 1}.")
    return layer, match[2]


def _function(where: str, name: str, edit: Edit) -> Partial:
    if isinstance(edit, Partial):
        return edit
    if isinstance(edit, jax.Array | np.ndarray):
        return Partial(_replaced, edit)
    if not callable(edit):
        raise TypeError(
            f"{where}: edit[{name!r}] must be a function of the values or an array that replaces "
            f"them, got {type(edit).__name__}."
        )
    return Partial(edit)


def _replaced(new: Array, values_TD: Array) -> Array:
    if new.shape != values_TD.shape and new.shape != values_TD.shape[-1:]:
        raise ValueError(
            f"an array that replaces values {values_TD.shape} must have that shape, or "
            f"{values_TD.shape[-1:]} for every row, got {new.shape}."
        )
    return jnp.broadcast_to(new, values_TD.shape)


def _edited(site: str, values_TD: Array, here: Array | None, function: Partial) -> Array:
    """The values after an edit, if it is this layer's."""
    new = jax.eval_shape(function, values_TD)
    got = getattr(new, "shape", None), getattr(new, "dtype", None)
    if got != (values_TD.shape, values_TD.dtype):
        raise ValueError(
            f"edit of {site}: the function must give what it is given, {values_TD.dtype} "
            f"{values_TD.shape}, got {got[1]} {got[0]}. Try .astype(values.dtype)."
        )
    if here is None:
        return function(values_TD)
    # Not a select: elsewhere the function is not asked, and its NaN would spoil a gradient.
    return jax.lax.cond(here, function, lambda same_TD: same_TD, values_TD)
