"""The fields of a frozen dataclass as flags: their names, and their values as text and back.

A field is int, float, str, bool, ``Literal[...]``, ``tuple[X, ...]`` or ``X | None``; anything else
is an error when the flags are made. Nested dataclasses are dotted.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

#: The largest counts that a flag takes: above them arrays outgrow any machine, or a seed its type.
_MOST_SEED, _MOST_STEPS, _MOST = 2**63 - 1, 10**9, 10**7
_METAVARS = {int: "INT", float: "FLOAT", str: "TEXT", bool: "true|false"}


class UsageError(ValueError):
    """A command line that cannot be run; the message says what to change."""


def option(default: Any, text: str) -> Any:
    """A dataclass field with a default and the help text of its flag."""
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Item:
    """One leaf of a configuration: its flag, its type, its default, and where help lists it."""

    name: str
    hint: Any
    default: Any
    help: str
    group: str


def items(config: Any, prefix: str = "") -> Iterator[Item]:
    """The leaves of a configuration, its own before those of nested ones."""
    hints = typing.get_type_hints(type(config))
    nested = []
    summary = (type(config).__doc__ or "").strip().splitlines()[0].rstrip(".")
    group = f"{prefix.rstrip('.') or 'This experiment'}: {summary}"
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            nested.append((value, name + "."))
        else:
            _metavar(hints[field.name], name)
            text = field.metadata.get("help", "")
            yield Item(name, hints[field.name], value, text, group)
    for value, inner in nested:
        yield from items(value, inner)


def overridden(config: Any, given: Mapping[str, Any], prefix: str = "") -> Any:
    """The configuration with other values, by flag name.

    Raises:
      UsageError: it refuses them; the flags that its words name are blamed, or all.
    """
    changes = {}
    for field in dataclasses.fields(config):
        name, value = prefix + field.name, getattr(config, field.name)
        if name in given:
            changes[field.name] = given[name]
        elif any(other.startswith(name + ".") for other in given):
            changes[field.name] = overridden(value, given, name + ".")
    try:
        return dataclasses.replace(config, **changes)
    except (TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        blamed = {name: value for name, value in given.items() if name.startswith(prefix)}
        named = {
            n: v for n, v in blamed.items() if re.search(rf"\b{n.split('.')[-1]}\b", str(error))
        }
        listed = " ".join(f"--{name}={shown(value)}" for name, value in (named or blamed).items())
        raise UsageError(f"{listed}: {error}") from error


def check_size(name: str, value: Any) -> None:
    """Raises UsageError for a whole number that no experiment can mean."""
    leaf = name.split(".")[-1]
    most = _MOST_STEPS if leaf.endswith("_steps") or leaf == "checkpoint_every" else _MOST
    most = _MOST_SEED if leaf == "seed" else most
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, int) and not 0 <= number <= most:
            raise UsageError(f"--{name}={shown(value)}: must be from 0 to {most:,}.")


def converted(hint: Any, text: str) -> Any:
    """The text of a flag as a value of its field's type.

    Raises:
      ValueError: it is no such text; the message says what would be.
    """
    if typing.get_origin(hint) is typing.Literal:
        choices = {shown(choice): choice for choice in typing.get_args(hint)}
        if text not in choices:
            raise ValueError(f"must be one of {', '.join(choices)}.{_nearest(text, list(choices))}")
        return choices[text]
    if typing.get_origin(hint) is tuple:
        return tuple(converted(typing.get_args(hint)[0], part.strip()) for part in text.split(","))
    if (inner := _optional(hint)) is not None:
        return None if text.lower() == "none" else converted(inner, text)
    if hint is bool:
        return converted(typing.Literal[True, False], text)
    try:
        return hint(text)
    except ValueError:
        raise ValueError(f"must be {'an integer' if hint is int else 'a number'}.") from None


def _metavar(hint: Any, name: str) -> str:
    """What stands after ``--name=`` in the help; TypeError where the type cannot be a flag."""
    if hint in _METAVARS:
        return _METAVARS[hint]
    if typing.get_origin(hint) is typing.Literal:
        return "NAME"
    if typing.get_origin(hint) is tuple and typing.get_args(hint)[1:] == (...,):
        return f"{_metavar(typing.get_args(hint)[0], name)},..."
    if (inner := _optional(hint)) is not None:
        return f"{_metavar(inner, name)}|none"
    raise TypeError(
        f"{name}: {hint} cannot be a flag. Use int, float, str, bool, Literal[...], tuple[X, ...], "
        "X | None or a dataclass."
    )


def _optional(hint: Any) -> Any:
    """``X`` of ``X | None``, None of anything else."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return None
    inner = [part for part in typing.get_args(hint) if part is not type(None)]
    return inner[0] if len(inner) == 1 else None


def usage(item: Item) -> str:
    """A flag as the help shows it, with the kind of its value."""
    if item.hint is bool:
        return f"--[no]{item.name}"
    return f"--{item.name}={_metavar(item.hint, item.name)}"


def shown(value: Any) -> str:
    """A value as one types it."""
    if isinstance(value, tuple):
        return ",".join(shown(entry) for entry in value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def unknown_flag(flag: str, names: list[str]) -> str:
    """What is said of a flag that there is not: the nearest of those that there are."""
    leaf = flag.split(".")[-1]
    same_leaf = [name for name in names if name.split(".")[-1] == leaf]
    leaves = {name.split(".")[-1]: name for name in names}
    near = same_leaf or difflib.get_close_matches(flag, names)
    near = near or [leaves[match] for match in difflib.get_close_matches(leaf, list(leaves))]
    hint = f" Did you mean --{' or --'.join(near)}?" if near else ""
    return f"unknown flag --{flag}.{hint} See --help."


def _nearest(text: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(text, choices, n=1)
    return f" Did you mean {near[0]}?" if near else ""
