"""Writing on the device: the state of a text, its beginning, and the loop that goes on.

One program reads the prompts and draws the first token (``begin``), one writes the others
(``go_on``): a ``while_loop`` over tokens around the fold over layers, with the draws and the stop
tokens inside. What is before lies in stacked memories, (R, B, S, ...) per segment.
"""

import functools
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax.blocks.functional import FlaxBlock, functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.views import Slots, free_slots, occupy
from icl_jax.dims import Array, Params
from icl_jax.language.batch import Prompts
from icl_jax.language.ends import embed, finite, head, readout, states
from icl_jax.language.sampling import Sampling, draw_token
from icl_jax.measures.distributions import kl_divergence, same_top1
from icl_jax.measures.function_space import relative_error
from icl_jax.patches.bank import Bank, closed_step, compact_bank, joint_step
from icl_jax.patches.output import OutputPolicy
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import PerLayer, side_by_side
from icl_jax.stack.sites import Seen, Visit, Watch, feed, watched_fold

#: Names of what is watched around the layers; see ``observed.py``.
ENDS = ("embedding", "final")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Run:
    """What one run over B texts remembers.

    Attributes:
      memories: of every layer, leaves (R, B, ...).
      positions_BS: (B, S), the position ids in the slots.
      present_BS: (B, S), which slots are in use.
      next_slot: (), the first free slot.
    """

    memories: PerLayer[Any]
    positions_BS: Array
    present_BS: Array
    next_slot: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Text:
    """B texts as they are written.

    Attributes:
      runs: the run with everything; and the patched one, if there is one.
      tokens_BN: (B, N), what has been written.
      count_B: (B,), how many tokens of it count: up to a stop token.
      finished_B: (B,), whether a stop token was written.
      position_B: (B,), the position id of the last token.
      step: (), how many tokens every text has been given.
      keys_B: (B,), of the draws.
      finite_B: (B,), whether all logits so far were numbers; a text with others ends.
      seen_BV: (B, V), the tokens of each prompt and of what follows, for a repetition penalty; None
        without one.
      seen: what is captured, by the number of its name: (B, ..., S, X), a row per slot.
    """

    runs: tuple[Run, ...]
    tokens_BN: Array
    count_B: Array
    finished_B: Array
    position_B: Array
    step: Array
    keys_B: Array
    finite_B: Array
    seen_BV: Array | None
    seen: Seen


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PatchedText(Text):
    """Texts that the patched run writes, with what it is measured by.

    Attributes:
      prompt_bank: of the prompts' kept positions.
      written_bank: of the new tokens (N rows, one is filled per step).
      relative_error_BN, kl_BN, same_top1_BN: of the logits of both runs.
    """

    prompt_bank: Bank
    written_bank: Bank
    relative_error_BN: Array
    kl_BN: Array
    same_top1_BN: Array


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

    def one(
        tokens_T: Array, length: Array, positions_T: Array | None
    ) -> tuple[Array, Array, PerLayer[Any], Slots, Seen]:
        slots, memories = _fresh(model, params, tokens_T, length, positions_T, room)
        last = length - 1
        logits_V, memories, seen = _read(
            model, params, tokens_T, positions_T, last, memories, slots, watching
        )
        position = last if positions_T is None else positions_T[last]
        return logits_V, position, memories, slots, seen

    logits_BV, position_B, memories, slots, seen = jax.vmap(
        one, in_axes=(0, 0, None if positions_BT is None else 0), out_axes=(0, 0, 1, 0, 0)
    )(prompts.tokens_BT, prompts.length_B, positions_BT)
    run = _run(memories, slots, prompts.tokens_BT.shape[1])
    text = _blank(run, position_B, keys_B, room, _seen(model, prompts, sampling))
    rows = {
        number: jnp.pad(values, [(0, 0)] * (values.ndim - 2) + [(0, room), (0, 0)])
        for number, values in seen.items()
    }
    text = replace(text, seen=rows)
    return _drawn(text, logits_BV, stop_S, sampling)


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
        text, places = _grown(text)

        def one(token: Array, position: Array, slots: Slots, memories: Any) -> tuple[Any, ...]:
            new = (token[None], position[None])
            return _read(model, params, *new, 0, memories, slots, watching)

        logits_BV, memories, seen = jax.vmap(one, in_axes=(0, 0, _SLOTS, 1), out_axes=(0, 1, 0))(
            _last_tokens(text), text.position_B, places[0], text.runs[0].memories
        )
        longer = {
            number: jax.lax.dynamic_update_slice_in_dim(
                text.seen[number], row, places[0].start, axis=row.ndim - 2
            )
            for number, row in seen.items()
        }
        text = replace(text, runs=(replace(text.runs[0], memories=memories),), seen=longer)
        return _drawn(text, logits_BV, stop_S, sampling)

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
    layers = functional(model, params)

    def one(tokens_T: Array, length: Array, kept_K: Array, num_kept: Array) -> Any:
        full_slots, full_memories = _fresh(model, params, tokens_T, length, None, room)
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
        return readout(model, params, rows_2D), bank, places, *memories

    logits_B2V, bank, places, *memories = jax.vmap(one, out_axes=(0, 0, 0, 1, 1))(
        prompts.tokens_BT, prompts.length_B, prompts.kept_BK, prompts.num_kept_B
    )
    sizes = (prompts.tokens_BT.shape[1], prompts.kept_BK.shape[1])
    runs = tuple(map(_run, memories, places, sizes))
    count = prompts.tokens_BT.shape[0]

    def rows(axis: int) -> Any:
        def widened(leaf: Array) -> Array:
            shape = (*leaf.shape[:axis], room, *leaf.shape[axis + 1 :])
            return jnp.zeros(shape, leaf.dtype)

        return widened

    written = Bank(
        jax.tree.map(rows(2), bank.patches),
        rows(1)(bank.kept_K),
        rows(1)(bank.positions_K),
        jax.tree.map(rows(2), bank.conditioning),
    )
    seen_BV = _seen(model, prompts, sampling)
    blank = _blank(runs[0], prompts.length_B - 1, keys_B, room, seen_BV)
    measured = jax.eval_shape(jax.vmap(_compared), logits_B2V)
    buffers = [jnp.zeros((count, room), one.dtype) for one in measured]
    fields = {name: getattr(blank, name) for name in Text.__dataclass_fields__}
    text = PatchedText(
        **{**fields, "runs": runs},
        prompt_bank=bank,
        written_bank=written,
        relative_error_BN=buffers[0],
        kl_BN=buffers[1],
        same_top1_BN=buffers[2],
    )
    return _drawn(_measured(text, logits_B2V), logits_B2V[:, 1], stop_S, sampling)


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
        text, places = _grown(text)

        def one(
            token: Array, position: Array, places: tuple[Slots, ...], *memories: Any
        ) -> tuple[Array, Any, Any, Any]:
            stream_1D = embed(model, params, token[None], position[None])

            def layer_step(block: FlaxBlock, layer: Params, state: Any, memories: Any) -> Any:
                (full, kept), memories = block.extend(layer, state, memories, places)
                state, found = joint_step(block, layer, full, kept, output)
                return state, (memories, found)

            state, found = fold(layers, layer_step, (stream_1D, stream_1D), side_by_side(*memories))
            logits_2V = readout(model, params, jnp.concatenate(state))
            patches = found.map(lambda one: one[1][0])
            row = Bank(patches, position[None], position[None], found.map(lambda one: one[1][1]))
            return (
                logits_2V,
                compact_bank(row),
                found.map(lambda one: one[0][0]),
                found.map(lambda one: one[0][1]),
            )

        logits_B2V, row, *memories = jax.vmap(
            one, in_axes=(0, 0, (_SLOTS, _SLOTS), 1, 1), out_axes=(0, 0, 1, 1)
        )(_last_tokens(text), text.position_B, places, *(run.memories for run in text.runs))
        runs = tuple(
            replace(run, memories=one) for run, one in zip(text.runs, memories, strict=True)
        )
        text = replace(
            text, runs=runs, written_bank=_with_row(text.written_bank, row, text.step - 1)
        )
        return _drawn(_measured(text, logits_B2V), logits_B2V[:, 1], stop_S, sampling)

    return _while(text, limit, step)


