"""A learning rate that does descent justice: the best of a grid on tasks held out for it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LineSearch:
    """What was tried and what was best.

    Attributes:
      best_rate: (), the rate of the lowest score.
      rates_X: (X,), the grid, increasing.
      scores_X: (X,), the score of each, infinite where it was not finite.
      at_edge: (), True when the best lies at an end of the grid, and a wider one may hold better.

    Examples:
      >>> found = tune_learning_rate(lambda rate: (rate - 1.0) ** 2, jnp.array([0.25, 0.5, 0.75]))
      >>> float(found.best_rate), found.scores_X.tolist()
      (0.75, [0.5625, 0.25, 0.0625])
      >>> bool(found.at_edge)  # look further up
      True
    """

    best_rate: Array
    rates_X: Array
    scores_X: Array
    at_edge: Array


def rate_grid(lowest: float, highest: float, count: int, dtype: jnp.dtype) -> Array:
    """``count`` learning rates from ``lowest`` to ``highest``, evenly spaced in their logarithm.

    Examples:
      >>> print(rate_grid(0.1, 10.0, 3, jnp.float32).round(3))
      [ 0.1  1.  10. ]
    """
    checks.positive("rate_grid", "lowest", lowest)
    checks.positive("rate_grid", "highest", highest)
    checks.positive_int("rate_grid", "count", count)
    if highest <= lowest:
        raise ValueError(f"rate_grid: highest={highest} must be above lowest={lowest}.")
    return jnp.geomspace(lowest, highest, count, dtype=dtype)


def check_grid(where: str, lowest: float, highest: float, count: int) -> None:
    """Raises ValueError for a grid that ``rate_grid`` or ``tune_learning_rate`` would refuse.

    For a configuration, which names its fields ``lowest_rate``, ``highest_rate``, ``num_rates``.
    """
    checks.positive(where, "lowest_rate", lowest)
    if not lowest < highest < math.inf:
        raise ValueError(
            f"{where}: highest_rate={highest} must be above lowest_rate={lowest}, and finite."
        )
    if count < 3:
        raise ValueError(
            f"{where}: num_rates must be at least 3, got {count}: the best of fewer lies at an "
            "edge of the search."
        )


def tune_learning_rate(score: Callable[[Array], Array], rates_X: Array) -> LineSearch:
    """The rate with the lowest score.

    Args:
      score: ``score(rate) -> ()``, lower is better: a mean loss over held-out tasks.
      rates_X: (X,), increasing.

    Raises:
      ValueError: fewer than three rates, so that the best could only lie at an edge.

    Examples:
      >>> rates = jnp.array([0.1, 1.0, 10.0])
      >>> found = tune_learning_rate(lambda rate: (rate - 2.0) ** 2, rates)
      >>> float(found.best_rate), bool(found.at_edge)
      (1.0, False)
    """
    checks.rank("tune_learning_rate", "rates_X", rates_X, 1, "(X)")
    if rates_X.shape[0] < 3:
        raise ValueError(
            f"tune_learning_rate: rates_X needs at least three rates, got {rates_X.shape[0]}."
        )
    # One after the other: side by side they would need X times the memory of a trajectory.
    scores_X = jax.lax.map(score, rates_X)
    scores_X = jnp.where(jnp.isfinite(scores_X), scores_X, jnp.inf)
    best = jnp.argmin(scores_X)
    at_edge = (best == 0) | (best == rates_X.shape[0] - 1)
    return LineSearch(rates_X[best], rates_X, scores_X, at_edge)
