"""Records of arrays in one line: names, dtypes and shapes in the place of numbers."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_DTYPES = {"bfloat": "bf", "float": "f", "uint": "u", "int": "i", "complex": "c"}


def short(record: Any) -> str:
    """``LowRank(left_RD=f32[1,32], right_RH=f32[1,128])``: the ``__repr__`` of a record.

    Numbers that stand alone are written, what is None is left out.

    Args:
      record: a dataclass or a named tuple of arrays and trees of them.
    """
    if dataclasses.is_dataclass(record):
        names = [field.name for field in dataclasses.fields(record) if field.repr]
    else:
        names = list(record._fields)
    values = {name: getattr(record, name) for name in names}
    shown = [f"{name}={brief(value)}" for name, value in values.items() if value is not None]
    return f"{type(record).__name__}({', '.join(shown)})"


def brief(value: Any) -> str:
    """One value: an array's dtype and shape, a number, or how much a tree holds."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return _array(value)
    if isinstance(value, Mapping) and value and all(isinstance(name, str) for name in value):
        if all(hasattr(one, "shape") for one in value.values()):
            return "{" + ", ".join(f"{name}: {brief(one)}" for name, one in value.items()) + "}"
    if isinstance(value, Mapping | list | tuple) and not hasattr(value, "_fields"):
        leaves = [leaf for leaf in jax.tree.leaves(value) if hasattr(leaf, "shape")]
        if leaves:
            return f"<{count(sum(math.prod(leaf.shape) for leaf in leaves))} numbers>"
    text = repr(value)
    if dataclasses.is_dataclass(value) or hasattr(value, "_fields"):
        return text
    return text if len(text) <= 60 else f"{text[:57]}..."


def count(number: int) -> str:
    """A number of things in at most five characters: 999, 1.2k, 135M, 7.2B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            scaled = number / size
            return f"{scaled:.0f}{letter}" if scaled >= 100 else f"{scaled:.3g}{letter}"
    return str(number)


def _array(array: Any) -> str:
    name = str(array.dtype)
    for long, letter in _DTYPES.items():
        if name.startswith(long):
            name = letter + name.removeprefix(long)
            break
    if array.shape or isinstance(array, jax.core.Tracer | jax.ShapeDtypeStruct):
        return f"{name}[{','.join(map(str, array.shape))}]"
    is_number = jnp.issubdtype(array.dtype, jnp.number) or array.dtype == jnp.bool_
    return f"{array.item():.4g}" if is_number and name != "bool" else str(array)
