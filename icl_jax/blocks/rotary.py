"""Rotary position embeddings, and the scalings with which checkpoints stretch them.

A pair of features (i, i + F/2), or (2i, 2i + 1) where they are interleaved, of a query or key is
turned by ``position * rate_i``, so that a score depends on the distance of two tokens only. A
scaling changes the rates for contexts longer than those of the pre-training. The rates are plain
numbers of the configuration: they are computed once, on the host, in float64.
"""

import math
from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array, accumulator

ScalingName = Literal["linear", "llama3", "yarn", "longrope"]
SCALINGS = ("linear", "llama3", "yarn", "longrope")


@dataclass(frozen=True)
class Scaling:
    """How the rates are lowered for long contexts.

    Attributes:
      kind: ``linear`` divides all of them (Chen et al., arXiv 2306.15595); ``llama3`` those that
        turn less than ``low_freq_factor`` times in the original length, none that turn more than
        ``high_freq_factor`` times, and blends in between; ``yarn`` (Peng et al., arXiv 2309.00071)
        blends by the index of the rate and sharpens the scores; ``longrope`` (Ding et al., arXiv
        2402.13753) divides each rate by a factor of its own.
      factor: by how much.
      low_freq_factor, high_freq_factor: turns, for ``llama3``.
      original_length: tokens of the pre-training, for all but ``linear``.
      beta_fast, beta_slow: turns between which ``yarn`` blends.
      attention_factor: by which ``yarn`` and ``longrope`` multiply queries and keys; when left out,
        ``0.1 ln(factor) + 1`` and ``sqrt(1 + ln(factor) / ln(original_length))``.
      truncate: whether ``yarn`` rounds its blending range to whole rates.
      short_factors, long_factors: of ``longrope``, one for each rate: for the sequences whose
        position ids all lie below the original length, and for the others. All tokens of a sequence
        share one set, so a memory that was filled on one side of that length is of no use beyond.

    Examples:
      >>> from icl_jax.blocks.rotary import rates
      >>> scaling = Scaling("llama3", factor=8.0, original_length=128)
      >>> slower = rates(Rotary(scaling=scaling), 8) / rates(Rotary(), 8)
      >>> slower.round(3).tolist()  # the fastest pair stays as it is
      [1.0, 0.428, 0.125, 0.125]
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
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        checks.one_of("Scaling", "kind", self.kind, SCALINGS)
        if self.factor <= 0:
            raise ValueError(f"Scaling: factor must be positive, got {self.factor!r}.")
        if self.kind == "longrope" and self.attention_factor is None and self.original_length < 2:
            raise ValueError(
                "Scaling: longrope sharpens by the logarithm of original_length, which must be at "
                f"least 2, got {self.original_length!r}; or give its attention_factor."
            )


@dataclass(frozen=True)
class Rotary:
    """Which features turn, and how fast.

    Attributes:
      base: feature pair i of n turns by ``base^(-i/n)`` per position.
      features: how many leading features of a head turn, an even number; all when left out.
      scaling: of the rates; None for none.
      interleaved: whether the features of a pair are neighbours (GPT-J, Cohere), in place of half
        the turning features apart.

    Examples:
      >>> stream = jax.random.normal(jax.random.key(0), (6, 8))
      >>> layer = SoftmaxAttention(num_heads=2, rotary=Rotary(base=50.0))
      >>> variables = layer.init(jax.random.key(1), stream)
      >>> later = layer.apply(variables, stream, positions_T=jnp.arange(6) + 7)
      >>> bool(jnp.allclose(later, layer.apply(variables, stream), atol=1e-5))  # distances count
      True
    """

    base: float = 10000.0
    features: int | None = None
    scaling: Scaling | None = None
    interleaved: bool = False


def rates(rotary: Rotary, head_width: int, *, long: bool = False) -> np.ndarray:
    """Radians per position of each feature pair, float64, (n,) with n = turning features / 2.

    Args:
      rotary: which features turn, and how fast.
      head_width: F.
      long: whether the sequence is longer than the original length, which ``longrope`` asks.

    Raises:
      ValueError: an odd number of turning features, or more than the head has; ``longrope`` without
        a factor for each rate.
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
    if scaling.kind == "longrope":
        factors = scaling.long_factors if long else scaling.short_factors
        if len(factors) != len(plain):
            raise ValueError(
                f"longrope: {'long' if long else 'short'}_factors must have one for each of the "
                f"{len(plain)} rates, got {len(factors)}."
            )
        return plain / np.asarray(factors)
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
    rates_n = _rates_of_sequence(rotary, features_TAF.shape[-1], positions_T, dtype)
    half = rates_n.shape[0]
    angles_Tn = positions_T.astype(dtype)[:, None] * rates_n[None, :]
    length = jnp.asarray(_sharpening(rotary.scaling), dtype)
    cos_T1n = (length * jnp.cos(angles_Tn))[:, None, :]
    sin_T1n = (length * jnp.sin(angles_Tn))[:, None, :]
    first, second = slice(half), slice(half, 2 * half)
    if rotary.interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    first_TAn = features_TAF[..., first].astype(dtype)
    second_TAn = features_TAF[..., second].astype(dtype)
    turned: tuple[Array, ...] = (
        (first_TAn * cos_T1n - second_TAn * sin_T1n).astype(features_TAF.dtype),
        (second_TAn * cos_T1n + first_TAn * sin_T1n).astype(features_TAF.dtype),
    )
    if rotary.interleaved:
        pairs_TAn2 = jnp.stack(turned, axis=-1)
        turned = (pairs_TAn2.reshape(*pairs_TAn2.shape[:-2], 2 * half),)
    return jnp.concatenate([*turned, features_TAF[..., 2 * half :]], axis=-1)


def tempered(query_TAF: Array, positions_T: Array, beta: float, period: int) -> Array:
    """Queries times ``1 + beta ln(1 + floor(position / period))``, longer the later they stand.

    Args:
      query_TAF: (T, A, F).
      positions_T: (T,), position ids.
      beta: how much longer.
      period: positions that share a length.

    Source: Meta AI 2025, Llama 4 (temperature tuning in long contexts), as in Ministral 3.
    """
    dtype = accumulator(query_TAF.dtype)
    periods_T = (positions_T // period).astype(dtype)
    lengths_T = 1 + jnp.asarray(beta, dtype) * jnp.log1p(periods_T)
    return query_TAF * lengths_T[:, None, None].astype(query_TAF.dtype)


def _rates_of_sequence(
    rotary: Rotary, head_width: int, positions_T: Array, dtype: jnp.dtype
) -> Array:
    """The rates (n,) of a sequence; only ``longrope`` asks how long it is."""
    short_n = jnp.asarray(rates(rotary, head_width), dtype)
    if rotary.scaling is None or rotary.scaling.kind != "longrope":
        return short_n
    long_n = jnp.asarray(rates(rotary, head_width, long=True), dtype)
    return jnp.where(jnp.max(positions_T) >= rotary.scaling.original_length, long_n, short_n)


def _sharpening(scaling: Scaling | None) -> float:
    if scaling is None or scaling.kind not in ("yarn", "longrope"):
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.factor <= 1:
        return 1.0
    if scaling.kind == "yarn":
        return 0.1 * math.log(scaling.factor) + 1.0
    return math.sqrt(1 + math.log(scaling.factor) / math.log(scaling.original_length))
