"""The patches of a prompt, and the logits of the three runs that they stand between.

full        everything is there
alone       the kept positions, with their position ids, and nothing else
patched     the kept positions with the patched weights: the logits of ``full``
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.stack import functional
from icl_jax.dims import Array, Params
from icl_jax.language.ends import embed, readout, token_ids
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
    tokens_T = token_ids("prompt_patches", model, tokens_T)
    blocks, block_params = functional(model, params)
    bank = stack_patches(
        blocks,
        block_params,
        embed(model, params, tokens_T),
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
    tokens_T = token_ids("full_logits", model, tokens_T)
    hidden_TD = forward(
        *functional(model, params),
        embed(model, params, tokens_T),
        present_T=present_T,
        compile_layers=True,
    )
    return readout(model, params, hidden_TD[jnp.asarray(kept_K)])


def alone_logits(
    model: LanguageModel,
    params: Params,
    tokens_T: Array | np.ndarray,
    kept_K: Array | Sequence[int] | np.ndarray,
    *,
    present_T: Array | None = None,
) -> Array:
    """Logits (K, V) of the kept positions alone, with their position ids: the control."""
    tokens_T = token_ids("alone_logits", model, tokens_T)
    kept_K = jnp.asarray(kept_K)
    hidden_KD = forward(
        *functional(model, params),
        embed(model, params, tokens_T)[kept_K],
        positions_T=kept_K,
        present_T=None if present_T is None else present_T[kept_K],
        compile_layers=True,
    )
    return readout(model, params, hidden_KD)


def patched_logits(
    model: LanguageModel,
    params: Params,
    tokens_T: Array | np.ndarray,
    bank: Bank,
    *,
    present_T: Array | None = None,
) -> Array:
    """Logits (K, V) of the patched run on the kept positions alone; removed ones are never read."""
    tokens_T = token_ids("patched_logits", model, tokens_T)
    hidden_KD = patched_forward(
        *functional(model, params),
        embed(model, params, tokens_T),
        bank,
        present_T=present_T,
        compile_layers=True,
    )
    return readout(model, params, hidden_KD)