#: Prompts differ in what the slots hold; the slot that comes next is the same for all.
_SLOTS = Slots(0, 0, None)  # type: ignore[arg-type]


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
    """Logits (V,) behind the row ``last`` of new tokens, longer memories, and what was captured."""

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
        state_MD, seen = feed(visit, block, params, midpoint, seen)
        return state_MD, memory, seen

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


def _run(memories: PerLayer[Any], slots: Slots, size: int) -> Run:
    """A run that has read ``size`` places."""
    return Run(memories, slots.positions_T, slots.present_T, jnp.asarray(size, jnp.int32))


def _seen(model: LanguageModel, prompts: Prompts, sampling: Sampling) -> Array | None:
    """Which tokens the prompts have, (B, V); all of their tokens, as in ordinary decoding."""
    if sampling.repetition_penalty == 1:
        return None
    count = prompts.tokens_BT.shape[0]
    # What pads a prompt is its own last token.
    seen_BV = jnp.zeros((count, model.vocab_size), bool)
    return seen_BV.at[jnp.arange(count)[:, None], prompts.tokens_BT].set(True)


def _blank(run: Run, position_B: Array, keys_B: Array, room: int, seen_BV: Array | None) -> Text:
    """A text without a token."""
    count = position_B.shape[0]
    return Text(
        (run,),
        jnp.zeros((count, room), jnp.int32),
        jnp.zeros(count, jnp.int32),
        jnp.zeros(count, bool),
        position_B.astype(jnp.int32),
        jnp.zeros((), jnp.int32),
        keys_B,
        jnp.ones(count, bool),
        seen_BV,
        {},
    )


