"""What shape and dtype an array has: static, so that it is seen at trace time, too."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.dims import Array


def no_list(where: str, name: str, array: Any) -> None:
    """Raises TypeError for a list or a tuple, which has no dtype, where an array belongs."""
    if isinstance(array, list | tuple):
        raise TypeError(
            f"{where}: {name} must be an array, got a {type(array).__name__}. Convert it first, "
            f"for example with jnp.asarray({name})."
        )


def rank(where: str, name: str, array: Any, expected: int, axes: str) -> None:
    """Raises unless ``array`` is an array of ``expected`` axes; ``axes`` describes them.

    Raises:
      ValueError: another number of axes.
      TypeError: a list or a tuple.
    """
    no_list(where, name, array)
    got = jnp.ndim(array)
    if got != expected:
        raise ValueError(
            f"{where}: {name} must have {expected} axes {axes}, got {got} axes (shape "
            f"{jnp.shape(array)}). Batches go through jax.vmap."
        )


def floating(where: str, name: str, array: Any) -> None:
    """Raises TypeError unless ``array`` has a floating-point dtype."""
    no_list(where, name, array)
    dtype = jnp.result_type(array)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(
            f"{where}: {name} must be floating point, got {dtype}. Convert it first, for example "
            f"with {name}.astype(jnp.float32)."
        )


def same_dtype(where: str, **arrays: Any) -> None:
    """Raises TypeError unless all ``arrays`` share one dtype: we never promote silently."""
    dtypes = {name: jnp.result_type(array) for name, array in arrays.items()}
    if len(set(dtypes.values())) > 1:
        listed = ", ".join(f"{name}: {dtype}" for name, dtype in dtypes.items())
        raise TypeError(f"{where}: the arguments must share one dtype, got {listed}.")


def same_shape(where: str, **arrays: Any) -> None:
    """Raises ValueError unless all ``arrays`` share one shape."""
    shapes = {name: jnp.shape(array) for name, array in arrays.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name}: {shape}" for name, shape in shapes.items())
        raise ValueError(f"{where}: the arguments must share one shape, got {listed}.")


def comparable(where: str, **arrays: Any) -> None:
    """Raises unless all ``arrays`` are floating point, of one shape and one dtype.

    Raises:
      ValueError: the shapes differ.
      TypeError: lists, not floating point, or dtypes that differ.
    """
    for name, array in arrays.items():
        floating(where, name, array)
    same_shape(where, **arrays)
    same_dtype(where, **arrays)


def not_empty(where: str, name: str, array: Any) -> None:
    """Raises ValueError where ``array`` has no entry."""
    if 0 in jnp.shape(array):
        raise ValueError(f"{where}: {name} has no entries (shape {jnp.shape(array)}).")


def axis_size(where: str, name: str, array: Any, axis: int, expected: int, meaning: str) -> None:
    """Raises ValueError unless axis ``axis`` of ``array`` has ``expected`` entries."""
    got = jnp.shape(array)[axis]
    if got != expected:
        raise ValueError(
            f"{where}: axis {axis} of {name} must have {expected} entries ({meaning}), got {got} "
            f"(shape {jnp.shape(array)})."
        )


def mask(where: str, name: str, array: Any, length: int, meaning: str) -> None:
    """Raises unless ``array`` is a mask: ``length`` booleans, one per what ``meaning`` says.

    Raises:
      ValueError: not one axis of that length.
      TypeError: not boolean: zeros and ones could be positions as well.
    """
    rank(where, name, array, 1, "(positions)")
    axis_size(where, name, array, 0, length, meaning)
    dtype = jnp.result_type(array)
    if dtype != jnp.bool_:
        raise TypeError(
            f"{where}: {name} must be a boolean mask, got dtype {dtype}. Write it as a comparison, "
            f"for example {name} > 0."
        )


def is_concrete(array: Any) -> bool:
    """Whether the values of ``array`` can be read here, that is, outside jit, vmap and grad."""
    return not isinstance(array, jax.core.Tracer)


def non_zero_rows(where: str, name: str, array: Array) -> None:
    """Raises ValueError when a row (last axis) of a concrete ``array`` has length zero.

    A zero-length MLP input cannot be patched: no weight matrix turns zero into anything else. Nor
    can one of subnormal numbers only, which devices take for zero.
    """
    if array.shape[-1] == 0:
        raise ValueError(f"{where}: {name} is empty (shape {array.shape}): it has no direction.")
    if is_concrete(array):
        rows = np.asarray(array)
        wide = np.float64 if rows.dtype == np.float64 else np.float32  # In which it is divided.
        smallest = float(np.finfo(wide).tiny)
        # Asked this way round, a NaN has some length.
        zero = np.argwhere(np.all(np.abs(rows.astype(np.float64)) < smallest, axis=-1))
        if len(zero):  # Not .size, which is 0 for the one row () of a single vector.
            raise ValueError(
                f"{where}: {name} has length zero"
                + (f" at row {tuple(int(i) for i in zero[0])}" if rows.ndim > 1 else "")
                + ". No weight update changes what a zero input gives, so it has no patch: keep a "
                "further position (a BOS token, say) or give the kernel a bias patch instead."
            )
