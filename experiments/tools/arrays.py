"""What an experiment measured, as a frozen dataclass of arrays that is saved and read by field.

A field is an array, another such dataclass, a mapping of names to any of these, or one of them or
None. On disk its name is the path through the fields, such as ``losses.descent``: what a file lacks
or has too much is an error, never a number that is silently left out. Which names a mapping has the
experiment says (``Names``), from its configuration where it depends on that.
"""

import dataclasses
import types
import typing
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

Record = TypeVar("Record")


@dataclasses.dataclass(frozen=True)
class OneOf:
    """Names that depend on what was measured: the mapping has those of one of these choices."""

    choices: tuple[Collection[str], ...]


#: Path of a mapping, or one with ``*`` for every name on the way -> the names that it has: no more,
#: no fewer. Of anything else that may be None: whether it is there.
Names = Mapping[str, Collection[str] | OneOf | bool]

#: Of a record without mappings and without parts that may be None.
NO_NAMES: Names = MappingProxyType({})


def under(path: str, names: Names) -> dict[str, Collection[str] | OneOf | bool]:
    """The names of a record's parts where that record is a part of another, at ``path``."""
    return {f"{path}.{inner}": told for inner, told in names.items()}


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


def rebuild(
    kind: type[Record], arrays: Mapping[str, np.ndarray], names: Names = NO_NAMES
) -> Record:
    """The record of a type from the arrays that ``flatten`` made of one.

    Args:
      kind: the type.
      arrays: by path.
      names: of every mapping in it, and whether there is what may be None.

    Raises:
      ValueError: a field without its arrays, an array without a field, a mapping with other names
        than it must have, a part that must be None, or one of which nobody said what it is.
    """
    left = dict(arrays)
    record = _take(kind, "", "", left, names)
    if left:
        raise ValueError(
            f"rebuild: {kind.__name__} has no field for {', '.join(sorted(left))}.{_OTHER_VERSION}"
        )
    return typing.cast(Record, record)


_OTHER_VERSION = " Was it measured by another version? Choose another --workdir."


def _take(hint: Any, path: str, pattern: str, left: dict[str, np.ndarray], names: Names) -> Any:
    """The part of a record at a path; what it is made of goes from ``left``.

    ``pattern`` is the path as ``names`` has it.
    """
    inside = [key for key in left if key == path or key.startswith(f"{path}.") or not path]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        if not _asked(path, pattern, names):
            if inside:
                raise ValueError(
                    f"rebuild: {', '.join(inside)}: {path} is not asked for.{_OTHER_VERSION}"
                )
            return None
        (hint,) = [part for part in typing.get_args(hint) if part is not type(None)]

    def inner(hint: Any, name: str, in_pattern: str) -> Any:
        here, there = (f"{one}." if one else "" for one in (path, pattern))
        return _take(hint, f"{here}{name}", f"{there}{in_pattern}", left, names)

    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        fields = {f.name: inner(hints[f.name], f.name, f.name) for f in dataclasses.fields(hint)}
        return hint(**fields)  # type: ignore[operator]
    if typing.get_origin(hint) is Mapping:
        _, value = typing.get_args(hint)
        keys = dict.fromkeys(key.removeprefix(f"{path}.").partition(".")[0] for key in inside)
        _check_names(path, pattern, keys, names)
        return {key: inner(value, key, "*") for key in keys}
    if not inside:
        raise ValueError(f"rebuild: nothing was saved for {path}.{_OTHER_VERSION}")
    if inside != [path]:
        raise ValueError(f"rebuild: {path} is one array, but {', '.join(inside)} were saved.")
    return left.pop(path)


def _asked(path: str, pattern: str, names: Names) -> bool:
    """Whether there is what may be None."""
    told = names.get(path, names.get(pattern))
    if told is None:
        raise ValueError(
            f"rebuild: nobody says whether there is {pattern}. Say so to measured(..., names=)."
        )
    return bool(told)


def _check_names(path: str, pattern: str, keys: Collection[str], names: Names) -> None:
    wanted = names.get(path, names.get(pattern))
    if wanted is None or isinstance(wanted, bool):
        raise ValueError(
            f"rebuild: nobody says which names {pattern} has. Give them to measured(..., names=)."
        )
    choices = wanted.choices if isinstance(wanted, OneOf) else (wanted,)
    if any(set(keys) == set(choice) for choice in choices):
        return
    nearest = min(choices, key=lambda choice: len(set(choice) ^ set(keys)))
    lost = [f"nothing was saved for {path}.{name}" for name in nearest if name not in keys]
    more = [f"{path}.{name} is not asked for" for name in keys if name not in nearest]
    raise ValueError(f"rebuild: {'; '.join([*lost, *more])}.{_OTHER_VERSION}")
