"""A prompt as weights of the whole model: what can be saved, and run by any other program.

A bank has a patch per kept position; a checkpoint has one set of weights for all of them. So the
patches are made for the last position only, layer by layer, and *every* kept position runs through
the patched layer. The others then have other states than in the run with everything, and the next
layer's patch makes up for what the last position sees of that: its logits are exact.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.functional import functional, with_layers
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.materialise import materialise, position_patch
from icl_jax.dims import Array, Params
from icl_jax.language.ends import check_finite, embed, finite, readout, token_ids
from icl_jax.patches.bank import Bank, check_patchable
from icl_jax.patches.block import TokenPatch, block_patches
from icl_jax.patches.output import OutputPolicy
from icl_jax.patches.token import Conditioning
from icl_jax.shown import short
from icl_jax.stack.block import apply_block, take
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import PerLayer
from icl_jax.stack.settled import settled


@dataclass(frozen=True)
class PromptWeights:
    """The weights that a prompt stands for.

    Attributes:
      params: of the model, patched; on the kept tokens alone, at positions 0..K-1, they give the
        last one's logits in the run with everything.
      bank: the patches in them, of the last position (K = 1), with their conditioning.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> weights = prompt_weights(model, params, tokens, [0, 8, 9])
      >>> weights.bank, len(weights.patches)
      (Bank(1 kept positions, 2 layers), 2)
      >>> patched = weights.params["layers_0_0"]["mlp"]["gate"]["kernel"]
      >>> patched.shape == params["layers_0_0"]["mlp"]["gate"]["kernel"].shape
      True
    """

    params: Params
    bank: Bank

    __repr__ = short

    @property
    def patches(self) -> tuple[TokenPatch, ...]:
        """The patch of every layer, without the axis of positions."""
        return tuple(position_patch(patch, 0) for patch in self.bank.patches)


def prompt_weights(
    model: LanguageModel,
    params: Params,
    tokens_T: Array | np.ndarray,
    kept_K: Array | Sequence[int] | np.ndarray,
    *,
    output: OutputPolicy = "auto",
) -> PromptWeights:
    """The weights with which a model answers the kept tokens as if it had read everything.

    Args:
      model: the model.
      params: its parameters.
      tokens_T: (T,), the whole prompt.
      kept_K: (K,), the positions to keep, increasing; the last one is patched.
      output: which weight carries the residual change.

    Raises:
      ValueError: bad tokens or kept positions, a position that has no patch, or logits that are not
        finite.
      TypeError: an MLP whose kernels are not known; see ``materialise``.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> weights = prompt_weights(model, params, tokens, [0, 8, 9])
      >>> alone = alone_logits(model, weights.params, tokens[jnp.array([0, 8, 9])], [0, 1, 2])
      >>> full = full_logits(model, params, tokens, [0, 8, 9])
      >>> bool(jnp.allclose(alone[-1], full[-1], atol=1e-4))  # of the last token
      True
    """
    tokens_T = token_ids("prompt_weights", model, tokens_T)
    kept_K = checks.kept_positions("prompt_weights", kept_K, tokens_T.shape[0])
    bank, patched, finite_1 = _prompt_weights(model, params, tokens_T, kept_K, output=output)
    check_patchable(bank)
    check_finite("prompt_weights", finite_1, "the last token's logits with these weights are")
    return PromptWeights(with_layers(params, patched), bank)


@functools.partial(jax.jit, static_argnames=("model", "output"))
def _prompt_weights(
    model: LanguageModel, params: Params, tokens_T: Array, kept_K: Array, *, output: OutputPolicy
) -> tuple[Bank, PerLayer[Params], Array]:
    """The bank, the patched layers, and whether the model that they make says something, (1,)."""
    positions_T = jnp.arange(tokens_T.shape[0], dtype=jnp.int32)
    # Other programs number the kept tokens from 0; the patch makes up for that, too.
    fresh_K = positions_T[: kept_K.shape[0]]
    last_1 = kept_K[-1:]
    full_TD = embed(model, params, tokens_T, positions_T)
    kept_KD = embed(model, params, tokens_T[kept_K], fresh_K)

    def step(
        block: FlaxBlock, layer: Params, state: tuple[Array, Array], _: None
    ) -> tuple[tuple[Array, Array], tuple[TokenPatch, Conditioning, Params]]:
        full_TD, kept_KD = state
        full = block.contextual(layer, full_TD, positions_T=positions_T)
        kept = block.contextual(layer, kept_KD, positions_T=fresh_K)
        full, kept = settled((full, kept))
        full_TD = settled(apply_block(block, layer, full))
        patch, numbers = block_patches(
            block, layer, take(full, last_1), take(kept, fresh_K[-1:]), output, full_TD[last_1]
        )
        patch = settled(patch)
        patched = materialise(block, layer, position_patch(patch, 0))
        kept_KD = settled(apply_block(block, patched, kept))
        return (full_TD, kept_KD), (patch, numbers, patched)

    (_, kept_KD), found = fold(functional(model, params), step, (full_TD, kept_KD))
    says_1 = finite(readout(model, params, kept_KD[-1:]))
    bank = Bank(
        found.map(lambda one: one[0]),
        last_1,
        fresh_K[-1:],
        found.map(lambda one: one[1]),
    )
    return bank, found.map(lambda one: one[2]), says_1
