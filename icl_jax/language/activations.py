"""What one position of a language model attends to, layer by layer."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.stack import functional
from icl_jax.dims import Array, Params
from icl_jax.patches.bank import forward


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
    """

    outputs_LD: Array
    weights_LAT: Array
    scores_LAT: Array
    inputs_LTD: Array
    mlp_inputs_LD: Array
    logits_V: Array


def attend(
    model: LanguageModel, params: Params, tokens_T: Array, position: Array | int
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
      ValueError: tokens that are no vector.
      TypeError: a layer that is no sum over heads.
    """
    checks.rank("attend", "tokens_T", tokens_T, 1, "(T)")
    blocks, block_params = functional(model, params)
    hidden_TD: Any = model.apply({"params": params}, tokens_T, method="embed")
    outputs, weights, scores, inputs, mlp_inputs = [], [], [], [], []
    for block, one_params in zip(blocks, block_params, strict=True):
        weights_ATT, passed_ATD, _ = block.parts(one_params, hidden_TD)
        weights_AT = weights_ATT[:, position]
        outputs.append(
            jnp.einsum(
                "at,atd->d",
                weights_AT.astype(passed_ATD.dtype),
                passed_ATD,
                precision=jax.lax.Precision.HIGHEST,
            )
        )
        weights.append(weights_AT)
        read_TD, scores_ATT = block.scores(one_params, hidden_TD)
        scores.append(scores_ATT[:, position])
        inputs.append(read_TD)
        mlp_inputs.append(block.contextual(one_params, hidden_TD).mlp_input_TD[position])
        hidden_TD = forward((block,), (one_params,), hidden_TD)
    last_1D = hidden_TD[position][None]
    logits_1V: Any = model.apply({"params": params}, last_1D, method="readout")
    return Attended(
        outputs_LD=jnp.stack(outputs),
        weights_LAT=jnp.stack(weights),
        scores_LAT=jnp.stack(scores),
        inputs_LTD=jnp.stack(inputs),
        mlp_inputs_LD=jnp.stack(mlp_inputs),
        logits_V=logits_1V[0],
    )
