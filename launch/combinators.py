"""Lists of settings, made from smaller lists; a setting is a flag's name and its value.

    product(
        grid({"learner.stack.depth": (1, 2, 4)}),
        random({"learner.training.learning_rate": log_uniform(1e-4, 1e-2)}, count=8, seed=0),
        seeds("learner.training.seed", 3),
    )

is 3 x 8 x 3 settings. Everything here is a pure function: the same call gives the same list.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

#: Flag name -> value, for one run.
Settings = dict[str, Any]
#: Draws one value from a generator.
Draw = Callable[[np.random.Generator], Any]


def grid(axes: Mapping[str, Iterable[Any]]) -> list[Settings]:
    """Every combination of the values; the last axis changes fastest.

    >>> grid({"depth": (1, 2), "seed": (0, 1)})[1:3]
    [{'depth': 1, 'seed': 1}, {'depth': 2, 'seed': 0}]
    """
    values = [list(axis) for axis in axes.values()]
    return [dict(zip(axes, point, strict=True)) for point in itertools.product(*values)]


def zipped(axes: Mapping[str, Iterable[Any]]) -> list[Settings]:
    """The first values of all axes, the second values, and so on.

    Raises:
      ValueError: the axes are not equally long.
    """
    values = {name: list(axis) for name, axis in axes.items()}
    lengths = {name: len(axis) for name, axis in values.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"zipped: the axes must be equally long, got {lengths}.")
    return [dict(zip(values, point, strict=True)) for point in zip(*values.values(), strict=True)]


def chain(*sweeps: Iterable[Settings]) -> list[Settings]:
    """One list after the other."""
    return list(itertools.chain(*sweeps))


def product(*sweeps: Iterable[Settings]) -> list[Settings]:
    """Each of the first list with each of the second, and so on; the last changes fastest.

    Raises:
      ValueError: two of the lists set the same flag.
    """
    merged = []
    for parts in itertools.product(*map(list, sweeps)):
        names = [name for part in parts for name in part]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"product: {twice[0]!r} is set by two of the lists.")
        merged.append({name: value for part in parts for name, value in part.items()})
    return merged


def random(axes: Mapping[str, Draw], *, count: int, seed: int) -> list[Settings]:
    """``count`` settings, each axis drawn independently.

    An axis's values depend on its name and the seed only, and a larger count only appends: a sweep
    that grows keeps what it has.
    """
    drawn = {}
    for name, draw in axes.items():
        generator = np.random.default_rng([seed, *name.encode()])
        drawn[name] = [draw(generator) for _ in range(count)]
    return zipped(drawn) if drawn else [{} for _ in range(count)]


def uniform(low: float, high: float) -> Draw:
    """A number between ``low`` and ``high``."""
    return lambda generator: float(generator.uniform(low, high))


def log_uniform(low: float, high: float) -> Draw:
    """A number between ``low`` and ``high``, above 0, uniform in its logarithm."""
    if not 0 < low <= high:
        raise ValueError(f"log_uniform: 0 < low <= high is needed, got {low} and {high}.")
    return lambda generator: math.exp(generator.uniform(math.log(low), math.log(high)))


def integers(low: int, high: int) -> Draw:
    """A whole number from ``low`` to ``high``, both included."""
    return lambda generator: int(generator.integers(low, high, endpoint=True))


def choice(values: Sequence[Any]) -> Draw:
    """One of the values."""
    return lambda generator: values[int(generator.integers(len(values)))]


def seeds(name: str, count: int, *, start: int = 0) -> list[Settings]:
    """``count`` seeds of one flag, from ``start`` on."""
    return grid({name: range(start, start + count)})