def _last_tokens(text: Text) -> Array:
    return jax.lax.dynamic_index_in_dim(text.tokens_BN, text.step - 1, axis=1, keepdims=False)


def _grown(text: Any) -> tuple[Any, tuple[Slots, ...]]:
    """The text with its last token's place in every run, and those places."""
    position_B = text.position_B + 1
    update = jax.lax.dynamic_update_slice_in_dim
    runs, places = [], []
    for run in text.runs:
        positions_BS = update(run.positions_BS, position_B[:, None], run.next_slot, axis=1)
        taken_B1 = jnp.ones((position_B.shape[0], 1), bool)
        present_BS = update(run.present_BS, taken_B1, run.next_slot, axis=1)
        places.append(Slots(positions_BS, present_BS, run.next_slot))
        runs.append(Run(run.memories, positions_BS, present_BS, run.next_slot + 1))
    return replace(text, runs=tuple(runs), position_B=position_B), tuple(places)


def _drawn(text: Any, logits_BV: Array, stop_S: Array, sampling: Sampling) -> Any:
    """The text with one more token each; what follows a stop token does not count."""
    keys_B = jax.vmap(jax.random.fold_in, in_axes=(0, None))(text.keys_B, text.step)
    seen_BV = text.seen_BV
    token_B = jax.vmap(draw_token, in_axes=(0, 0, None, None if seen_BV is None else 0))(
        keys_B, logits_BV, sampling, seen_BV
    )
    if seen_BV is not None:
        seen_BV = seen_BV.at[jnp.arange(token_B.shape[0]), token_B].set(True)
    finite_B = text.finite_B & finite(logits_BV)
    return replace(
        text,
        tokens_BN=jax.lax.dynamic_update_slice_in_dim(
            text.tokens_BN, token_B[:, None], text.step, axis=1
        ),
        count_B=text.count_B + (~text.finished_B).astype(jnp.int32),
        finished_B=text.finished_B
        | ~finite_B
        | jnp.any(token_B[:, None] == stop_S[None, :], axis=1),
        step=text.step + 1,
        finite_B=finite_B,
        seen_BV=seen_BV,
    )


def _compared(logits_2V: Array) -> tuple[Array, Array, Array]:
    """Relative error, divergence and agreement of the patched run's logits with the other's."""
    expected_V, actual_V = logits_2V
    return (
        relative_error(actual_V, expected_V),
        kl_divergence(expected_V, actual_V),
        same_top1(expected_V, actual_V),
    )


def _measured(text: PatchedText, logits_B2V: Array) -> PatchedText:
    """The text with what its next token is drawn from measured."""
    buffers = (text.relative_error_BN, text.kl_BN, text.same_top1_BN)
    error_BN, kl_BN, same_BN = (
        jax.lax.dynamic_update_slice_in_dim(buffer_BN, one_B[:, None], text.step, axis=1)
        for buffer_BN, one_B in zip(buffers, jax.vmap(_compared)(logits_B2V), strict=True)
    )
    return replace(text, relative_error_BN=error_BN, kl_BN=kl_BN, same_top1_BN=same_BN)


def _with_row(bank: Bank, row: Bank, index: Array) -> Bank:
    """The bank with its row ``index`` of every prompt and layer filled."""

    def put(axis: int, buffers: Any, rows: Any) -> Any:
        return jax.tree.map(
            lambda buffer, one: jax.lax.dynamic_update_slice_in_dim(buffer, one, index, axis=axis),
            buffers,
            rows,
        )

    return Bank(
        put(2, bank.patches, row.patches),
        put(1, bank.kept_K, row.kept_K),
        put(1, bank.positions_K, row.positions_K),
        put(2, bank.conditioning, row.conditioning),
    )


def _while(text: Any, limit: Array | int, step: Any) -> Any:
    def unfinished(text: Any) -> Array:
        return (text.step < limit) & ~jnp.all(text.finished_B)

    return jax.lax.while_loop(unfinished, step, text)
