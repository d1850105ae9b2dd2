"""What each way of choosing says of a prompt's demonstrations and tokens; all without the answer.

The right answer is never looked at: what is asked about is the model's own answer with everything.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.demonstrations.prompts import Asked
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.dynamics.groups import choose_by_update, group_cosines, group_shares, group_sizes
from icl_jax.interop.huggingface import Checkpoint
from icl_jax.language.batch import bucket, presence
from icl_jax.language.contributions import GroupUpdates, group_updates
from icl_jax.language.ends import embed, readout
from icl_jax.language.prompt import full_logits
from icl_jax.measures.shapley import Shapley, random_orders, shapley_values
from icl_jax.measures.weight_space import off_diagonal_mean
from icl_jax.stack.run import forward


def log_chances(checkpoint: Checkpoint, texts: Sequence[np.ndarray]) -> np.ndarray:
    """The log-probabilities (X, V) of what follows each of X texts."""
    read = [np.array([len(one) - 1]) for one in texts]
    found = full_logits(checkpoint.model, checkpoint.params, list(texts), read)
    logits_XV = jnp.concatenate(found).astype(jnp.float32)
    return np.asarray(jax.nn.log_softmax(logits_XV, axis=-1))


@dataclass(frozen=True)
class Scores:
    """What is said of N demonstrations and T tokens of one prompt; large is important.

    Attributes:
      demonstrations: way -> (N,).
      tokens: way -> (T,); minus infinity at tokens that stay.
      greedy: (k,), what ``choose_by_update`` takes, and in ``cosine`` how near it comes.
      alike: the mean cosine between what two demonstrations add.
    """

    demonstrations: dict[str, np.ndarray]
    tokens: dict[str, np.ndarray]
    greedy: np.ndarray
    cosine: float
    alike: float


def scores(checkpoint: Checkpoint, prompt: Asked, own: int, count: int) -> Scores:
    """By the update, by attention, and by a gradient: three ways that need no removal.

    Args:
      checkpoint: the model.
      prompt: with all demonstrations.
      own: the model's own answer, whose log-probability has the gradient.
      count: how many to choose by the update.
    """
    tokens_T, groups_XT = prompt.tokens(), prompt.token_groups
    run = (checkpoint.model, checkpoint.params)
    found = group_updates(*run, tokens_T, prompt.kept, groups_XT)
    member_NT = prompt.member_NT
    grouped = of_demonstrations(found, member_NT)
    gram_XX = grouped.gram_XX
    gradient_T = _gradient(*run, tokens_T, own)
    greedy, cosines = choose_by_update(gram_XX, count)
    tokens_X = np.asarray(group_sizes(found.gram_XX))
    attention_X = np.asarray(jnp.mean(found.attention_LN, axis=0))
    inside_T = member_NT.any(axis=0)
    length = len(tokens_T)

    def tokens_only(values: np.ndarray) -> np.ndarray:
        return np.where(inside_T, values[:length], -np.inf)

    return Scores(
        demonstrations={
            "share": np.asarray(group_shares(gram_XX))[:-1],
            "size": np.asarray(group_sizes(gram_XX))[:-1],
            "attention": np.asarray(jnp.mean(grouped.attention_LN, axis=0)),
            "gradient": np.abs(np.matmul(member_NT, gradient_T)),
        },
        tokens={
            "size": tokens_only(tokens_X),
            "attention": tokens_only(attention_X),
            "gradient": tokens_only(np.abs(gradient_T)),
        },
        greedy=np.asarray(greedy),
        cosine=float(cosines[-1]),
        alike=float(off_diagonal_mean(group_cosines(gram_XX)[:-1, :-1])),
    )


def of_demonstrations(found: GroupUpdates, member_NT: np.ndarray) -> GroupUpdates:
    """The update by demonstration from the one by token: sums of rows and columns."""
    tokens = found.gram_LXX.shape[1] - 1
    member = np.zeros((member_NT.shape[0] + 1, tokens + 1), np.float32)
    member[:-1, : member_NT.shape[1]] = member_NT
    member[-1] = ~member[:-1].any(axis=0)
    gram = np.einsum("nx,lxy,my->lnm", member, np.asarray(found.gram_LXX), member, optimize=True)
    attention = np.matmul(np.asarray(found.attention_LN), member[:-1, :-1].T)
    return GroupUpdates(jnp.asarray(gram, jnp.float32), jnp.asarray(attention))


def left_out(checkpoint: Checkpoint, prompt: Asked, own: int, chance: float) -> np.ndarray:
    """By how much each demonstration raises the log-probability of the model's own answer, (N,).

    Each is really left out: those behind it have read it, and move up.

    Args:
      checkpoint: the model.
      prompt: with all demonstrations.
      own: the model's own answer with all of them.
      chance: its log-probability then.
    """
    count = len(prompt.demonstrations)
    texts = [prompt.tokens([one for one in range(count) if one != gone]) for gone in range(count)]
    return chance - log_chances(checkpoint, texts)[:, own]


def shapley(
    checkpoint: Checkpoint, prompt: Asked, own: int, players: int, orders: int, key: Array
) -> Shapley:
    """Values of the first demonstrations, of the log-probability of an answer, by drawn orders."""
    orders_SN = np.asarray(random_orders(key, orders, players))
    texts = [prompt.in_order(order[:i]) for order in orders_SN for i in range(players + 1)]
    chances = []
    for start in range(0, len(texts), 16):  # As many side by side as a batch of questions.
        chances.append(log_chances(checkpoint, texts[start : start + 16])[:, own])
    worths_SM = jnp.asarray(np.concatenate(chances).reshape(orders, players + 1))
    return shapley_values(key, jnp.asarray(orders_SN), worths_SM)


def _gradient(model: LanguageModel, params: Params, tokens_T: np.ndarray, own: int) -> Any:
    """Gradient times embedding of each token, (T,), of the log-probability of an answer."""
    length = len(tokens_T)
    padded_T = np.pad(tokens_T, (0, bucket(length, model.num_positions) - length), mode="edge")
    run = (jnp.asarray(padded_T), jnp.int32(length), jnp.int32(own))
    return np.asarray(_gradients(model, params, *run))[:length]


@functools.partial(jax.jit, static_argnames="model")
def _gradients(
    model: LanguageModel, params: Params, tokens_T: Array, length: Array, own: Array
) -> Array:
    stream_TD = embed(model, params, tokens_T)

    def chance(stream_TD: Array) -> Array:
        present_T = presence(model, length, tokens_T.shape[0])
        output_TD = forward(functional(model, params), stream_TD, present_T=present_T)
        logits_V = readout(model, params, output_TD[length - 1][None])[0]
        return jax.nn.log_softmax(logits_V.astype(jnp.float32))[own]

    return jnp.sum(jax.grad(chance)(stream_TD) * stream_TD, axis=-1)
