"""Writing on the device: the beginning of a text, and the loop that goes on (``text.py``: a text).

One program reads the prompts and draws the first token (``begin``), one writes the others
(``go_on``): a ``while_loop`` over tokens around the fold over layers, with the draws and the stop
tokens inside. What is before lies in stacked memories, (R, B, S, ...) per segment.
"""

import functools
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.memory import newest, with_newest
from icl_jax.blocks.views import Slots, free_slots, occupy
from icl_jax.dims import Array, Params
from icl_jax.language.batch import Prompts, over_prompts, padded_positions
from icl_jax.language.ends import embed, head, readout, states
from icl_jax.language.sampling import Sampling
from icl_jax.language.text import (
    PatchedText,
    Run,
    Text,
    begun,
    blank,
    blank_patched,
    drawn,
    drawn_patched,
    grown,
    last_tokens,
    tokens_seen,
    with_row,
)
from icl_jax.patches.bank import Bank, compact_bank, patchable
from icl_jax.patches.extraction import closed_step, joint_step
from icl_jax.patches.output import OutputPolicy
from icl_jax.sharding import constrain
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import PerLayer, side_by_side
from icl_jax.stack.settled import settled_where_narrow
from icl_jax.stack.sites import Seen, Visit, Watch, feed, watched_fold

#: Names of what is watched around the layers; see ``observed.py``.
ENDS = ("embedding", "final")


@functools.partial(jax.jit, static_argnames=("model", "room", "sampling"))
def begin(
    model: LanguageModel,
    params: Params,
    prompts: Prompts,
    positions_BT: Array | None,
    keys_B: Array,
    stop_S: Array,
    watching: Watch,
    *,
    room: int,
    sampling: Sampling,
) -> Text:
    """Reads the prompts and draws the first token.

    Args:
      model, params: of causal layers with memories.
      prompts: padded at their ends.
      positions_BT: (B, T), position ids; 0..T-1 when left out.
      keys_B: (B,), of the draws.
      stop_S: (S,), stop tokens.
      watching: what to edit and to capture.
      room: how many new tokens there may be.
      sampling: how tokens are drawn.
    """
    prompts = constrain(prompts)

    def one(
        tokens_T: Array, length: Array, positions_T: Array | None
    ) -> tuple[Array, Array, PerLayer[Any], Slots, Seen]:
        if positions_T is None:
            positions_T = padded_positions(model, length, tokens_T.shape[0])
        slots, memories = _fresh(model, params, tokens_T, length, positions_T, room)
        last = length - 1
        logits_V, memories, seen = _read(
            model, params, tokens_T, positions_T, last, memories, slots, watching
        )
        position = last if positions_T is None else positions_T[last]
        return logits_V, position, memories, slots, seen

    logits_BV, position_B, memories, slots, seen = over_prompts(
        one,
        prompts.length_B.shape[0],
        in_axes=(0, 0, None if positions_BT is None else 0),
        out_axes=(0, 0, 1, 0, 0),
    )(prompts.tokens_BT, prompts.length_B, positions_BT)
    run = begun(memories, slots, prompts.tokens_BT.shape[1])
    text = blank(run, position_B, keys_B, room, tokens_seen(model, prompts, sampling))
    rows = {
        number: jnp.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, room), (0, 0)])
        for number, values in seen.items()
    }
    text = replace(text, seen=rows)
    return drawn(text, logits_BV, stop_S, sampling)


@functools.partial(jax.jit, static_argnames=("model", "sampling"), donate_argnames="text")
def go_on(
    model: LanguageModel,
    params: Params,
    text: Text,
    limit: Array | int,
    stop_S: Array,
    watching: Watch,
    *,
    sampling: Sampling,
) -> Text:
    """Writes until there are ``limit`` tokens, or a stop token in every text."""

    def step(text: Text) -> Text:
        text, places = grown(text)

        def one(token: Array, position: Array, slots: Slots, memories: Any) -> tuple[Any, ...]:
            new = (token[None], position[None])
            return _read(model, params, *new, 0, memories, slots, watching)

        logits_BV, new, seen = over_prompts(
            one, text.position_B.shape[0], in_axes=(0, 0, _SLOTS, 1), out_axes=(0, 1, 0)
        )(last_tokens(text), text.position_B, places[0], text.runs[0].memories)
        longer = {
            number: jax.lax.dynamic_update_slice_in_dim(
                text.seen[number], row, places[0].start, axis=row.ndim - 2
            )
            for number, row in seen.items()
        }
        text = replace(text, runs=(_longer(text.runs[0], new, places[0]),), seen=longer)
        return drawn(text, logits_BV, stop_S, sampling)

    return _while(text, limit, step)


