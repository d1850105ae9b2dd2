"""The patches of a prompt, and the logits of the three runs that they stand between.

full        everything is there
alone       the kept positions, with their position ids, and nothing else
patched     the kept positions with the patched weights: the logits of ``full``

Every function takes one prompt or many, of any lengths, and is one program for all of them,
compiled once per bucket of lengths (``batch.bucket``).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.language.batch import (
    Prompts,
    cut_rows,
    is_batch,
    or_nan_where_impossible,
    over_prompts,
    pad_prompts,
    padded_positions,
    presence,
    repeat_last_row,
    unpadded,
)
from icl_jax.language.ends import check_finite, embed, finite, readout
from icl_jax.patches.bank import Bank, check_patchable, patchable
from icl_jax.patches.extraction import Loop, extract
from icl_jax.patches.output import OutputPolicy
from icl_jax.patches.prediction import check_open_loop, open_loop_error, open_loop_rounding
from icl_jax.sharding import constrain, on_host
from icl_jax.stack.layers import PerLayer
from icl_jax.stack.run import forward

#: One prompt's token ids or kept positions, or those of several prompts.
Ids = Array | np.ndarray | Sequence[int]
Many = Sequence[Ids] | Array | np.ndarray


def prompt_patches(
    model: LanguageModel,
    params: Params,
    tokens: Ids | Many,
    kept: Ids | Many,
    *,
    loop: Loop = "closed",
    output: OutputPolicy = "auto",
) -> Any:
    """The bank that lets a model answer from the kept positions as if it had read everything.

    Args:
      model: the model.
      params: its parameters.
      tokens: (T,), token ids of the whole prompt; or those of several prompts.
      kept: (K,), the positions to keep, increasing; at least one is removed. Of several prompts,
        those of each.
      loop: ``closed`` (default) or ``open``; see ``stack_patches``.
      output: which weight carries the residual change.

    Returns:
      A ``Bank``, or a list of them, one for each of several prompts.

    Raises:
      ValueError: bad tokens or kept positions, a policy that the blocks have no weights for, or
        (outside jit) a position that has no patch, or an open loop that would be noise.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> prompt_patches(model, params, tokens, [0, 8, 9])  # positions 1 to 7 go
      Bank(3 kept positions, 2 layers)
    """
    prompts = pad_prompts("prompt_patches", model, tokens, kept)
    banks, sound_B = _patches(model, params, prompts, loop=loop, output=output)
    banks = or_nan_where_impossible(banks, prompts)
    if checks.is_concrete(sound_B) and not np.all(on_host(sound_B)):
        # One prompt alone is no batch, and its errors count no prompts.
        seen = banks if is_batch(tokens) else jax.tree.map(lambda leaf: leaf[0], banks)
        check_patchable(seen)
        if loop == "open":
            rounded = open_loop_rounding(functional(model, params), params["embedding"].dtype)
            check_open_loop(seen.conditioning, rounded, axis=seen.kept_K.ndim - 1)
    each = [_cut_bank(banks, one, int(count)) for one, count in enumerate(prompts.num_kept_B)]
    return each if is_batch(tokens) else each[0]


def full_logits(model: LanguageModel, params: Params, tokens: Ids | Many, kept: Ids | Many) -> Any:
    """Logits (K, V) at the kept positions, everything there; a list for several prompts.

    Raises:
      ValueError: bad tokens or kept positions; (outside jit) logits that are not finite. Of kept
        positions that are known inside jit only and cannot be, all logits are NaN.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> full_logits(model, params, tokens, [0, 8, 9]).shape
      (3, 30)
    """
    prompts = pad_prompts("full_logits", model, tokens, kept, some_removed=False)
    return looked_at("full_logits", _full(model, params, prompts), prompts, is_batch(tokens))


def alone_logits(model: LanguageModel, params: Params, tokens: Ids | Many, kept: Ids | Many) -> Any:
    """Logits (K, V) of the kept positions alone, with their position ids: the control.

    Raises:
      ValueError: as ``full_logits``.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> alone = alone_logits(model, params, tokens, [0, 8, 9])
      >>> full = full_logits(model, params, tokens, [0, 8, 9])
      >>> (jnp.abs(alone - full).max(1) > 1e-3).tolist()  # what the removed tokens did, by row
      [False, True, True]
    """
    prompts = pad_prompts("alone_logits", model, tokens, kept, some_removed=False)
    found = _alone(model, params, prompts, None)
    return looked_at("alone_logits", found, prompts, is_batch(tokens))


def patched_logits(
    model: LanguageModel, params: Params, tokens: Ids | Many, bank: Bank | Sequence[Bank]
) -> Any:
    """Logits (K, V) of the patched run on the kept positions alone; removed ones are never read.

    Args:
      model, params, tokens: as in ``prompt_patches``.
      bank: of the prompt, or those of each of several prompts.

    Raises:
      ValueError: banks of other prompts or of another model; (outside jit) logits that are not
        finite.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> bank = prompt_patches(model, params, tokens, [0, 8, 9])
      >>> patched = patched_logits(model, params, tokens, bank)
      >>> full = full_logits(model, params, tokens, [0, 8, 9])
      >>> bool(jnp.allclose(patched, full, atol=1e-5))
      True
    """
    banks = [bank] if isinstance(bank, Bank) else list(bank)
    kept = [one.kept_K for one in banks]
    if all(map(checks.is_concrete, kept)):
        kept = on_host(kept)  # Of all banks at once.
    prompts = pad_prompts("patched_logits", model, tokens, kept if is_batch(tokens) else kept[0])
    rows = prompts.kept_BK.shape[1]
    patches = [repeat_last_row(one.patches, rows, axis=1) for one in banks]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *patches)
    found = _alone(model, params, prompts, stacked)
    return looked_at("patched_logits", found, prompts, is_batch(tokens))


def looked_at(where: str, found: tuple[Array, Array], prompts: Prompts, batched: bool) -> Any:
    """Each prompt's logits, once it is seen that they are numbers and of positions that can be."""
    logits_BKV, finite_BK = found
    check_finite(where, finite_BK)
    return unpadded(or_nan_where_impossible(logits_BKV, prompts), prompts, batched)


