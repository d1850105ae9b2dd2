"""The names in the reference: the public ones by group, read from ``icl_jax/__init__.pyi``, the one
place that lists them, the records that they return, and what a page asks for itself."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
STUB = ROOT / "icl_jax" / "__init__.pyi"


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


def by_module(paths: list[str]) -> dict[str, list[str]]:
    """The dotted paths of a group, module by module."""
    modules: dict[str, list[str]] = {}
    for path in paths:
        modules.setdefault(path.rsplit(".", 1)[0], []).append(path)
    return modules


def returned(module: str, members: list[str]) -> list[str]:
    """The records of a module that its public functions return and nobody needs to import."""
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    body = ast.parse(source).body
    listed = {path.rsplit(".", 1)[1] for path in members}
    functions = [node for node in body if isinstance(node, ast.FunctionDef) and node.name in listed]
    used = {
        name.id
        for node in functions
        if node.returns is not None
        for name in ast.walk(node.returns)
        if isinstance(name, ast.Name)
    }
    classes = [node.name for node in body if isinstance(node, ast.ClassDef)]
    return [f"{module}.{name}" for name in classes if name in used - listed]


def in_reference() -> list[str]:
    """The dotted paths of all that the reference describes."""
    found = []
    for paths in groups().values():
        for module, members in by_module(paths).items():
            found += [*members, *returned(module, members)]
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        found += re.findall(r"(?m)^::: (\S+)", page.read_text(encoding="utf-8"))
    return found
