"""What each demonstration of a prompt adds to the update of its last token, in every layer."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.dynamics.attribution import attribute_block
from icl_jax.dynamics.groups import group_gram
from icl_jax.dynamics.leave_out import check_groups
from icl_jax.language.batch import Prompts, pad_prompts, padded_positions, presence
from icl_jax.language.ends import check_update, embed
from icl_jax.language.prompt import Ids, each_prompt
from icl_jax.shown import short
from icl_jax.stack.block import apply_block
from icl_jax.stack.fold import fold


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class GroupUpdates:
    """The update of one position, split over N groups of tokens, and the rest.

    Attributes:
      gram_LXX: (L, N + 1, N + 1), inner products of the parts, the last that of everything else;
        see ``group_gram``.
      attention_LN: (L, N), the attention that each group gets, all heads of a layer together.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> groups = np.zeros((2, 10), bool)
      >>> groups[0, 1:4] = groups[1, 4:8] = True  # two demonstrations
      >>> found = group_updates(model, params, tokens, [0, 8, 9], groups)
      >>> found.gram_LXX.shape, round(float(found.gram_XX.sum()), 3)
      ((2, 3, 3), 1.0)
    """

    gram_LXX: Array
    attention_LN: Array

    __repr__ = short

    @property
    def gram_XX(self) -> Array:
        """One matrix for all layers, each of which counts the same: its entries add up to 1."""
        return jnp.mean(self.gram_LXX / jnp.sum(self.gram_LXX, axis=(1, 2), keepdims=True), axis=0)


def group_updates(
    model: LanguageModel,
    params: Params,
    tokens: Ids,
    kept: Ids,
    groups: Sequence[Any] | Array | np.ndarray,
) -> GroupUpdates:
    """What groups of removed tokens add to the update of the last kept position.

    Args:
      model: of attention layers throughout.
      params: its parameters.
      tokens: (T,), token ids of the whole prompt.
      kept: (K,), the positions to keep, increasing.
      groups: (N, T) booleans, the tokens of each group, such as a demonstration.

    Raises:
      ValueError: bad tokens, kept positions or groups, or as ``attribute_block``; (outside jit)
        updates that are not finite.
      TypeError: groups that are not boolean; a layer that is no sum over heads and tokens.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> groups = np.zeros((2, 10), bool)
      >>> groups[0, 1:4] = groups[1, 4:8] = True  # two demonstrations
      >>> found = group_updates(model, params, tokens, [0, 8, 9], groups)
      >>> shares = group_shares(found.gram_XX)  # of the first, the second and the rest
      >>> shares.shape, round(float(shares.sum()), 3)
      ((3,), 1.0)
    """
    where = "group_updates"
    prompts = pad_prompts(where, model, tokens, kept)
    groups_NT = np.asarray(groups)
    check_groups(where, groups_NT, int(prompts.length_B[0]))
    if groups_NT[:, np.asarray(kept)].any():
        raise ValueError(
            f"{where}: groups must hold removed tokens only; one of them has a kept position."
        )
    widths = ((0, 0), (0, prompts.tokens_BT.shape[1] - groups_NT.shape[1]))
    padded_NT = np.pad(groups_NT, widths)
    found = _group_updates(model, params, prompts, jnp.asarray(padded_NT)[None])
    check_update("group_updates", found.gram_LXX)
    return jax.tree.map(lambda leaf: leaf[0], found)


@functools.partial(jax.jit, static_argnames="model")
def _group_updates(
    model: LanguageModel, params: Params, prompts: Prompts, groups_BNT: Array
) -> GroupUpdates:
    def one(
        tokens_T: Array, length: Array, kept_K: Array, num_kept: Array, groups_NT: Array
    ) -> GroupUpdates:
        present_T = presence(model, length, tokens_T.shape[0])
        present_K = presence(model, num_kept, kept_K.shape[0])
        positions_T = padded_positions(model, length, tokens_T.shape[0])
        places: dict[str, Any] = {"positions_T": positions_T, "present_T": present_T}
        row = num_kept - 1

        def step(
            block: FlaxBlock, layer: Params, state_TD: Array, _: None
        ) -> tuple[Array, tuple[Array, Array]]:
            found = attribute_block(
                block,
                layer,
                state_TD,
                kept_K,
                present_K=present_K,
                rows_X=row[None],
                **places,
            )
            one = jax.tree.map(lambda leaf: leaf[0], found)
            weights_A1T = block.parts(layer, state_TD, **places, rows_M=kept_K[row][None])[0]
            attention_T = jnp.sum(weights_A1T[:, 0], axis=0)
            attention_N = jnp.sum(
                jnp.where(groups_NT, attention_T[None], jnp.zeros_like(attention_T[None])), axis=1
            )
            midpoint = block.contextual(layer, state_TD, **places)
            return apply_block(block, layer, midpoint), (group_gram(one, groups_NT), attention_N)

        _, found = fold(functional(model, params), step, embed(model, params, tokens_T))
        return GroupUpdates(*found.joined())

    return each_prompt(one, prompts, groups_BNT)
