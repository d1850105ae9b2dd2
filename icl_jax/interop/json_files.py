"""JSON files that others wrote: damage is named, with the file."""

import json
from collections import Counter
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no JSON, or no object.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path}: is not a file. Fetch it again.")
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. A checkpoint is a folder with config.json and *.safetensors."
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:  # Of the encoding or of the JSON.
        raise ValueError(f"{path}: not a JSON file ({error}). Fetch it again.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: must hold a JSON object, got a {type(found).__name__}.")
    return found


def optional_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty without the file."""
    return read_json(path) if path.exists() else {}


def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A hook for JSON objects: ValueError for a key that comes twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = [key for key, count in counts.items() if count > 1]
        raise ValueError(f"{json.dumps(twice[0])} comes twice in one object")
    return found
