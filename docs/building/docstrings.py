"""The house's docstrings as Griffe reads them: ``Source:`` is a paragraph, ``#:`` a docstring."""

import re
from typing import Any

import griffe

SOURCE = re.compile(r"^Source: ?(.*(?:\n(?!\n).*)*)", re.MULTILINE)


class HouseDocstrings(griffe.Extension):
    """Rewrites docstrings as they are collected."""

    def on_instance(self, *, obj: Any, **kwargs: Any) -> None:
        """A source as words in its own paragraph, and the comment above a constant."""
        if obj.is_alias:
            return
        if obj.docstring is None and obj.is_attribute and (text := _comment(obj)):
            obj.docstring = griffe.Docstring(text, parent=obj)
        if obj.docstring is not None and "Source:" in obj.docstring.value:
            obj.docstring.value = SOURCE.sub(_paragraph, obj.docstring.value)


def _paragraph(found: re.Match[str]) -> str:
    return "**Source.** " + " ".join(found[1].split())


def _comment(obj: Any) -> str:
    if obj.lineno is None or not hasattr(obj.filepath, "read_text"):
        return ""
    lines = obj.filepath.read_text(encoding="utf-8").splitlines()
    start = obj.lineno - 1
    while start and lines[start - 1].lstrip().startswith("#:"):
        start -= 1
    return " ".join(
        line.strip().removeprefix("#:").strip() for line in lines[start : obj.lineno - 1]
    )
