"""Real English text that every Python installation carries: the language reference in pydoc.

Half a million characters in some eighty topics; they differ a little from one version of Python to
the next, so a result names the version that it was made with.
"""

import pydoc_data.topics

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.sharding import constrain


def reference_texts() -> dict[str, str]:
    """Topic -> text, in the order of the names; texts under several names only once."""
    texts: dict[str, str] = {}
    for name in sorted(pydoc_data.topics.topics):
        text = pydoc_data.topics.topics[name].strip()
        if text not in texts.values():
            texts[name] = text
    return texts


def split_texts(texts: dict[str, str], every: int = 10) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Texts to train on, and every so many-th one to test on.

    Raises:
      ValueError: so few texts that a side would be empty.
    """
    checks.positive_int("split_texts", "every", every)
    test = tuple(text for index, text in enumerate(texts.values()) if index % every == every - 1)
    train = tuple(text for text in texts.values() if text not in test)
    if not train or not test:
        raise ValueError(
            f"split_texts: {len(texts)} texts with every={every} leave one side empty; choose "
            "another every."
        )
    return train, test


def random_windows(key: Array, tokens_N: Array, *, num_windows: int, length: int) -> Array:
    """Stretches (B, T) of a text, each from a place of its own drawn with replacement.

    Raises:
      ValueError: a text shorter than a stretch.
    """
    checks.rank("random_windows", "tokens_N", tokens_N, 1, "(N)")
    if tokens_N.shape[0] < length:
        raise ValueError(
            f"random_windows: a text of {tokens_N.shape[0]} tokens has no stretch of {length}."
        )
    starts_B = jax.random.randint(
        key, (num_windows,), 0, tokens_N.shape[0] - length + 1, dtype=jnp.int32
    )
    offsets_T = jnp.arange(length, dtype=jnp.int32)
    starts_B = constrain(starts_B, leading="B")
    return tokens_N[starts_B[:, None] + offsets_T[None, :]]


def all_windows(tokens_N: np.ndarray, length: int) -> np.ndarray:
    """Stretches (B, T) one after another; what is left at the end is dropped."""
    count = len(tokens_N) // length
    return np.asarray(tokens_N[: count * length]).reshape(count, length)