@functools.partial(jax.jit, static_argnames=("model", "room", "sampling", "output"))
def begin_patched(
    model: LanguageModel,
    params: Params,
    prompts: Prompts,
    keys_B: Array,
    stop_S: Array,
    *,
    room: int,
    sampling: Sampling,
    output: OutputPolicy,
) -> PatchedText:
    """As ``begin``, with the kept positions in a patched run beside the one with everything."""
    prompts = constrain(prompts)
    layers = functional(model, params)

    def one(tokens_T: Array, length: Array, kept_K: Array, num_kept: Array) -> Any:
        positions_T = padded_positions(model, length, tokens_T.shape[0])
        full_slots, full_memories = _fresh(model, params, tokens_T, length, positions_T, room)
        kept_slots, kept_memories = _fresh(model, params, tokens_T[kept_K], num_kept, kept_K, room)
        places = (full_slots, kept_slots)

        def step(block: FlaxBlock, layer: Params, state: Any, memories: Any) -> Any:
            (full, kept), memories = block.extend(layer, state, memories, places)
            state, found = closed_step(block, layer, full, kept, kept_K, output)
            return state, (memories, found)

        full_TD = embed(model, params, tokens_T)
        state = (full_TD, embed(model, params, tokens_T[kept_K], kept_K))
        both = side_by_side(full_memories, kept_memories)
        (full_TD, kept_KD), found = fold(layers, step, state, both)
        rows_2D = jnp.stack([full_TD[length - 1], kept_KD[num_kept - 1]])
        patches = found.map(lambda one: one[1][0])
        bank = compact_bank(Bank(patches, kept_K, kept_K, found.map(lambda one: one[1][1])))
        memories = [found.map(lambda one: one[0][0]), found.map(lambda one: one[0][1])]
        return readout(model, params, rows_2D), bank, patchable(bank), places, *memories

    logits_B2V, bank, sound_B, places, *memories = over_prompts(
        one, prompts.length_B.shape[0], out_axes=(0, 0, 0, 0, 1, 1)
    )(prompts.tokens_BT, prompts.length_B, prompts.kept_BK, prompts.num_kept_B)
    sizes = (prompts.tokens_BT.shape[1], prompts.kept_BK.shape[1])
    runs = tuple(map(begun, memories, places, sizes))
    text = blank(runs[0], prompts.length_B - 1, keys_B, room, tokens_seen(model, prompts, sampling))
    text = blank_patched(text, runs, bank, logits_B2V, room)
    return drawn_patched(text, logits_B2V, sound_B, stop_S, sampling)


@functools.partial(jax.jit, static_argnames=("model", "sampling", "output"), donate_argnames="text")
def go_on_patched(
    model: LanguageModel,
    params: Params,
    text: PatchedText,
    limit: Array | int,
    stop_S: Array,
    *,
    sampling: Sampling,
    output: OutputPolicy,
) -> PatchedText:
    """As ``go_on``, the patched run drawing the tokens and both reading them."""
    layers = functional(model, params)

    def step(text: PatchedText) -> PatchedText:
        text, places = grown(text)

        def one(
            token: Array, position: Array, places: tuple[Slots, ...], *memories: Any
        ) -> tuple[Any, ...]:
            stream_1D = embed(model, params, token[None], position[None])

            def layer_step(block: FlaxBlock, layer: Params, state: Any, memories: Any) -> Any:
                (full, kept), memories = block.extend(layer, state, memories, places)
                state, found = joint_step(block, layer, full, kept, output)
                new = tuple(newest(*one, 1) for one in zip(memories, places, strict=True))
                return state, (new, found)

            state, found = fold(layers, layer_step, (stream_1D, stream_1D), side_by_side(*memories))
            logits_2V = readout(model, params, jnp.concatenate(state))
            patches = found.map(lambda one: one[1][0])
            row = Bank(patches, position[None], position[None], found.map(lambda one: one[1][1]))
            row = compact_bank(row)
            return (
                logits_2V,
                row,
                patchable(row),
                found.map(lambda one: one[0][0]),
                found.map(lambda one: one[0][1]),
            )

        logits_B2V, row, sound_B, *new = over_prompts(
            one,
            text.position_B.shape[0],
            in_axes=(0, 0, (_SLOTS, _SLOTS), 1, 1),
            out_axes=(0, 0, 0, 1, 1),
        )(last_tokens(text), text.position_B, places, *(run.memories for run in text.runs))
        runs = tuple(map(_longer, text.runs, new, places))
        text = replace(
            text, runs=runs, written_bank=with_row(text.written_bank, row, text.step - 1)
        )
        return drawn_patched(text, logits_B2V, sound_B, stop_S, sampling)

    return _while(text, limit, step)


