"""By how much one thing is better than another on the same cases, with an interval."""

from typing import Any, NamedTuple

import numpy as np

from icl_jax.report.page import number

RESAMPLES = 2000


class Margin(NamedTuple):
    """A mean, and the ends of its 95% interval over cases."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.value)} ({number(self.low)} to {number(self.high)})"


def apart(cosine: float) -> float:
    """One minus a cosine, for an axis of decades: 0 where rounding puts it below, NaN for NaN.

    >>> apart(0.75), apart(1.0000001)
    (0.25, 0.0)
    """
    return float(np.maximum(1.0 - cosine, 0.0))


def margin(first_B: Any, second_B: Any = 0.0, seed: int = 0) -> Margin:
    """The mean of ``first - second`` over B cases, which are resampled together.

    Args:
      first_B: (B,), of one thing.
      second_B: (B,), of the other; left out for the mean of the first.
      seed: of the resampling.

    >>> margin([3.0, 3.0], [1.0, 1.0])
    Margin(value=2.0, low=2.0, high=2.0)
    """
    gains_B = np.asarray(first_B, np.float64) - np.asarray(second_B, np.float64)
    gains_B = gains_B[np.isfinite(gains_B)]
    if not len(gains_B):
        return Margin(float("nan"), float("nan"), float("nan"))
    draws = np.random.default_rng(seed).integers(0, len(gains_B), (RESAMPLES, len(gains_B)))
    low, high = np.quantile(gains_B[draws].mean(axis=-1), [0.025, 0.975])
    return Margin(float(gains_B.mean()), float(low), float(high))
