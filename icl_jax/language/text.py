"""The record of B texts as they are written, and what a step makes of it: pure, one step at a time.

A step gives every text a place for its last token (``grown``) and, from the logits that were read
there, one token more (``drawn``); beside a patched run the logits of both are compared, and its
patches looked at (``drawn_patched``).
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.views import Slots
from icl_jax.dims import Array
from icl_jax.language.batch import Prompts
from icl_jax.language.ends import finite
from icl_jax.language.sampling import Sampling, draw_token
from icl_jax.measures.distributions import kl_divergence, same_top1
from icl_jax.measures.function_space import relative_error
from icl_jax.patches.bank import Bank
from icl_jax.sharding import constrain
from icl_jax.stack.layers import PerLayer
from icl_jax.stack.sites import Seen


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
      sound_B: (B,), whether all patches so far exist; a text with others ends.
      relative_error_BN, kl_BN, same_top1_BN: of the logits of both runs.
    """

    prompt_bank: Bank
    written_bank: Bank
    sound_B: Array
    relative_error_BN: Array
    kl_BN: Array
    same_top1_BN: Array


def begun(memories: PerLayer[Any], slots: Slots, size: int) -> Run:
    """A run that has read ``size`` places."""
    memories = constrain(memories, leading="LB")
    return Run(memories, slots.positions_T, slots.present_T, jnp.asarray(size, jnp.int32))


def tokens_seen(model: LanguageModel, prompts: Prompts, sampling: Sampling) -> Array | None:
    """Which tokens the prompts have, (B, V); all of their tokens, as in ordinary decoding."""
    if sampling.repetition_penalty == 1:
        return None
    count = prompts.tokens_BT.shape[0]
    # What pads a prompt is its own last token.
    seen_BV = jnp.zeros((count, model.vocab_size), bool)
    return seen_BV.at[jnp.arange(count)[:, None], prompts.tokens_BT].set(True)


def blank(run: Run, position_B: Array, keys_B: Array, room: int, seen_BV: Array | None) -> Text:
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


def blank_patched(
    text: Text, runs: tuple[Run, ...], bank: Bank, logits_B2V: Array, room: int
) -> PatchedText:
    """A text without a token that two runs read: the one with everything, and the patched one.

    Args:
      text: of the run with everything.
      runs: both.
      bank: of the prompts' kept positions.
      logits_B2V: (B, 2, V), of both runs, behind the prompts; for their dtypes.
      room: how many new tokens there may be.
    """

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
    count = logits_B2V.shape[0]
    numbers = jax.eval_shape(jax.vmap(_compared), logits_B2V)
    error_BN, kl_BN, same_BN = (jnp.zeros((count, room), one.dtype) for one in numbers)
    fields = {name: getattr(text, name) for name in Text.__dataclass_fields__}
    return PatchedText(
        **{**fields, "runs": runs},
        prompt_bank=bank,
        written_bank=written,
        sound_B=jnp.ones(count, bool),
        relative_error_BN=error_BN,
        kl_BN=kl_BN,
        same_top1_BN=same_BN,
    )


def last_tokens(text: Text) -> Array:
    """The token that every text was given last, (B,)."""
    return jax.lax.dynamic_index_in_dim(text.tokens_BN, text.step - 1, axis=1, keepdims=False)


def grown(text: Any) -> tuple[Any, tuple[Slots, ...]]:
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


def drawn(text: Any, logits_BV: Array, stop_S: Array, sampling: Sampling) -> Any:
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


def drawn_patched(
    text: PatchedText, logits_B2V: Array, sound_B: Array, stop_S: Array, sampling: Sampling
) -> PatchedText:
    """``drawn`` from the patched run's logits, with what they are measured by.

    Args:
      text: the text so far.
      logits_B2V: (B, 2, V), of the run with everything and of the patched one.
      sound_B: (B,), whether the patches that were made for them exist.
      stop_S, sampling: as ``drawn``.
    """
    sound_B = text.sound_B & (sound_B | text.finished_B)
    buffers = (text.relative_error_BN, text.kl_BN, text.same_top1_BN)
    error_BN, kl_BN, same_BN = (
        jax.lax.dynamic_update_slice_in_dim(buffer_BN, one_B[:, None], text.step, axis=1)
        for buffer_BN, one_B in zip(buffers, jax.vmap(_compared)(logits_B2V), strict=True)
    )
    text = replace(text, relative_error_BN=error_BN, kl_BN=kl_BN, same_top1_BN=same_BN)
    text = drawn(text, logits_B2V[:, 1], stop_S, sampling)
    return replace(text, sound_B=sound_B, finished_B=text.finished_B | ~sound_B)


def with_row(bank: Bank, row: Bank, index: Array) -> Bank:
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
