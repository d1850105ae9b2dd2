"""The share of a gap that something closes, with an interval: 0 is no context, 1 the full one."""

from typing import Any, NamedTuple

import numpy as np

from icl_jax.report.page import number

RESAMPLES = 1000


class Share(NamedTuple):
    """A share of the gap between two means, and the ends of its 95% interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.value)} ({number(self.low)} to {number(self.high)})"


def share_of_gap(alone_B: Any, full_B: Any, reached_B: Any, seed: int = 0) -> Share:
    """``(alone - reached) / (alone - full)`` of the means over B cases, which are resampled.

    Args:
      alone_B: (B,), what no context has: a loss, or minus a log-probability.
      full_B: (B,), what the full context has.
      reached_B: (B,), what is asked about.
      seed: of the resampling.

    >>> share_of_gap([4.0, 2.0], [0.0, 0.0], [1.0, 0.5]).value
    0.75
    """
    rows = np.stack([np.asarray(one, np.float64) for one in (alone_B, full_B, reached_B)])
    draws = np.random.default_rng(seed).integers(0, rows.shape[1], (RESAMPLES, rows.shape[1]))
    shares = _share(rows[:, draws].mean(axis=-1))
    low, high = np.quantile(shares, [0.025, 0.975])
    return Share(float(_share(rows.mean(axis=-1))), float(low), float(high))


def _share(means: np.ndarray) -> np.ndarray:
    alone, full, reached = means
    with np.errstate(divide="ignore", invalid="ignore"):
        share: np.ndarray = (alone - reached) / (alone - full)
    return share
