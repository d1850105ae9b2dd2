"""What a prompt's last token would be answered after fewer of the tokens before it, all at once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.dynamics.prefixes import probe_pass
from icl_jax.language.batch import Prompts, is_batch, pad_prompts, pad_whole
from icl_jax.language.ends import embed, finite, readout
from icl_jax.language.prompt import Ids, Many, each_prompt, looked_at


def prefix_logits(
    model: LanguageModel, params: Params, tokens: Ids | Many, after: Ids | Many | None = None
) -> Any:
    """Logits (K, V) of a prompt's last token behind its first ``after`` tokens, each prefix alone.

    In one pass over the prompt, as ``prefix_pass``; one program for all prompts, compiled once per
    bucket of lengths (and a small one for each number of rows that is cut out of what it gives).
    After i tokens the last token stands at position i.

    Args:
      model: of causal layers, or of one layer.
      params: its parameters.
      tokens: (T,), token ids; or those of several prompts, of any lengths.
      after: (K,), increasing, from 0 (nothing is read) to T - 1 (everything); all of them when left
        out. Of several prompts those of each.

    Returns:
      Logits (K, V), or a list of them, one for each of several prompts.

    Raises:
      ValueError: bad tokens or prefixes; a stack of layers that are not causal, or of some that ask
        how long the sequence is; (outside jit) logits that are not finite.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> logits = prefix_logits(model, params, tokens, [0, 4, 9])
      >>> third = jnp.concatenate([tokens[:4], tokens[-1:]])  # four tokens, then the last one
      >>> bool(jnp.allclose(logits[1], full_logits(model, params, third, [4])[0], atol=1e-5))
      True

    Source: the prefixes of Dherin et al. 2025 (arXiv 2507.16003), Proposition 3.1.
    """
    if any(block.contextual_layer.reads_length for block in model.blocks):
        raise ValueError(
            "prefix_logits: a layer of this model asks how long the sequence is (longrope), so a "
            "prefix is not read as a part of the whole is. Give full_logits each prefix."
        )
    if len(model.blocks) > 1 and not all(block.contextual_layer.causal for block in model.blocks):
        raise ValueError(
            "prefix_logits: a layer of this model reads what comes behind it, so no two prefixes "
            "share work. Give full_logits each prefix."
        )
    if after is None:
        prompts = pad_whole("prefix_logits", model, tokens)
    else:
        prompts = pad_prompts(
            "prefix_logits", model, tokens, after, some_removed=False, name="after"
        )
    return looked_at("prefix_logits", _prefixes(model, params, prompts), prompts, is_batch(tokens))


@functools.partial(jax.jit, static_argnames="model")
def _prefixes(model: LanguageModel, params: Params, prompts: Prompts) -> tuple[Array, Array]:
    """The logits, and of which rows they are numbers. (``kept`` are prefixes here.)"""

    def one(tokens_T: Array, length: Array, after_K: Array, num_kept: Array) -> tuple[Array, Array]:
        del num_kept
        places_T = jnp.arange(tokens_T.shape[0], dtype=jnp.int32)
        asked_T = jnp.broadcast_to(tokens_T[length - 1], tokens_T.shape)
        context_TD = embed(model, params, tokens_T, places_T)
        # What pads a prompt stands behind all prefixes that were asked for.
        passed = probe_pass(
            functional(model, params), context_TD[:-1], embed(model, params, asked_T, places_T)
        )
        logits_KV = readout(model, params, passed.output_MD[after_K])
        return logits_KV, finite(logits_KV)

    return each_prompt(one, prompts)
