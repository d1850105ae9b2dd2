"""What running text still teaches, token by token: sizes of steps, layer by layer."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.dynamics.marginal import decay_exponent, marginal_sizes, marginal_updates
from icl_jax.dynamics.prefixes import prefix_pass
from icl_jax.interop.huggingface import Checkpoint
from icl_jax.interop.tokenizer import Tokenizer
from icl_jax.language.ends import embed
from icl_jax.measures.subspaces import effective_rank_of_updates
from icl_jax.measures.weight_space import alignment, off_diagonal_mean
from icl_jax.tasks.text import reference_texts

#: Tokens of a group whose marginal updates are compared with those of the others.
GROUP = 8


@dataclass(frozen=True)
class Learned:
    """Of S texts; in every layer the last token stands after each prefix, BOS before all.

    Attributes:
      sizes: (S, L, N), ``|W_{i+1} - W_i|`` of the input factor.
      exponents: (S, L), of their fall with i, from the ``first`` step on.
      alike: (S, L), mean cosine between what different groups of ``GROUP`` tokens add.
      rank_of_tokens: (S, L), how many of these groups' updates differ.
      rank_of_layers: (S,), how many of the layers' updates by the whole text differ.
    """

    sizes: np.ndarray
    exponents: np.ndarray
    alike: np.ndarray
    rank_of_tokens: np.ndarray
    rank_of_layers: np.ndarray


def learned(
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    *,
    texts: int,
    length: int,
    first: int,
    bos: int,
    shuffled: bool,
) -> Learned:
    """Running text, or as a null its tokens in a drawn order."""
    found = []
    chosen = [text for text in reference_texts().values() if len(text) > 6 * length][:texts]
    for number, text in enumerate(chosen):
        tokens_T = np.asarray(tokenizer.encode(" ".join(text.split()), add_special=False).tokens_T)
        context_N, query = tokens_T[:length], tokens_T[length]
        if shuffled:
            context_N = np.random.default_rng(number).permutation(context_N)
        tokens_T = np.concatenate([[bos], context_N, [query]]).astype(np.int32)
        run = (checkpoint.model, checkpoint.params, jnp.asarray(tokens_T))
        found.append(jax.device_get(_one(*run, first=first)))
    return Learned(*(np.stack(column) for column in zip(*found, strict=True)))


@functools.partial(jax.jit, static_argnames=("model", "first"))
def _one(model: LanguageModel, params: Params, tokens_T: Array, *, first: int) -> tuple[Array, ...]:
    stream_TD = embed(model, params, tokens_T)
    passed = prefix_pass(functional(model, params), stream_TD[:-1], stream_TD[-1])

    def layer(inputs_MD: Array) -> tuple[Array, ...]:
        sizes_N = marginal_sizes(inputs_MD)
        groups = marginal_updates(inputs_MD[::GROUP])
        cosines_XX = alignment(groups)
        return (
            sizes_N,
            decay_exponent(sizes_N, first=first),
            off_diagonal_mean(cosines_XX),
            effective_rank_of_updates(groups),
        )

    # The first prefix is the BOS: a query without anything in front of it is none of the model's.
    inputs_LMD = passed.full.joined().mlp_input_TD[:, 1:]
    sizes, exponents, alike, ranks = jax.lax.map(layer, inputs_LMD)
    whole = jax.vmap(marginal_updates)(inputs_LMD[:, jnp.asarray([0, -1])])
    by_layer = jax.tree.map(lambda leaf: leaf[:, 0], whole)
    return sizes, exponents, alike, ranks, effective_rank_of_updates(by_layer)
