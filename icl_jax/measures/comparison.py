"""A measure beside its nulls: what is reported is how far it lies from the nearest of them.

A similarity of 0.9 supports "in-context learning is gradient descent" only if an untrained model,
shuffled labels and a random update of the same size score clearly less (Deutch et al.,
arXiv 2311.07772). So the number, its nulls and the margin between them are one record.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.measures.intervals import (
    Interval,
    check_resampling,
    percentile_ends,
    resampled_means,
)

_SUMMARY_KEYS = ("value", "interval", "margin", "margin_interval")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Comparison:
    """The mean of a measure over tasks, and how far it is from what chance gives.

    Attributes:
      value: (), the mean over tasks.
      low: (), the lower end of its bootstrap interval.
      high: (), the upper end.
      nulls: the mean and interval of each null, by name.
      margin: how much nearer to the claim the value is than the nearest null, whichever direction
        "nearer" is: an interval above 0 supports the claim, one around 0 does not.

    Examples:
      >>> values, chance = jnp.array([0.8, 0.9, 0.7]), jnp.array([0.1, 0.2, 0.0])
      >>> found = compare_with_nulls(
      ...     jax.random.key(0), values, {"chance": chance}, larger_is_closer=True
      ... )
      >>> {name: round(float(null.mean), 4) for name, null in found.nulls.items()}
      {'chance': 0.1}
    """

    value: Array
    low: Array
    high: Array
    nulls: Mapping[str, Interval]
    margin: Interval


def compare_with_nulls(
    key: Array,
    values_B: Array,
    nulls: Mapping[str, Array],
    *,
    larger_is_closer: bool,
    level: float = 0.95,
    num_resamples: int = 500,
) -> Comparison:
    """The mean of a measure, of its nulls, and the margin over the nearest null, with intervals.

    ``margin = value - max_null`` where larger is closer to the claim (a cosine), and
    ``margin = min_null - value`` where smaller is (a difference), of means over tasks.

    The bootstrap is paired: every resample draws one set of tasks for the value and all nulls, and
    chooses the nearest null anew. So what is common to a task cancels, and that the nearest null
    was chosen on the same tasks is part of the interval.

    Args:
      key: PRNG key of the resampling.
      values_B: (B,), the measure for each task.
      nulls: by name, (B,) each: the measure for the same tasks in the same order, with one thing
        replaced by what chance gives.
      larger_is_closer: whether larger values support the claim.
      level: probability covered by each interval.
      num_resamples: bootstrap samples.

    Raises:
      ValueError: no null; a name that ``as_summary`` needs itself; not one number for each of two
        or more tasks; a level outside (0, 1), or more draws than memory holds; a number that is
        not finite (an update of zero has no angle), where it can be read: under ``jit`` it makes
        the result NaN.
      TypeError: the dtypes differ or are not floating, ``larger_is_closer`` is no bool, or ``key``
        no PRNG key.

    Examples:
      >>> values, chance = jnp.array([0.8, 0.9, 0.7]), jnp.array([0.1, 0.2, 0.0])
      >>> found = compare_with_nulls(
      ...     jax.random.key(0), values, {"random update": chance}, larger_is_closer=True
      ... )
      >>> round(float(found.value), 4), round(float(found.margin.mean), 4)
      (0.8, 0.7)

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife": percentile intervals.
    """
    where = "compare_with_nulls"
    checks.prng_key(where, "key", key)
    _check_arguments(where, values_B, nulls, larger_is_closer)
    check_resampling(where, values_B.shape[0], level, num_resamples)
    names = list(nulls)

    values_BX = jnp.stack([values_B, *(nulls[name] for name in names)], axis=1)
    values_BX = values_BX.astype(accumulator(values_BX.dtype))
    # The same draws of tasks for the value and all nulls.
    means_SX = resampled_means(key, values_BX, num_resamples)
    means_X = jnp.mean(values_BX, axis=0)

    def margin(means_X: Array) -> Array:
        if larger_is_closer:
            return means_X[0] - jnp.max(means_X[1:])
        return jnp.min(means_X[1:]) - means_X[0]

    samples_SX = jnp.concatenate([means_SX, jax.vmap(margin)(means_SX)[:, None]], axis=1)
    low_X, high_X = percentile_ends(samples_SX, level)
    intervals = {
        name: Interval(means_X[i], low_X[i], high_X[i]) for i, name in enumerate(names, start=1)
    }
    return Comparison(
        value=means_X[0],
        low=low_X[0],
        high=high_X[0],
        nulls=intervals,
        margin=Interval(margin(means_X), low_X[-1], high_X[-1]),
    )


def as_summary(comparison: Comparison) -> dict[str, Any]:
    """A comparison as plain floats, to write into a record.

    Returns:
      ``value``, ``interval`` [low, high], ``margin``, ``margin_interval`` [low, high], and the mean
      of each null under its name.

    Raises:
      ValueError: a batch of comparisons.

    Examples:
      >>> values, chance = jnp.array([0.8, 0.9, 0.7]), jnp.array([0.1, 0.2, 0.0])
      >>> found = compare_with_nulls(
      ...     jax.random.key(0), values, {"chance": chance}, larger_is_closer=True
      ... )
      >>> sorted(as_summary(found))
      ['chance', 'interval', 'margin', 'margin_interval', 'value']
    """
    checks.rank("as_summary", "comparison.value", comparison.value, 0, "()")
    margin = comparison.margin
    summary: dict[str, Any] = {
        "value": float(comparison.value),
        "interval": [float(comparison.low), float(comparison.high)],
        "margin": float(margin.mean),
        "margin_interval": [float(margin.low), float(margin.high)],
    }
    return summary | {name: float(null.mean) for name, null in comparison.nulls.items()}


def _check_arguments(
    where: str, values_B: Array, nulls: Mapping[str, Array], larger_is_closer: bool
) -> None:
    if not nulls:
        raise ValueError(
            f"{where}: nulls is empty. A measure means nothing without what chance gives."
        )
    if not isinstance(larger_is_closer, bool):
        raise TypeError(f"{where}: larger_is_closer must be a bool, got {larger_is_closer!r}.")
    taken = sorted(set(nulls) & set(_SUMMARY_KEYS))
    if taken:
        raise ValueError(
            f"{where}: a null may not be called {taken[0]!r}: a summary needs the name."
        )
    named = {"values_B": values_B} | {f"nulls[{name!r}]": null for name, null in nulls.items()}
    for name, array in named.items():
        checks.rank(where, name, array, 1, "(B)")
        checks.floating(where, name, array)
    checks.same_shape(where, **named)
    checks.same_dtype(where, **named)
    if values_B.shape[0] < 2:
        raise ValueError(f"{where}: values_B needs at least two tasks, got {values_B.shape[0]}.")
    for name, array in named.items():
        if checks.is_concrete(array):
            bad = np.flatnonzero(~np.isfinite(np.asarray(array)))
            if bad.size:
                raise ValueError(
                    f"{where}: {name} is not finite for {bad.size} of {array.shape[0]} tasks, "
                    f"first {array[bad[0]]} at task {bad[0]}. An update of zero has no angle: "
                    "decide what such a task counts as before averaging."
                )
