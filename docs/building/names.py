"""The public names by group, read from ``icl_jax/__init__.pyi``, the one place that lists them."""

import ast
import re
from pathlib import Path

STUB = Path(__file__).parents[2] / "icl_jax" / "__init__.pyi"


def groups() -> dict[str, list[str]]:
    """Title of a group -> the dotted paths of its names, where they are defined."""
    text = STUB.read_text(encoding="utf-8")
    modules = {
        alias.name: node.module
        for node in ast.parse(text).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    found: dict[str, list[str]] = {}
    for line in text.split("__all__ = [", 1)[1].splitlines():
        if title := re.fullmatch(r"    # (.+)\.", line):
            found[title[1]] = []
        elif name := re.fullmatch(r'    "(\w+)",', line):
            found[list(found)[-1]].append(f"{modules[name[1]]}.{name[1]}")
    return found
