"""Which context token, through which head of which layer, wrote the update of a prompt."""

import functools

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.blocks.functional import FlaxBlock, functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.dynamics.attribution import attribute_block, contribution_shares, remainder_share
from icl_jax.language.ends import embed, token_ids
from icl_jax.stack.block import apply_block
from icl_jax.stack.fold import fold


def attribute_layers(
    model: LanguageModel, params: Params, tokens_T: Array, kept_K: Array, row: int = -1
) -> tuple[Array, Array]:
    """``attribute_block`` in every layer, each on what it is given in the run with everything.

    Args:
      model: of attention layers throughout.
      params: its parameters.
      tokens_T: (T,), the whole prompt.
      kept_K: (K,), the positions to keep.
      row: which of them; the last one by default.

    Returns:
      The signed share (L, A, T) of every head and removed token in the input factor, which all
      kernels that read the MLP's input share; and that of the norm's remainder (L,). They add up
      to 1 in every layer.

    Raises:
      ValueError, TypeError: as ``attribute_block`` does.
    """
    ids_T = token_ids("attribute", model, tokens_T)
    kept_K = checks.kept_positions("attribute", kept_K, ids_T.shape[0])
    return _attribute(model, params, jnp.asarray(ids_T), kept_K, row % kept_K.shape[0])


@functools.partial(jax.jit, static_argnames="model")
def _attribute(
    model: LanguageModel, params: Params, tokens_T: Array, kept_K: Array, row: Array | int
) -> tuple[Array, Array]:
    def step(
        block: FlaxBlock, layer: Params, state_TD: Array, _: None
    ) -> tuple[Array, tuple[Array, Array]]:
        rows_1 = jnp.asarray(row, jnp.int32)[None]
        found = attribute_block(block, layer, state_TD, kept_K, rows_X=rows_1)
        one = jax.tree.map(lambda leaf: leaf[0], found)
        state_TD = apply_block(block, layer, block.contextual(layer, state_TD))
        return state_TD, (contribution_shares(one), remainder_share(one))

    _, found = fold(functional(model, params), step, embed(model, params, tokens_T))
    shares_LAT, remainder_L = found.joined()
    return shares_LAT, remainder_L