def each_prompt(one: Callable[..., Any], prompts: Prompts, *rest: Any) -> Any:
    """``one(tokens_T, length, kept_K, num_kept, ...)`` of every prompt, side by side.

    On the mesh that is set, if any, every device has its share of the prompts.
    """
    prompts, rest = constrain(prompts), constrain(rest, leading="BLK")
    fields = (prompts.tokens_BT, prompts.length_B, prompts.kept_BK, prompts.num_kept_B)
    return over_prompts(one, prompts.tokens_BT.shape[0])(*fields, *rest)


@functools.partial(jax.jit, static_argnames="count")
def _cut_bank(banks: Bank, number: Array | int, count: int) -> Bank:
    """The bank of one prompt: the first ``count`` rows."""
    patches, conditioning = cut_rows((banks.patches, banks.conditioning), number, count, axis=1)
    kept_K, positions_K = cut_rows((banks.kept_K, banks.positions_K), number, count)
    return Bank(patches, kept_K, positions_K, conditioning)


@functools.partial(jax.jit, static_argnames=("model", "loop", "output"))
def _patches(
    model: LanguageModel, params: Params, prompts: Prompts, *, loop: Loop, output: OutputPolicy
) -> tuple[Bank, Array]:
    """The banks, and of which prompts they can be used."""

    def one(tokens_T: Array, length: Array, kept_K: Array, num_kept: Array) -> tuple[Bank, Array]:
        layers = functional(model, params)
        bank = extract(
            layers,
            embed(model, params, tokens_T),
            kept_K,
            padded_positions(model, length, tokens_T.shape[0]),
            present_T=presence(model, length, tokens_T.shape[0]),
            present_K=presence(model, num_kept, kept_K.shape[0]),
            loop=loop,
            output=output,
        )
        sound = patchable(bank)
        if loop == "open":
            rounded = open_loop_rounding(layers, params["embedding"].dtype)
            error_K = open_loop_error(bank.conditioning, rounded)
            sound = sound if error_K is None else sound & jnp.all(error_K < 1)
        return bank, sound

    return each_prompt(one, prompts)


@functools.partial(jax.jit, static_argnames="model")
def _full(model: LanguageModel, params: Params, prompts: Prompts) -> tuple[Array, Array]:
    """The logits, and of which rows they are numbers."""

    def one(tokens_T: Array, length: Array, kept_K: Array, num_kept: Array) -> tuple[Array, Array]:
        del num_kept
        present_T = presence(model, length, tokens_T.shape[0])
        stream_TD = forward(
            functional(model, params),
            embed(model, params, tokens_T),
            positions_T=padded_positions(model, length, tokens_T.shape[0]),
            present_T=present_T,
        )
        logits_KV = readout(model, params, stream_TD[kept_K])
        return logits_KV, finite(logits_KV)

    return each_prompt(one, prompts)


@functools.partial(jax.jit, static_argnames="model")
def _alone(
    model: LanguageModel, params: Params, prompts: Prompts, patches: PerLayer[Any] | None
) -> tuple[Array, Array]:
    def one(
        tokens_T: Array, length: Array, kept_K: Array, num_kept: Array, patches: Any = None
    ) -> tuple[Array, Array]:
        del length
        stream_KD = forward(
            functional(model, params),
            embed(model, params, tokens_T[kept_K], kept_K),
            patches=patches,
            positions_T=kept_K,
            present_T=presence(model, num_kept, kept_K.shape[0]),
        )
        logits_KV = readout(model, params, stream_KD)
        return logits_KV, finite(logits_KV)

    return each_prompt(one, prompts, *(() if patches is None else (patches,)))
