"""Every step of a language model's forward pass, kept to be looked at.

For small models: attention's scores and weights are there whole, (A, T, T) in every layer.
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.blocks.attention_steps import AttentionSteps
from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.language.ends import check_finite, embed, finite, head, states, token_ids
from icl_jax.shown import short
from icl_jax.stack.fold import fold


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LayerWalk:
    """One layer, step by step; in a ``Walk`` with a leading axis L.

    Attributes:
      residual_TD: (T, D), the residual stream in front of the layer.
      read_TD: (T, D), what attention reads of it, behind the first norm.
      attention: queries, keys, values, scores, weights, heads and their projection.
      joined_TD: (T, D), the stream behind attention; what it gives alone, without a skip.
      mlp_input_TD: (T, D), what the MLP reads of that, behind the second norm.
      hidden_TH: (T, H), what enters the MLP's last kernel.
      mlp_output_TD: (T, D), what leaves that kernel.
      output_TD: (T, D), what the layer hands on.
    """

    residual_TD: Array
    read_TD: Array
    attention: AttentionSteps
    joined_TD: Array
    mlp_input_TD: Array
    hidden_TH: Array
    mlp_output_TD: Array
    output_TD: Array

    __repr__ = short


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Walk:
    """A whole run, step by step.

    Attributes:
      embedding_TD: (T, D), the residual stream in front of the first layer.
      layers: a ``LayerWalk`` with a leading axis L.
      final_TD: (T, D), what the head reads.
      logits_TV: (T, V); the last states (T, D) of an encoder.
    """

    embedding_TD: Array
    layers: LayerWalk
    final_TD: Array
    logits_TV: Array

    __repr__ = short


def walk_through(model: LanguageModel, params: Params, tokens_T: Array | np.ndarray) -> Walk:
    """Runs a prompt and keeps every step; one program, whatever the depth.

    Args:
      model: of attention layers throughout, all of one shape.
      params: its parameters.
      tokens_T: (T,), token ids; prompts of one length go through ``jax.vmap``.

    Raises:
      ValueError: bad tokens; layers of different shapes; (outside jit) logits that are not finite.
      TypeError: a layer that is no attention.
    """
    walk = _walk(model, params, token_ids("walk_through", model, tokens_T))
    check_finite("walk_through", finite(walk.logits_TV), "the logits at position {} are")
    return walk


@functools.partial(jax.jit, static_argnames="model")
def _walk(model: LanguageModel, params: Params, tokens_T: Array) -> Walk:
    positions_T = jnp.arange(tokens_T.shape[0], dtype=jnp.int32)

    def step(block: FlaxBlock, layer: Params, state_TD: Array, _: None) -> tuple[Array, LayerWalk]:
        read_TD, attention = block.attention_steps(layer, state_TD, positions_T=positions_T)
        midpoint = block.join(layer, state_TD, attention.mixed_TD)
        hidden_TH = block.hidden(layer, midpoint.mlp_input_TD, None)
        output_TD = block.output(layer, midpoint, hidden_TH, None)
        joined_TD = midpoint.residual_TD
        return output_TD, LayerWalk(
            state_TD,
            read_TD,
            attention,
            attention.mixed_TD if joined_TD is None else joined_TD,
            midpoint.mlp_input_TD,
            hidden_TH,
            block.mlp_output(layer, midpoint.mlp_input_TD, hidden_TH, None),
            output_TD,
        )

    embedding_TD = embed(model, params, tokens_T)
    stream_TD, found = fold(functional(model, params), step, embedding_TD)
    final_TD = states(model, params, stream_TD)
    return Walk(embedding_TD, found.joined(), final_TD, head(model, params, final_TD))
