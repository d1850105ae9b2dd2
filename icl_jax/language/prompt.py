"""The patches of a prompt, and the logits of the three runs that they stand between.

full        everything is there
alone       the kept positions, with their position ids, and nothing else
patched     the kept positions with the patched weights: the logits of ``full``
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.stack import functional
from icl_jax.dims import Array, Params
from icl_jax.patches.bank import (
    Bank,
    Loop,
    check_patchable,
    forward,
    patched_forward,
    stack_patches,
)
from icl_jax.patches.output import OutputPolicy


def prompt_patches(
    model: LanguageModel,
    params: Params,
    tokens_T: Array | np.ndarray,
    kept_K: Array | Sequence[int] | np.ndarray,
    *,
    present_T: Array | None = None,
    loop: Loop = "closed",
    output: OutputPolicy = "auto",
) -> Bank:
    """The bank that lets a model answer from the kept positions as if it had read everything.

    Args:
      model: the model.
      params: its parameters.
      tokens_T: (T,), token ids of the whole prompt.
      kept_K: (K,), the positions to keep, increasing; at least one is removed.
      present_T: (T,), False where a position is padding.
      loop: ``closed`` (default) or ``open``; see ``stack_patches``.
      output: which weight carries the residual change.

    Raises:
      ValueError: bad tokens or kept positions, a policy that the blocks have no weights for, or
        (outside jit) a position that has no patch.
    """
    tokens_T = _tokens("prompt_patches", model, tokens_T)
    blocks, block_params = functional(model, params)
    bank = stack_patches(
        blocks,
        block_params,
        _embed(model, params, tokens_T),
        kept_K,
        present_T=present_T,
        loop=loop,
        output=output,
        compile_layers=True,
    )
    if checks.is_concrete(tokens_T) and checks.is_concrete(bank.conditioning[0].kept_norm):
        check_patchable(bank)
    return bank


def full_logits(
    model: LanguageModel,
    params: Params,
    tokens_T: Array | np.ndarray,
    kept_K: Array | Sequence[int] | np.ndarray,
    *,
    present_T: Array | None = None,
) -> Array:
    """Logits (K, V) at the kept positions, everything there."""
    tokens_T = _tokens("full_logits", model, tokens_T)
    hidden_TD = forward(
        *functional(model, params),
        _embed(model, params, tokens_T),
        present_T=present_T,
        compile_layers=True,
    )
    return _readout(model, params, hidden_TD[jnp.asarray(kept_K)])


def alone_logits(
    model: LanguageModel,
    params: Params,
    tokens_T: Array | np.ndarray,
    kept_K: Array | Sequence[int] | np.ndarray,
    *,
    present_T: Array | None = None,
) -> Array:
    """Logits (K, V) of the kept positions alone, with their position ids: the control."""
    tokens_T = _tokens("alone_logits", model, tokens_T)
    kept_K = jnp.asarray(kept_K)
    hidden_KD = forward(
        *functional(model, params),
        _embed(model, params, tokens_T)[kept_K],
        positions_T=kept_K,
        present_T=None if present_T is None else present_T[kept_K],
        compile_layers=True,
    )
    return _readout(model, params, hidden_KD)


def patched_logits(
    model: LanguageModel,
    params: Params,
    tokens_T: Array | np.ndarray,
    bank: Bank,
    *,
    present_T: Array | None = None,
) -> Array:
    """Logits (K, V) of the patched run on the kept positions alone; removed ones are never read."""
    tokens_T = _tokens("patched_logits", model, tokens_T)
    hidden_KD = patched_forward(
        *functional(model, params),
        _embed(model, params, tokens_T),
        bank,
        present_T=present_T,
        compile_layers=True,
    )
    return _readout(model, params, hidden_KD)


@functools.partial(jax.jit, static_argnames="model")
def _embed(model: LanguageModel, params: Params, tokens_T: Array) -> Array:
    hidden_TD: Any = model.apply({"params": params}, tokens_T, method="embed")
    return hidden_TD


@functools.partial(jax.jit, static_argnames="model")
def _readout(model: LanguageModel, params: Params, hidden_KD: Array) -> Array:
    logits_KV: Any = model.apply({"params": params}, hidden_KD, method="readout")
    return logits_KV


def _tokens(where: str, model: LanguageModel, tokens_T: Array | np.ndarray) -> Array:
    """Token ids as int32, checked; JAX would read an id outside the table as another one."""
    checks.rank(where, "tokens_T", tokens_T, 1, "(T)")
    if not jnp.issubdtype(jnp.result_type(tokens_T), jnp.integer):
        raise TypeError(f"{where}: tokens_T must be integers, got {jnp.result_type(tokens_T)}.")
    if checks.is_concrete(tokens_T):
        wrong = [int(t) for t in np.asarray(tokens_T) if not 0 <= t < model.vocab_size]
        if wrong:
            raise ValueError(
                f"{where}: tokens_T must lie in [0, {model.vocab_size}), the vocabulary, got "
                f"{wrong[:5]}. Use the tokenizer of this checkpoint."
            )
    limit = model.num_positions
    if limit is not None and tokens_T.shape[0] > limit:
        raise ValueError(
            f"{where}: tokens_T has {tokens_T.shape[0]} tokens, and the model has only {limit} "
            "positions. Shorten the prompt."
        )
    return jnp.asarray(tokens_T, jnp.int32)
