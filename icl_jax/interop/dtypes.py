"""The dtypes that models are stored and computed in."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

DTYPES = ("float32", "bfloat16", "float16", "float64")


def floating(function: str, dtype: Any) -> np.dtype[Any]:
    """A dtype that was asked for; ValueError for one in which no model is computed, or none."""
    try:
        found = np.dtype(dtype)
    except TypeError:  # Of the name of none.
        found = None
    if found is None or found.name not in DTYPES:
        got = dtype if found is None else found
        raise ValueError(f"{function}: dtype must be one of {', '.join(DTYPES)}, got {got}.")
    return found


def most_of(specs: Iterable[tuple[Any, tuple[int, ...]]]) -> np.dtype[Any]:
    """The dtype that most numbers have."""
    counts: dict[np.dtype[Any], int] = {}
    for dtype, shape in specs:
        counts[dtype] = counts.get(dtype, 0) + math.prod(shape)
    return max(counts, key=lambda dtype: counts[dtype])
