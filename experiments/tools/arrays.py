"""What an experiment measured, as a frozen dataclass of arrays that is saved and read by field.

A field is an array, another such dataclass, a mapping of names to any of these, or one of them or
None. On disk its name is the path through the fields, such as ``losses.descent``: what a file lacks
or has too much is an error, never a number that is silently left out.
"""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

Record = TypeVar("Record")


def flatten(record: Any, name: str = "") -> dict[str, Any]:
    """The arrays of a record by the paths to them.

    Raises:
      ValueError: a key of a mapping that cannot be a part of a path.
    """
    if record is None:
        return {}
    if dataclasses.is_dataclass(record) and not isinstance(record, type):
        fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    elif isinstance(record, Mapping):
        fields = dict(record)
    else:
        return {name: record}
    arrays: dict[str, Any] = {}
    for key, value in fields.items():
        if not key or "." in key:
            raise ValueError(f"flatten: {name or 'the record'} has the key {key!r}: use words.")
        arrays |= flatten(value, f"{name}.{key}" if name else key)
    return arrays


def rebuild(kind: type[Record], arrays: Mapping[str, np.ndarray]) -> Record:
    """The record of a type from the arrays that ``flatten`` made of one.

    Raises:
      ValueError: a field without its arrays, or an array without a field.
    """
    left = dict(arrays)
    record = _take(kind, "", left)
    if left:
        raise ValueError(
            f"rebuild: {kind.__name__} has no field for {', '.join(sorted(left))}. Was it measured "
            "by another version? Choose another --workdir."
        )
    return typing.cast(Record, record)


def _take(hint: Any, name: str, left: dict[str, np.ndarray]) -> Any:
    """The part of a record at a path; what it is made of goes from ``left``."""
    inside = [key for key in left if key == name or key.startswith(f"{name}.") or not name]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if not inside:
            return None
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        fields = {
            f.name: _take(hints[f.name], f"{name}.{f.name}" if name else f.name, left)
            for f in dataclasses.fields(hint)
        }
        return hint(**fields)  # type: ignore[operator]
    if not inside:
        raise ValueError(
            f"rebuild: nothing was saved for {name}. Was it measured by another version? Choose "
            "another --workdir."
        )
    if typing.get_origin(hint) is Mapping:
        _, inner = typing.get_args(hint)
        keys = dict.fromkeys(key.removeprefix(f"{name}.").partition(".")[0] for key in inside)
        return {key: _take(inner, f"{name}.{key}", left) for key in keys}
    if inside != [name]:
        raise ValueError(f"rebuild: {name} is one array, but {', '.join(inside)} were saved.")
    return left.pop(name)
