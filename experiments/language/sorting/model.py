"""The small GPT: what it reads, what it is asked, how it is trained.

Six letters of A, B and C, and behind them the same letters in order: after reading the first six
tokens and what it has written so far, the model says the next one.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.interop.families import gpt2
from icl_jax.interop.options import Options

LETTERS = "ABC"
COUNT = 6  # Letters of an input.
LENGTH = 2 * COUNT - 1  # The last sorted letter is written and not read.
LAYERS = 3

#: A GPT-2 of 85,728 parameters.
ARCHITECTURE = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "vocab_size": len(LETTERS),
    "n_embd": 48,
    "n_layer": LAYERS,
    "n_head": 3,
    "n_positions": LENGTH,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}


def build() -> LanguageModel:
    """The model."""
    return gpt2.build(Options(ARCHITECTURE))


def initial(model: LanguageModel, key: Array) -> Params:
    """Its parameters before training."""
    params: Params = model.init(key, jnp.zeros(2, jnp.int32))["params"]
    return params


def ids(text: str) -> np.ndarray:
    """Letters as token ids, (N,).

    Raises:
      ValueError: another letter.
    """
    if set(text) - set(LETTERS):
        raise ValueError(f"ids: {text!r} has letters other than {', '.join(LETTERS)}.")
    return np.asarray([LETTERS.index(letter) for letter in text], np.int32)


def inputs(num_held_out: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """All 729 inputs (N, 6), those to train on and those held out, drawn at random."""
    every = np.asarray(list(itertools.product(range(len(LETTERS)), repeat=COUNT)), np.int32)
    order = np.random.default_rng(seed).permutation(len(every))
    return every[order[num_held_out:]], every[order[:num_held_out]]


def sequences(letters_BN: Array | np.ndarray) -> tuple[Array, Array]:
    """What is read (B, 11), and what is to be said behind the last 6 of it (B, 6)."""
    letters_BN = jnp.asarray(letters_BN)
    sorted_BN = jnp.sort(letters_BN, axis=-1)
    return jnp.concatenate([letters_BN, sorted_BN[:, :-1]], axis=-1), sorted_BN


def training_loss(
    model: LanguageModel, letters: np.ndarray, batch_size: int
) -> Callable[[Params, Array], tuple[Array, dict[str, Array]]]:
    """The cross entropy of the sorted letters, on inputs drawn from ``letters`` (N, 6)."""

    def loss(params: Params, key: Array) -> tuple[Array, dict[str, Array]]:
        drawn = jax.random.randint(key, (batch_size,), 0, len(letters))
        read_BT, said_BN = sequences(jnp.asarray(letters)[drawn])
        logits: Any = jax.vmap(lambda tokens_T: model.apply({"params": params}, tokens_T))(read_BT)
        last_BNV = logits[:, COUNT - 1 :]
        losses_BN = optax.softmax_cross_entropy_with_integer_labels(last_BNV, said_BN)
        return jnp.mean(losses_BN), {}

    return loss


def written(model: LanguageModel, params: Params, letters_BN: np.ndarray) -> np.ndarray:
    """What the model writes behind each input (B, 6), the likeliest letter every time."""

    @jax.jit
    def next_letter(read_BT: Array) -> Array:
        logits: Any = jax.vmap(lambda tokens_T: model.apply({"params": params}, tokens_T))(read_BT)
        return jnp.argmax(logits, axis=-1)

    # Of one length throughout: what is not yet written stands behind, and nobody sees it.
    read_BT = np.pad(letters_BN, ((0, 0), (0, COUNT)))
    for position in range(COUNT, 2 * COUNT):
        read_BT[:, position] = np.asarray(next_letter(read_BT[:, :LENGTH]))[:, position - 1]
    return read_BT[:, COUNT:]


def share_sorted(model: LanguageModel, params: Params, letters_BN: np.ndarray) -> float:
    """Of how many inputs all six letters come out in order."""
    right_BN = written(model, params, letters_BN) == np.sort(letters_BN, axis=-1)
    return float(np.mean(np.all(right_BN, axis=-1)))
