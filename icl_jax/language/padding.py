"""Prompts of many lengths as arrays of few shapes, so that little has to be compiled."""

from dataclasses import dataclass

import numpy as np

from icl_jax import checks


@dataclass(frozen=True)
class PaddedPrompt:
    """A prompt with absent tokens at its end, some of them kept.

    Attributes:
      tokens_T: (T,), int32.
      kept_K: (K,), int32, increasing; the first ``num_kept`` are those of the prompt.
      present_T: (T,), False where a token is padding.
      num_kept: how many rows of a result belong to the prompt.
    """

    tokens_T: np.ndarray
    kept_K: np.ndarray
    present_T: np.ndarray
    num_kept: int


def pad_prompt(
    tokens_T: np.ndarray,
    kept_K: np.ndarray,
    *,
    multiple: int = 32,
    limit: int | None = None,
) -> PaddedPrompt:
    """Pads a prompt to a multiple of tokens and a power of two of kept ones.

    Nobody reads an absent token, so the other rows of every result stay what they are.

    Args:
      tokens_T: (T,), token ids.
      kept_K: (K,), kept positions, increasing.
      multiple: of the padded length.
      limit: the most positions that the model has; a prompt that would pass it is left alone.
    """
    checks.positive_int("pad_prompt", "multiple", multiple)
    length, num_kept = len(tokens_T), len(kept_K)
    more_kept = (1 << (num_kept - 1).bit_length()) - num_kept
    more = -(length + more_kept) % multiple + more_kept
    if limit is not None and length + more > limit:
        more = more_kept = 0
    return PaddedPrompt(
        # The last token again: any token will do, except one whose embedding might be zero.
        np.pad(tokens_T, (0, more), mode="edge").astype(np.int32),
        np.concatenate([kept_K, length + np.arange(more_kept)]).astype(np.int32),
        np.arange(length + more) < length,
        num_kept,
    )
