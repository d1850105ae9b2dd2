"""``config.json``, read with checks: every option is understood or refused by name.

A getter takes the names that an option has had over the years, newest first; the first one that is
there and not null counts. What a family cannot do it refuses with ``require``. Every key that is
read is remembered, and ``unread`` gives the others: those that are not known to be harmless are
refused (``harmless``), so that no option is ever ignored in silence.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


class _Required:
    """The default of an option without one."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()

#: The keys on the way to an option, such as ``("rope_parameters", "factor")``.
Keys = tuple[str, ...]

# The whole numbers that every part of a program has room for.
_LARGEST = 2**31 - 1
# And the numbers: those of float32, which norms and positions are computed in at least.
_LARGEST_FLOAT = 3.4028235e38


@dataclass(frozen=True)
class Stored:
    """What the files of a checkpoint have, and so the most that its configuration can describe.

    Attributes:
      tensors: how many there are: a layer has one at least.
      longest: the longest axis of any: a width or a number of heads or experts is part of one.
      numbers: in all of them.
    """

    tensors: int = _LARGEST
    longest: int = _LARGEST
    numbers: int = 2**63


@dataclass
class _Record:
    """Which options were read, and the objects that options were read from."""

    read: set[Keys] = field(default_factory=set)
    opened: set[Keys] = field(default_factory=set)


