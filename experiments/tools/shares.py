"""The share of a gap that something closes, with an interval: 0 is no context, 1 the full one."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments.tools.margins import Margin
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

    NaN where there is no gap; a draw without one is left out of the interval.

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
    value = float(_share(rows.mean(axis=-1)))
    if np.isnan(value):
        return Share(value, value, value)
    low, high = np.nanquantile(shares, [0.025, 0.975])
    return Share(value, float(low), float(high))


def to_choose_by(loss: Any) -> float:
    """A loss, the least of which is chosen: one that is not finite never is."""
    return float(loss) if np.isfinite(loss) else np.inf


def or_none(value: Any) -> Any:
    """A summary with None for each number that there is not: NaN is none that JSON can hold.

    >>> or_none({"share": Share(float("nan"), 0.0, 1.0), "steps": np.array(3)})
    {'share': [None, 0.0, 1.0], 'steps': 3}
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {key: or_none(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [or_none(entry) for entry in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def beside_nulls(nulls: Mapping[str, Share | Margin | float]) -> str:
    """A sentence that names the null that is hardest to beat, and the others behind it.

    Args:
      nulls: by what tables and legends call them; numbers, or with a ``value`` and an interval.
        The largest is the hardest to beat.

    >>> beside_nulls({"no context": 0.0, "another's": Share(0.2, 0.1, 0.3)})
    "The nearest null is another's: 0.200 (0.100 to 0.300); no context: 0."
    >>> beside_nulls({"no context": 0.0})
    'The null is no context: 0.'
    """
    means = {null: x if isinstance(x, float) else x.value for null, x in nulls.items()}
    told = {null: number(x) if isinstance(x, float) else str(x) for null, x in nulls.items()}
    first, *others = sorted(means, key=lambda null: -means[null])
    rest = "".join(f"; {null}: {told[null]}" for null in others)
    return f"The {'nearest ' if others else ''}null is {first}: {told[first]}{rest}."


def _share(means: np.ndarray) -> np.ndarray:
    alone, full, reached = means
    gap = alone - full
    with np.errstate(divide="ignore", invalid="ignore"):
        share: np.ndarray = np.where(gap == 0, np.nan, (alone - reached) / gap)
    return share
