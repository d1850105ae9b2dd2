"""Choosing k of n by what a choice is worth, one after another."""

from collections.abc import Callable
from typing import Any

import numpy as np

from icl_jax import checks


def greedy(
    worth: Callable[[np.ndarray], Any], num_items: int, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Items, one after another, each the one that makes the chosen worth most.

    For a worth with diminishing returns (monotone and submodular) it reaches 1 - 1/e of the best;
    a model's answer is not always such a worth.

    Args:
      worth: of X sets of items, (X, N) booleans, X numbers: asked once for each choice, about all
        that are left, so that the sets can be run side by side. NaN is worth least.
      num_items: N.
      count: how many to choose.

    Returns:
      The chosen items in their order, (count,), and the worth after each, (count,).

    Raises:
      ValueError: more than there are, or another number of worths than of sets.

    Examples:
      >>> order, worths = greedy(lambda sets: sets @ np.array([1.0, 3.0, 2.0]), 3, 2)
      >>> order.tolist(), worths.tolist()
      ([1, 2], [3.0, 5.0])

    Source: Nemhauser, Wolsey and Fisher 1978.
    """
    checks.positive_int("greedy", "num_items", num_items)
    checks.positive_int("greedy", "count", count)
    if count > num_items:
        raise ValueError(f"greedy: count must be at most num_items={num_items}, got {count}.")
    chosen_N = np.zeros(num_items, bool)
    order, reached = [], []
    for _ in range(count):
        left = np.flatnonzero(~chosen_N)
        sets_XN = np.repeat(chosen_N[None], len(left), axis=0)
        sets_XN[np.arange(len(left)), left] = True
        worths_X = np.asarray(worth(sets_XN), np.float64)
        if worths_X.shape != (len(left),):
            raise ValueError(
                f"greedy: worth must give one number for each of {len(left)} sets, got shape "
                f"{worths_X.shape}."
            )
        best = int(np.argmax(np.where(np.isnan(worths_X), -np.inf, worths_X)))
        chosen_N[left[best]] = True
        order.append(left[best])
        reached.append(worths_X[best])
    return np.array(order), np.array(reached)