@dataclass(frozen=True)
class Options:
    """A mapping of options, with getters that check types and remember what they read.

    Attributes:
      config: the options, as JSON has them.
      where: what the messages call them.
      stored: what the weights have, where that is known.
      path: where the mapping lies in the file.
      record: what was read, shared with the options inside.
    """

    config: Mapping[str, Any]
    where: str = "config.json"
    stored: Stored = Stored()
    path: Keys = ()
    record: _Record = field(default_factory=_Record, repr=False, compare=False)

    def either(self, *keys: str, default: Any = REQUIRED) -> Any:
        """The value of the first of ``keys`` that is there and not null, of any type.

        Raises:
          ValueError: none is, and there is no default.
        """
        return self._find(keys, default)[1]

    def integer(self, *keys: str, default: int = REQUIRED, least: int | None = None) -> int:
        """A whole number of 32 bits, ``least`` at least.

        Raises:
          ValueError: it is none, less, or missing without a default.
        """
        found = int(self._typed(keys, default, "a whole number of 32 bits", _is_integer))
        return self._at_least(keys, found, least)

    def count(self, *keys: str, default: int = REQUIRED) -> int:
        """A width, or a number of things that the weights have an entry for each; one at least.

        Raises:
          ValueError: no such number, missing without a default, or more than the files have.
        """
        most = self.stored.longest
        return self._counted(keys, default, most, f"the longest axis of a stored tensor is {most}")

    def layers(self, *keys: str, default: int = REQUIRED) -> int:
        """The number of layers, one at least; ValueError as ``count`` raises it."""
        most = self.stored.tensors
        return self._counted(keys, default, most, f"the files have {most} tensors")

    def optional_integer(self, *keys: str, missing: int | None = None) -> int | None:
        """A whole number, or None where the option is null; ``missing`` where it is not there."""
        if self.has(*keys):
            return self.integer(*keys)
        return None if any(key in self.config for key in keys) else missing

    def number(self, *keys: str, default: float = REQUIRED, least: float | None = None) -> float:
        """A finite number (also in float32) as a float, ``least`` at least.

        Raises:
          ValueError: it is none, less, or missing without a default.
        """
        found = float(self._typed(keys, default, "a finite number", _is_number))
        return self._at_least(keys, found, least)

    def positive(self, *keys: str, default: float = REQUIRED) -> float:
        """A finite number above 0; ValueError where it is none, or missing without a default."""
        found = self.number(*keys, default=default)
        if not found > 0:
            raise ValueError(f"{self.where}: {keys[0]} must be above 0, got {found}.")
        return found

    def optional_number(self, *keys: str) -> float | None:
        """A finite number, or None where the option is missing or null."""
        return self.number(*keys) if self.has(*keys) else None

    def boolean(self, *keys: str, default: bool = REQUIRED) -> bool:
        """true or false; ValueError where it is neither, or missing without a default."""
        return bool(self._typed(keys, default, "true or false", _is_boolean))

    def text(self, *keys: str, default: str = REQUIRED) -> str:
        """A text; ValueError where it is none, or missing without a default."""
        return str(self._typed(keys, default, "a text", lambda value: isinstance(value, str)))

    def sequence(self, *keys: str, default: Sequence[Any] = REQUIRED) -> tuple[Any, ...]:
        """A list as a tuple; ValueError where it is none, or missing without a default."""
        return tuple(
            self._typed(keys, default, "a list", lambda value: isinstance(value, list | tuple))
        )

    def mapping(self, *keys: str, default: Mapping[str, Any] = REQUIRED) -> "Options":
        """Options inside the options, such as ``text_config``."""
        key, _ = self._find(keys, default)
        found = self._typed(keys, default, "an object", lambda value: isinstance(value, Mapping))
        self.record.opened.add((*self.path, key))
        return self.inside(found, key)

    def inside(self, config: Mapping[str, Any], *keys: str) -> "Options":
        """Options that were found, or put together, below some keys; they share what was read."""
        where = ": ".join((self.where, *keys))
        return Options(config, where, self.stored, (*self.path, *keys), self.record)

    def having(self, **defaults: Any) -> "Options":
        """The same options, with values for some keys that are not there."""
        return self.inside({**defaults, **self.config})

    def unread(self) -> dict[Keys, Any]:
        """Path -> value of the options that nobody has read; null ones say nothing."""
        return dict(self._unread(self.config, self.path))

    def _unread(self, config: Mapping[str, Any], path: Keys) -> Iterator[tuple[Keys, Any]]:
        for key, value in config.items():
            inner = (*path, key)
            if inner in self.record.opened and isinstance(value, Mapping):
                yield from self._unread(value, inner)
            elif inner not in self.record.read and value is not None:
                yield inner, value

    def has(self, *keys: str) -> bool:
        """Whether one of ``keys`` is there and not null."""
        return any(self.config.get(key) is not None for key in keys)

    def require(self, key: str, allowed: Sequence[Any], default: Any = REQUIRED) -> Any:
        """The value of ``key``, which must be one of ``allowed``.

        Args:
          key: the option.
          allowed: the values that are supported; None stands for null.
          default: what a missing (or null) option means.

        Returns:
          The value.

        Raises:
          ValueError: naming the key, its value and what is supported.
        """
        null = key in self.config and self.config[key] is None and None in allowed
        value = None if null else self.either(key, default=default)
        # With the type of truth values, because 1 == True in Python but not in JSON.
        if (value, isinstance(value, bool)) not in [
            (one, isinstance(one, bool)) for one in allowed
        ]:
            raise self.unsupported(key, value, allowed)
        return value

    def unsupported(self, key: str, value: Any, supported: Sequence[Any] | str) -> ValueError:
        """The error to raise for a value that is understood but not supported."""
        if not isinstance(supported, str):
            supported = ", ".join(json.dumps(one, default=str) for one in supported)
        return ValueError(
            f"{self.where}: {key} = {_shown(value)} is not supported; supported: {supported}."
        )

    def rope(self, layer_type: str | None = None) -> "Options":
        """The rotary options of a layer, however old the file is, under their newest names.

        Newer files have ``rope_parameters``, flat or one object per layer type; older ones have
        ``rope_theta`` (``rotary_emb_base``), ``rope_scaling``, ``partial_rotary_factor``
        (``rotary_pct``), and ``rope_local_base_freq`` for layers of type "sliding_attention",
        whose positions are not scaled.

        Args:
          layer_type: of the layer, in families that have several.

        Returns:
          ``rope_type`` always ("default" where nothing is scaled); ``rope_theta``,
          ``partial_rotary_factor`` and what the type needs, where the file has them. Scaled types
          without an original length have that of the model, ``max_position_embeddings``.

        Raises:
          ValueError: ``rope_scaling`` with an object per layer type, which transformers does not
            look into.
        """
        # As transformers has it: what older files say wins over what newer ones do.
        kept = "rope_scaling" if self.config.get("rope_scaling") else "rope_parameters"
        keys: Keys = (kept,)
        found = dict(self.mapping(kept, default={}).config)
        if kept == "rope_scaling" and any(isinstance(one, Mapping) for one in found.values()):
            raise self.unsupported(kept, found, "one object for all layers; or rope_parameters")
        nested = layer_type is not None and isinstance(found.get(layer_type), Mapping)
        if layer_type is not None and nested:
            keys = (kept, layer_type)
            found = dict(found[layer_type])
            self.record.opened.add((*self.path, *keys))
        elif layer_type == "sliding_attention" and self.has("rope_local_base_freq"):
            found = {"rope_theta": self.number("rope_local_base_freq")}
        self._mark("rope_parameters" if kept == "rope_scaling" else "rope_scaling")
        self._mark("rope_local_base_freq", "max_position_embeddings")
        older = {
            "rope_theta": ("rope_theta", "rotary_emb_base"),
            "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
        }
        for key, names in older.items():
            self._mark(*names)
            if found.get(key) is None and self.has(*names):
                found[key] = self.number(*names)
        inner = self.inside({}, *keys)
        inner._mark("rope_type", "type")
        found["rope_type"] = found.get("rope_type", found.pop("type", None)) or "default"
        self._lengths(found, inner, nested)
        return self.inside(found, *keys)

    def _lengths(self, found: dict[str, Any], inner: "Options", nested: bool) -> None:
        """Sets the length that positions are scaled from, where transformers looks for it."""
        length = "original_max_position_embeddings"
        self._mark(length)
        if found["rope_type"] not in ("llama3", "yarn", "longrope"):
            inner._mark(length)  # It says what ``factor`` is relative to, and changes nothing.
            return
        # Beside the object it counts more than inside, but not where layers have their own.
        longest = self.optional_integer("max_position_embeddings")
        if self.has(length) and not nested:
            found[length] = self.integer(length)
        elif found.get(length) is None and longest is not None:
            found[length] = longest
        original = self.inside(found, *inner.path[len(self.path) :]).optional_integer(length)
        for key, value in ((length, original), ("max_position_embeddings", longest)):
            if value is not None and value < 1:
                raise self.unsupported(key, value, "a number of positions, 1 at least")
        missing = {"yarn": found.get("factor", 1.0) is None, "longrope": not found.get("factor")}
        if missing.get(found["rope_type"]):
            # How much longer texts are than those of the training.
            found["factor"] = longest / original if longest and original else None

    def _mark(self, *keys: str) -> None:
        """Remembers keys as read."""
        self.record.read.update((*self.path, key) for key in keys)

    def _find(self, keys: tuple[str, ...], default: Any) -> tuple[str, Any]:
        """The key that is there, and its value."""
        self._mark(*keys)
        there = {key: self.config[key] for key in keys if self.config.get(key) is not None}
        for key, value in there.items():
            different = [other for other, said in there.items() if said != value]
            if different:
                raise ValueError(
                    f"{self.where}: {key} = {_shown(value)} and {different[0]} = "
                    f"{_shown(there[different[0]])} are two names of one option. Keep one of them."
                )
            return key, value
        if default is REQUIRED:
            raise ValueError(
                f"{self.where}: {' or '.join(keys)} is missing. Is this the config.json that "
                "belongs to the weights?"
            )
        return keys[0], default

    def _typed(self, keys: tuple[str, ...], default: Any, kind: str, is_kind: Any) -> Any:
        """``_find``, checked."""
        key, value = self._find(keys, default)
        if not is_kind(value):
            raise ValueError(f"{self.where}: {key} must be {kind}, got {_shown(value)}.")
        return value

    def _at_least(self, keys: tuple[str, ...], found: Any, least: Any) -> Any:
        if least is not None and found < least:
            key = next((key for key in keys if self.has(key)), keys[0])
            raise ValueError(f"{self.where}: {key} must be at least {least}, got {found}.")
        return found

    def _counted(self, keys: tuple[str, ...], default: Any, most: int, reason: str) -> int:
        key, _ = self._find(keys, default)
        found = self.integer(*keys, default=default, least=1)
        if found > most:
            raise ValueError(
                f"{self.where}: {key} = {found} is more than the weights can have: {reason}. Are "
                "configuration and weights of one checkpoint?"
            )
        return found


def _shown(value: Any) -> str:
    """A value as JSON has it, cut where it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _is_integer(value: Any) -> bool:
    # 1.0 for 1 is common in files that went through other tools.
    return _is_number(value) and abs(value) <= _LARGEST and value == int(value)


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or _is_boolean(value):
        return False
    return abs(value) <= _LARGEST_FLOAT  # False for NaN.


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)
