"""Values as what JSON knows."""

import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from icl_jax.records.errors import damaged


def plain(value: Any, name: str = "") -> Any:
    """``value`` as what JSON knows: dataclasses and mappings to dicts, arrays to nested lists.

    Args:
      value: dataclasses, mappings with text keys, sequences, numpy and jax scalars and arrays,
        paths, text, numbers, truth values, None.
      name: where the value stands, for the messages.

    Raises:
      ValueError: a number is not finite; the message names it, as in ``descent.losses[3]``.
      TypeError: a value or a key that JSON has no word for.
    """
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        value = np.asarray(value).tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"{name or 'the value'} is {value}, which JSON cannot hold: leave it out, write "
                "None, or save it with save_arrays."
            )
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{name or 'the value'} has the key {key!r}; JSON keys are text.")
        return {key: plain(entry, f"{name}.{key}" if name else key) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [plain(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
    raise TypeError(f"{name or 'the value'} is a {type(value).__name__}, which JSON cannot hold.")


def parsed(text: str | bytes) -> Any:
    """What JSON that was written from ``plain`` values says.

    Raises:
      ValueError: it is no JSON, or such as ``plain`` never gives: a key that comes twice in one
        object, of which Python's reader would take the last; NaN or infinity.
      RecursionError: objects in objects without an end.
    """
    return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_number)


def read_plain(path: Path) -> Any:
    """What a file says that was written from ``plain`` values.

    Raises:
      WorkdirError: the file holds no JSON, or such as ``plain`` never gives.
    """
    try:
        return parsed(path.read_text())
    except (ValueError, RecursionError) as error:  # No JSON, or no text at all.
        raise damaged(path, error) from error


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{json.dumps(key)} comes twice in one object")
        found[key] = value
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number that JSON can hold")
