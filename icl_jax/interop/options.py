"""``config.json``, read with checks: every option is understood or refused by name.

A getter takes the names that an option has had over the years, newest first; the first one that is
there and not null counts. What a family cannot do it refuses with ``require``, so that no option
is ever ignored in silence.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class _Required:
    """The default of an option without one."""

    def __repr__(self) -> str:
        return "required"


REQUIRED: Any = _Required()


@dataclass(frozen=True)
class Options:
    """A mapping of options, with getters that check types.

    Attributes:
      config: the options, as JSON has them.
      where: what the messages call them.
    """

    config: Mapping[str, Any]
    where: str = "config.json"

    def either(self, *keys: str, default: Any = REQUIRED) -> Any:
        """The value of the first of ``keys`` that is there and not null, of any type.

        Raises:
          ValueError: none is, and there is no default.
        """
        return self._find(keys, default)[1]

    def integer(self, *keys: str, default: int = REQUIRED) -> int:
        """A whole number; ValueError where it is none, or missing without a default."""
        return int(self._typed(keys, default, "a whole number", _is_integer))

    def optional_integer(self, *keys: str, missing: int | None = None) -> int | None:
        """A whole number, or None where the option is null; ``missing`` where it is not there."""
        if self.has(*keys):
            return self.integer(*keys)
        return None if any(key in self.config for key in keys) else missing

    def number(self, *keys: str, default: float = REQUIRED) -> float:
        """A finite number as a float; ValueError where it is none, or missing."""
        return float(self._typed(keys, default, "a finite number", _is_number))

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
        return Options(found, f"{self.where}: {key}")

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
            f"{self.where}: {key} = {json.dumps(value, default=str)} is not supported; supported: "
            f"{supported}."
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
        """
        found = dict(self.mapping("rope_parameters", "rope_scaling", default={}).config)
        if layer_type is not None and isinstance(found.get(layer_type), Mapping):
            found = dict(found[layer_type])
        elif layer_type == "sliding_attention" and self.has("rope_local_base_freq"):
            found = {"rope_theta": self.number("rope_local_base_freq")}
        older = {
            "rope_theta": ("rope_theta", "rotary_emb_base"),
            "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct"),
            "original_max_position_embeddings": ("original_max_position_embeddings",),
        }
        for key, names in older.items():
            if found.get(key) is None and self.has(*names):
                found[key] = self.number(*names)
        found["rope_type"] = found.get("rope_type", found.pop("type", None)) or "default"
        length = "original_max_position_embeddings"
        if found["rope_type"] in ("llama3", "yarn") and found.get(length) is None:
            if self.has("max_position_embeddings"):
                found[length] = self.integer("max_position_embeddings")
        return Options(found, f"{self.where}: rope_parameters")

    def _find(self, keys: tuple[str, ...], default: Any) -> tuple[str, Any]:
        """The key that is there, and its value."""
        for key in keys:
            if self.config.get(key) is not None:
                return key, self.config[key]
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
            raise ValueError(
                f"{self.where}: {key} must be {kind}, got {json.dumps(value, default=str)}."
            )
        return value


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no JSON, or no object.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. A checkpoint is a folder with config.json and *.safetensors."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # Of the encoding or of the JSON.
        raise ValueError(f"{path}: not a JSON file ({error}). Fetch it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold a JSON object, got a {type(found).__name__}.")
    return found


def _is_integer(value: Any) -> bool:
    # 1.0 for 1 is common in files that went through other tools.
    return _is_number(value) and value == int(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not _is_boolean(value) and math.isfinite(value)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)
