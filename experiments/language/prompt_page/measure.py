"""The updates of a few tokens of a prompt, taken apart, and what they are worth."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.dims import Array
from icl_jax.language.attribution import attributable, attribute
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.pretrained.pretrained import Pretrained


@dataclass(frozen=True)
class Shares:
    """Who wrote the update of one kernel, for N target tokens.

    Attributes:
      tokens: (N, L, A, T), the signed share of every head and token.
      remainder: (N, L), the share of the norm's remainder.
      norm: (N, L), ``|dW|_F``.
    """

    tokens: np.ndarray
    remainder: np.ndarray
    norm: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """All numbers of the page.

    Attributes:
      token_ids: (T,).
      targets: (N,), their positions.
      kept: (N, T), 1 where a token stays beside the target.
      shares: by kernel: ``input`` (what all input kernels share), ``gate``, ..., ``output``.
      patched_error: (N,), of the target's logits, alone with patched weights, relative.
      alone_error: (N,), without patches.
      other_error: (N,), with the patches of the same context backwards; NaN where that is the same.
      likely: (N, 2, 3), the three most probable next tokens, with the context and without.
      probability: (N, 2, 3), theirs.
    """

    token_ids: np.ndarray
    targets: np.ndarray
    kept: np.ndarray
    shares: Mapping[str, Shares]
    patched_error: np.ndarray
    alone_error: np.ndarray
    other_error: np.ndarray
    likely: np.ndarray
    probability: np.ndarray


def measure(
    pretrained: Pretrained, tokens_T: np.ndarray, targets: list[int], kept: list[list[int]]
) -> Arrays:
    """Takes the updates of the targets apart, in every layer and kernel, and applies them.

    Args:
      pretrained: model and parameters.
      tokens_T: (T,), the prompt.
      targets: positions, N of them.
      kept: of each target, what stays: increasing, the target last.
    """
    model, params = pretrained.model, pretrained.params
    many = [tokens_T] * len(targets)
    shares = {}
    for name in attributable(model):
        found = jax.device_get(attribute(model, params, many, kept, of=name))
        shares[name] = Shares(
            np.stack([one.shares_LAT for one in found]),
            np.stack([one.remainder_L for one in found]),
            np.stack([one.norm_L for one in found]),
        )
    full_NV, alone_NV, patched_NV = last_logits(pretrained, many, kept)
    others = [backwards(tokens_T, positions) for positions in kept]
    banks = prompt_patches(model, params, others, kept)
    other_NV = jnp.stack([logits[-1] for logits in patched_logits(model, params, others, banks)])
    is_same_N = np.array([np.array_equal(one, tokens_T) for one in others])
    scale_N = jnp.linalg.norm(full_NV, axis=-1)

    def error(found_NV: Array) -> np.ndarray:
        return np.asarray(jnp.linalg.norm(found_NV - full_NV, axis=-1) / scale_N)

    probability_N2V = jax.nn.softmax(jnp.stack([full_NV, alone_NV], axis=1), axis=-1)
    probability, likely = jax.lax.top_k(probability_N2V, min(3, model.vocab_size))
    stays = np.zeros((len(targets), len(tokens_T)), np.int32)
    for row, positions in zip(stays, kept, strict=True):
        row[positions] = 1
    return Arrays(
        tokens_T,
        np.asarray(targets, np.int32),
        stays,
        shares,
        error(patched_NV),
        error(alone_NV),
        np.where(is_same_N, np.nan, error(other_NV)),
        np.asarray(likely),
        np.asarray(probability),
    )


def backwards(tokens_T: np.ndarray, kept: list[int]) -> np.ndarray:
    """The prompt with what is taken away in front of the target in the opposite order."""
    context = np.setdiff1d(np.arange(kept[-1]), kept)
    other_T = tokens_T.copy()
    other_T[context] = tokens_T[context[::-1]]
    return other_T


def last_logits(
    pretrained: Pretrained, many: list[np.ndarray], kept: list[list[int]]
) -> tuple[Array, Array, Array]:
    """Logits (N, V) of each last kept position: with everything, alone, and alone but patched."""
    model, params = pretrained.model, pretrained.params
    banks = prompt_patches(model, params, many, kept)
    found = (
        full_logits(model, params, many, kept),
        alone_logits(model, params, many, kept),
        patched_logits(model, params, many, banks),
    )
    full, alone, patched = (jnp.stack([logits[-1] for logits in each]) for each in found)
    return full, alone, patched
