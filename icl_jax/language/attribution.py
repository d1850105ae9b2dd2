"""Which context token, through which head of which layer, wrote the update of a prompt."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from icl_jax import checks
from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.functional import designs, functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.dynamics.attribution import attribute_block
from icl_jax.dynamics.contributions import contribution_shares, remainder_share, update_norm
from icl_jax.language.batch import (
    Prompts,
    is_batch,
    or_nan_where_impossible,
    pad_prompts,
    padded_positions,
    presence,
)
from icl_jax.language.ends import check_update, embed
from icl_jax.language.prompt import Ids, Many, each_prompt
from icl_jax.sharding import on_host
from icl_jax.shown import short
from icl_jax.stack.block import apply_block
from icl_jax.stack.fold import fold


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class PromptAttribution:
    """The update of one kept position, taken apart; shares of a layer add up to 1.

    Attributes:
      shares_LAT: (L, A, T), the signed share of every head and removed token; zero for kept tokens.
      remainder_L: (L,), the share of the norm's remainder.
      norm_L: (L,), the length ``|dW|_F`` of what is attributed: of the input factor
        ``|v||delta|``, of the output ``|r|``, in units of the residual stream.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> found = attribute(model, params, tokens, [0, 9], of="output")
      >>> found.shares_LAT.shape, found.norm_L.shape
      ((2, 2, 10), (2,))
      >>> bool((found.shares_LAT[..., jnp.array([0, 9])] == 0).all())  # kept tokens
      True
    """

    shares_LAT: Array
    remainder_L: Array
    norm_L: Array

    __repr__ = short


def attributable(model: LanguageModel) -> tuple[str, ...]:
    """What ``attribute`` can be asked for of a model: the values of ``of``.

    Examples:
      >>> from icl_jax.language.attribution import attributable
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> attributable(LanguageModel(repeat(block, 2), vocab_size=30, width=8))
      ('input', 'gate', 'up', 'output')
    """
    blocks = designs(model.blocks)

    def of_input(block: FlaxBlock) -> tuple[str, ...]:
        if not block.patches_input:
            return ()
        # The kernels of experts are several matrices each, and not every token's.
        return ("input", *block.input_kernels) if block.shares_down else ("input",)

    first, *rest = map(of_input, blocks)
    shared = [name for name in first if all(name in names for names in rest)]
    has_output = all(block.has_skip for block in blocks)
    return (*shared, "output") if has_output else tuple(shared)


def attribute(
    model: LanguageModel,
    params: Params,
    tokens: Ids | Many,
    kept: Ids | Many,
    *,
    row: int = -1,
    of: str = "input",
) -> Any:
    """``attribute_block`` in every layer, each on what it is given in the run with everything.

    Args:
      model: of attention layers throughout.
      params: its parameters.
      tokens: (T,), token ids of the whole prompt; or those of several prompts, of any lengths.
      kept: (K,), the positions to keep, increasing; of several prompts those of each.
      row: which of a prompt's kept positions; the last one by default.
      of: ``input`` for the input factor, which all kernels that read the MLP's input share; the
        name of one of these kernels, such as ``gate``, for its ``dW``; ``output`` for the residual
        change that the output bias or the down kernel carries. ``attributable`` has the names.

    Returns:
      A ``PromptAttribution``, or a list of them, one for each of several prompts.

    Raises:
      ValueError: bad tokens or kept positions, a ``row`` that a prompt does not have, nothing of
        the name ``of``, or as ``attribute_block``; (outside jit) an update that is not finite.
      TypeError: a layer that is no sum over heads and tokens.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> found = attribute(model, params, tokens, [0, 8, 9])
      >>> found.shares_LAT.shape  # two layers, two heads, ten tokens
      (2, 2, 10)
      >>> jnp.round(found.shares_LAT.sum((1, 2)) + found.remainder_L, 3).tolist()
      [1.0, 1.0]
    """
    if of != "input":  # Of which ``attribute_block`` says why there is none.
        checks.one_of("attribute", "of", of, attributable(model))
    prompts = pad_prompts("attribute", model, tokens, kept)
    for count in prompts.num_kept_B:
        if not checks.is_whole(row) or not -count <= row < count:
            raise ValueError(
                f"attribute: row must be one of the {count} kept positions of a prompt, 0 to "
                f"{count - 1} (or -1 for the last one), got {row}."
            )
    row_B = (row % prompts.num_kept_B).astype(np.int32)
    found = or_nan_where_impossible(_attribute(model, params, prompts, row_B, of), prompts)
    if checks.is_concrete(found.norm_L):
        # Read once, and cut here: on a device every length is cut by a program of its own.
        found = on_host(found)
    check_update("attribute", found.norm_L)
    each = [_cut(found, number, length) for number, length in enumerate(prompts.length_B)]
    return each if is_batch(tokens) else each[0]


def _cut(found: PromptAttribution, number: int, length: int) -> PromptAttribution:
    """Of one prompt, without what pads it."""
    shares_LAT = found.shares_LAT[number, :, :, :length]
    parts = (shares_LAT, found.remainder_L[number], found.norm_L[number])
    # (A conversion would be a program for every length, too.)
    return PromptAttribution(*map(jax.device_put, parts))


@functools.partial(jax.jit, static_argnames=("model", "of"))
def _attribute(
    model: LanguageModel, params: Params, prompts: Prompts, row_B: Array, of: str
) -> PromptAttribution:
    def one(
        tokens_T: Array, length: Array, kept_K: Array, num_kept: Array, row: Array
    ) -> PromptAttribution:
        present_T = presence(model, length, tokens_T.shape[0])
        present_K = presence(model, num_kept, kept_K.shape[0])
        positions_T = padded_positions(model, length, tokens_T.shape[0])

        def step(
            block: FlaxBlock, layer: Params, state_TD: Array, _: None
        ) -> tuple[Array, tuple[Array, Array, Array]]:
            found = attribute_block(
                block,
                layer,
                state_TD,
                kept_K,
                positions_T=positions_T,
                present_T=present_T,
                present_K=present_K,
                rows_X=row[None],
                of="residual" if of == "output" else "mlp_input",
            )
            one = jax.tree.map(lambda leaf: leaf[0], found)
            kernel_DH = layer["mlp"][of]["kernel"] if of not in ("input", "output") else None
            midpoint = block.contextual(
                layer, state_TD, positions_T=positions_T, present_T=present_T
            )
            state_TD = apply_block(block, layer, midpoint)
            return state_TD, (
                contribution_shares(one, kernel_DH),
                remainder_share(one, kernel_DH),
                update_norm(one, kernel_DH),
            )

        _, found = fold(functional(model, params), step, embed(model, params, tokens_T))
        return PromptAttribution(*found.joined())

    return each_prompt(one, prompts, row_B)
