"""icl_jax: how a prompt becomes weights.

The public names, in the order in which a context becomes a weight update: what stands in the
context, the block that reads it, the patch, the path of the weights, and what to hold it against.
Everything is a plain function on arrays or a frozen dataclass of them; ``from icl_jax import ...``.

A name is imported when it is first used, so that nobody waits for what they don't use. Which names
there are, and where, stands in ``__init__.pyi``.
"""

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"


def _public() -> tuple[list[str], dict[str, str]]:
    """The names of ``__all__``, and of each the module that has it, read from the stub."""
    names: list[str] = []
    modules = {}
    for node in ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            modules |= {alias.name: str(node.module) for alias in node.names}
        elif isinstance(node, ast.Assign):
            names = ast.literal_eval(node.value)
    return names, modules


__all__, _MODULES = _public()  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        found = getattr(importlib.import_module(_MODULES[name]), name)
    elif (Path(__file__).parent / name / "__init__.py").is_file():
        found = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
