"""What one position of a language model attends to, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.language.ends import check_finite, embed, finite, or_nan, readout, token_ids
from icl_jax.shown import short
from icl_jax.stack.block import apply_block
from icl_jax.stack.fold import fold


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attended:
    """One position, seen from inside.

    Attributes:
      outputs_LD: (L, D), the sum of what the heads of each layer passed on, before bias and norm.
      weights_LAT: (L, A, T), whom they read how much: after the softmax.
      scores_LAT: (L, A, T), the same before cap and softmax; of tokens behind the position, too.
      inputs_LTD: (L, T, D), what each layer's attention is given, of all tokens.
      mlp_inputs_LD: (L, D), what each layer's MLP is given.
      logits_V: (V,), of the next token.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> seen = attend(model, params, tokens, 9)
      >>> seen.weights_LAT.shape, seen.inputs_LTD.shape, seen.mlp_inputs_LD.shape
      ((2, 2, 10), (2, 10, 8), (2, 8))
    """

    outputs_LD: Array
    weights_LAT: Array
    scores_LAT: Array
    inputs_LTD: Array
    mlp_inputs_LD: Array
    logits_V: Array

    __repr__ = short


def attend(
    model: LanguageModel,
    params: Params,
    tokens_T: Array | np.ndarray | Sequence[int],
    position: Array | int,
) -> Attended:
    """Runs a prompt and looks at one of its positions.

    In a causal model what stands behind the position does not matter, so prompts of different
    length can be padded at their ends and share a program.

    Args:
      model: of attention layers throughout.
      params: its parameters.
      tokens_T: (T,), token ids.
      position: whose; may be traced.

    Raises:
      ValueError: bad tokens, a position that the prompt does not have, or (outside jit) logits that
        are not finite.
      TypeError: tokens that are not integers; a layer that is no sum over heads.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> seen = attend(model, params, tokens, position=4)
      >>> jnp.round(seen.weights_LAT.sum(-1), 3).tolist()  # two layers, two heads
      [[1.0, 1.0], [1.0, 1.0]]
      >>> bool((seen.weights_LAT[..., 5:] == 0).all())  # what stands behind is not read
      True
    """
    tokens_T = jnp.asarray(token_ids("attend", model, tokens_T))
    _check_position(position, tokens_T.shape[0])
    stream_TD = embed(model, params, tokens_T)

    def step(
        block: Any, layer: Params, state_TD: Array, _: None
    ) -> tuple[Array, tuple[Array, ...]]:
        rows_1 = jnp.asarray(position, jnp.int32)[None]
        weights_A1T, passed_ATD, _ = block.parts(layer, state_TD, rows_M=rows_1)
        weights_AT = weights_A1T[:, 0]
        output_D = jnp.einsum(
            "at,atd->d",
            weights_AT.astype(passed_ATD.dtype),
            passed_ATD,
            precision=jax.lax.Precision.HIGHEST,
        )
        read_TD, scores_A1T = block.scores(layer, state_TD, rows_1)
        midpoint = block.contextual(layer, state_TD)
        seen = (output_D, weights_AT, scores_A1T[:, 0], read_TD)
        found = (*seen, midpoint.mlp_input_TD[position])
        return apply_block(block, layer, midpoint), found

    stream_TD, found = fold(functional(model, params), step, stream_TD)
    logits_1V = readout(model, params, stream_TD[position][None])
    check_finite("attend", finite(logits_1V), "the logits at the position are")
    outputs, weights, scores, inputs, mlp_inputs = found.joined()
    attended = Attended(outputs, weights, scores, inputs, mlp_inputs, logits_1V[0])
    if checks.is_concrete(position):
        return attended
    position = jnp.asarray(position)
    attended = or_nan((position >= 0) & (position < tokens_T.shape[0]), attended)
    return replace(attended, inputs_LTD=inputs)  # Which are of all positions.


def _check_position(position: Array | int, length: int) -> None:
    """Raises ValueError for what is no position; of a traced one, only the dtype can be seen."""
    if checks.is_concrete(position):
        good = checks.is_whole(position) and 0 <= int(position) < length
    else:
        good = jnp.ndim(position) == 0 and jnp.issubdtype(jnp.result_type(position), jnp.integer)
    if not good:
        raise ValueError(
            f"attend: position must be one of the prompt's, from 0 to {length - 1}, got "
            f"{position}. Count from the left; negative indices do not wrap."
        )
