"""Argument checks that the figures share: where, what was expected, what came."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def not_empty(where: str, name: str, values: Sequence[Any]) -> None:
    """Raises ValueError when there is nothing to draw."""
    if len(values) == 0:
        raise ValueError(f"{where}: {name} must not be empty.")


def same_length(where: str, **sequences: Any) -> None:
    """Raises ValueError unless all of the named sequences have one length."""
    lengths = {name: len(sequence) for name, sequence in sequences.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"{where}: the arguments must share one length, got {listed}.")


def numbers(where: str, name: str, values: ArrayLike) -> np.ndarray:
    """An array of float64, or a ValueError that names the argument."""
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: {name} must be an array of real numbers, got {type(values).__name__}."
        ) from error


def vector(where: str, name: str, values: ArrayLike) -> np.ndarray:
    """Likewise, with one axis and at least one entry."""
    array = numbers(where, name, values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{where}: {name} must be a non-empty vector, got shape {array.shape}.")
    return array


def above_zero(where: str, name: str, values: np.ndarray) -> None:
    """Raises ValueError when a value has no place on a logarithmic axis."""
    if np.any(values <= 0):
        raise ValueError(
            f"{where}: {name} must be above 0 on a logarithmic axis, got {values.min()}."
        )


def both_or_none(where: str, low: Any, high: Any) -> None:
    """Raises ValueError when one end of an interval comes without the other."""
    if (low is None) != (high is None):
        missing = "low" if low is None else "high"
        raise ValueError(f"{where}: low and high come together, but {missing} is None.")