#: Prompts differ in what the slots hold; the slot that comes next is the same for all.
_SLOTS = Slots(0, 0, None)  # type: ignore[arg-type]


def _longer(run: Run, new: PerLayer[Any], slots: Slots) -> Run:
    """The run with what its layers found new, in the slots from the first free one on."""
    both = side_by_side(run.memories, new)
    memories = both.map(lambda pair: with_newest(pair[0], pair[1], slots.start))
    return replace(run, memories=memories)


def _fresh(
    model: LanguageModel,
    params: Params,
    tokens_T: Array,
    length: Array,
    positions_T: Array | None,
    room: int,
) -> tuple[Slots, PerLayer[Any]]:
    """Slots with a prompt in them and room for more, and the empty memories of all layers."""
    size = tokens_T.shape[0]
    count_T = jnp.arange(size, dtype=jnp.int32)
    positions_T = count_T if positions_T is None else positions_T
    slots = occupy(free_slots(size + room), 0, positions_T, count_T < length)
    dtype = params["embedding"].dtype

    def empty(block: FlaxBlock, params: Params, state: Any, _: None) -> tuple[Any, Any]:
        del params
        return state, block.empty_memory(size + room, model.width, dtype)

    return slots, fold(functional(model, params), empty, ())[1]


def _read(
    model: LanguageModel,
    params: Params,
    tokens_M: Array,
    positions_M: Array | None,
    last: Array | int,
    memories: PerLayer[Any],
    slots: Slots,
    watching: Watch,
) -> tuple[Array, PerLayer[Any], Seen]:
    """Logits (V,) behind the row ``last`` of new tokens, what was captured, and the memories.

    Of ``fresh`` slots whole memories; behind other tokens what is new in them.
    """

    def step(
        visit: Visit, block: FlaxBlock, params: Params, state_MD: Array, memory: Any, seen: Seen
    ) -> tuple[Array, Any, Seen]:
        state_MD, seen = visit.at("residual", state_MD, seen)
        run = (params, (state_MD,), (memory,), (slots,))
        if visit.sees("mixed"):
            (mixed_MD,), (memory,) = block.extend_mixed(*run)
            mixed_MD, seen = visit.at("mixed", mixed_MD, seen)
            midpoint = block.join(params, state_MD, mixed_MD)
        else:
            (midpoint,), (memory,) = block.extend(*run)
        state_MD, seen = feed(visit, block, params, settled_where_narrow(midpoint), seen)
        if not slots.fresh:
            memory = newest(memory, slots, state_MD.shape[0])
        return settled_where_narrow(state_MD), memory, seen

    around = watching.outside()
    stream_MD, first = around.at("embedding", embed(model, params, tokens_M, positions_M), {})
    layers = functional(model, params)
    stream_MD, memories, seen = watched_fold(layers, step, stream_MD, watching, memories)
    if around.sees("final"):
        states_MD, first = around.at("final", states(model, params, stream_MD), first)
        logits_1V = head(model, params, states_MD[last][None])
    else:  # Of one row only.
        logits_1V = readout(model, params, stream_MD[last][None])
    return logits_1V[0], memories, {**seen, **first}


def _while(text: Any, limit: Array | int, step: Any) -> Any:
    def unfinished(text: Any) -> Array:
        return (text.step < limit) & ~jnp.all(text.finished_B)

    return jax.lax.while_loop(unfinished, step, text)
