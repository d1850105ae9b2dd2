"""The two ends of a language model: token ids into the residual stream, and logits out of it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params


@functools.partial(jax.jit, static_argnames="model")
def embed(
    model: LanguageModel, params: Params, tokens_T: Array, positions_T: Array | None = None
) -> Array:
    """``LanguageModel.embed``, (T, D), compiled once per model and length."""
    hidden_TD: Any = model.apply(
        {"params": params}, tokens_T, positions_T=positions_T, method="embed"
    )
    return hidden_TD


@functools.partial(jax.jit, static_argnames="model")
def readout(model: LanguageModel, params: Params, hidden_KD: Array) -> Array:
    """``LanguageModel.readout``, (K, V), compiled once per model and number of rows."""
    logits_KV: Any = model.apply({"params": params}, hidden_KD, method="readout")
    return logits_KV


def token_ids(
    where: str, model: LanguageModel, tokens_T: Array | np.ndarray, *, extra: int = 0
) -> Array:
    """Token ids as int32, checked; JAX would read an id outside the table as another one.

    Args:
      where: the caller, for the error.
      model: the model.
      tokens_T: (T,), at least one token id.
      extra: how many more positions will be needed.

    Raises:
      ValueError: no tokens, an id outside the vocabulary, more tokens than learned positions.
      TypeError: not integers.
    """
    checks.rank(where, "tokens_T", tokens_T, 1, "(T)")
    if not jnp.issubdtype(jnp.result_type(tokens_T), jnp.integer):
        raise TypeError(f"{where}: tokens_T must be integers, got {jnp.result_type(tokens_T)}.")
    if not tokens_T.shape[0]:
        raise ValueError(f"{where}: tokens_T is empty; a prompt has at least one token.")
    if checks.is_concrete(tokens_T):
        wrong = [int(t) for t in np.asarray(tokens_T) if not 0 <= t < model.vocab_size]
        if wrong:
            raise ValueError(
                f"{where}: tokens_T must lie in [0, {model.vocab_size}), the vocabulary, got "
                f"{wrong[:5]}. Use the tokenizer of this checkpoint."
            )
    needed = tokens_T.shape[0] + extra
    if model.num_positions is not None and needed > model.num_positions:
        raise ValueError(
            f"{where}: {needed} tokens are needed, and the model has only {model.num_positions} "
            "positions. Shorten the prompt or write less."
        )
    return jnp.asarray(tokens_T, jnp.int32)
