"""Rotary position embeddings, and the scalings with which checkpoints stretch them.

A pair of features (i, i + F/2) of a query or key is turned by ``position * rate_i``, so that a
score depends on the distance of two tokens only. A scaling changes the rates for contexts longer
than those of the pre-training. The rates are plain numbers of the configuration: they are computed
once, on the host, in float64.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.patches.low_rank import accumulator

ScalingName = Literal["linear", "llama3", "yarn"]
SCALINGS = ("linear", "llama3", "yarn")


@dataclass(frozen=True)
class Scaling:
    """How the rates are lowered for long contexts.

    Attributes:
      kind: ``linear`` divides all of them (Chen et al., arXiv 2306.15595); ``llama3`` those that
        turn less than ``low_freq_factor`` times in the original length, none that turn more than
        ``high_freq_factor`` times, and blends in between; ``yarn`` (Peng et al., arXiv 2309.00071)
        blends by the index of the rate and sharpens the scores.
      factor: by how much.
      low_freq_factor, high_freq_factor: turns, for ``llama3``.
      original_length: tokens of the pre-training, for ``llama3`` and ``yarn``.
      beta_fast, beta_slow: turns between which ``yarn`` blends.
      attention_factor: by which ``yarn`` multiplies queries and keys; ``0.1 ln(factor) + 1`` when
        left out.
      truncate: whether ``yarn`` rounds its blending range to whole rates.
    """

    kind: ScalingName
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_length: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True

    def __post_init__(self) -> None:
        checks.one_of("Scaling", "kind", self.kind, SCALINGS)
        if self.factor <= 0:
            raise ValueError(f"Scaling: factor must be positive, got {self.factor!r}.")


@dataclass(frozen=True)
class Rotary:
    """Which features turn, and how fast.

    Attributes:
      base: feature pair i of n turns by ``base^(-i/n)`` per position.
      features: how many leading features of a head turn, an even number; all when left out.
      scaling: of the rates; None for none.
    """

    base: float = 10000.0
    features: int | None = None
    scaling: Scaling | None = None


def rates(rotary: Rotary, head_width: int) -> np.ndarray:
    """Radians per position of each feature pair, float64, (n,) with n = turning features / 2.

    Raises:
      ValueError: an odd number of turning features, or more than the head has.
    """
    features = head_width if rotary.features is None else rotary.features
    if features % 2 or not 0 < features <= head_width:
        raise ValueError(
            f"rotary embeddings turn an even number of at most {head_width} features (the head "
            f"width), got {features}."
        )
    plain = rotary.base ** -(np.arange(features // 2) / (features // 2))
    scaling = rotary.scaling
    if scaling is None:
        return plain
    if scaling.kind == "linear":
        return plain / scaling.factor
    if scaling.kind == "llama3":
        turns = scaling.original_length * plain / (2 * np.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        kept = np.clip((turns - scaling.low_freq_factor) / span, 0, 1)
    else:
        kept = 1 - _yarn_ramp(scaling, rotary.base, features)
    return kept * plain + (1 - kept) * plain / scaling.factor


def _yarn_ramp(scaling: Scaling, base: float, features: int) -> np.ndarray:
    """0 for the rates that stay, 1 for those that are divided by the factor."""

    def index_of(turns: float) -> float:
        """The rate, by index, that turns so often in the original length."""
        wavelength = scaling.original_length / (turns * 2 * math.pi)
        return features * math.log(wavelength) / (2 * math.log(base))

    first, last = index_of(scaling.beta_fast), index_of(scaling.beta_slow)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, features - 1)
    # A range of no length would be a step; the source widens it by a hair.
    last = last + 0.001 if last == first else last
    return np.clip((np.arange(features // 2) - first) / (last - first), 0, 1)


def rotate(features_TAF: Array, positions_T: Array, rotary: Rotary) -> Array:
    """Turns each head's features by their position; angles in float32 or wider.

    Args:
      features_TAF: (T, A, F), queries or keys.
      positions_T: (T,), position ids.
      rotary: which features turn, and how fast.

    Raises:
      ValueError: see ``rates``.

    Source: Su et al. 2021 (arXiv 2104.09864), in the half-split layout of Llama.
    """
    dtype = accumulator(features_TAF.dtype)
    rates_n = rates(rotary, features_TAF.shape[-1])
    half = len(rates_n)
    angles_Tn = positions_T.astype(dtype)[:, None] * jnp.asarray(rates_n, dtype)[None, :]
    length = jnp.asarray(_sharpening(rotary.scaling), dtype)
    cos_T1n = (length * jnp.cos(angles_Tn))[:, None, :]
    sin_T1n = (length * jnp.sin(angles_Tn))[:, None, :]
    first_TAn = features_TAF[..., :half].astype(dtype)
    second_TAn = features_TAF[..., half : 2 * half].astype(dtype)
    turned = (
        (first_TAn * cos_T1n - second_TAn * sin_T1n).astype(features_TAF.dtype),
        (second_TAn * cos_T1n + first_TAn * sin_T1n).astype(features_TAF.dtype),
    )
    return jnp.concatenate([*turned, features_TAF[..., 2 * half :]], axis=-1)


def _sharpening(scaling: Scaling | None) -> float:
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    return 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
