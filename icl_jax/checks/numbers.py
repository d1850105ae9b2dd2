"""What a number, a choice or a key is: truth values, which Python counts with, are none."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.checks.arrays import floating, is_concrete, rank


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number: ``True`` is none, although Python counts with it."""
    numbers = int | float | np.integer | np.floating
    return isinstance(value, numbers) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether a concrete ``value`` is one integer, of Python, numpy or JAX; ``True`` is none."""
    return np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer)


def number(where: str, name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is a real number, or an array of real numbers."""
    if is_number(value):
        return
    dtype = getattr(value, "dtype", np.dtype(object))
    if not (jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)):
        raise TypeError(f"{where}: {name} must be a real number, got {value!r:.80}.")


def positive_int(where: str, name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is an integer of at least 1."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{where}: {name} must be an integer of at least 1, got {value!r}.")


def at_least_two(where: str, name: str, value: Any, reason: str) -> None:
    """Raises ValueError unless ``value`` is an integer of at least 2; ``reason`` says why."""
    positive_int(where, name, value)
    if value < 2:
        raise ValueError(f"{where}: {name} must be at least 2, got {value}: {reason}.")


def non_negative(where: str, name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a finite real number of at least 0."""
    if not is_number(value) or not 0 <= value < float("inf"):
        raise ValueError(f"{where}: {name} must be a finite number of at least 0, got {value!r}.")


def positive(where: str, name: str, value: Any) -> None:
    """Raises ValueError unless ``value`` is a finite real number above 0."""
    if not is_number(value) or not 0 < value < float("inf"):
        raise ValueError(f"{where}: {name} must be a finite number above 0, got {value!r}.")


def positive_scalar(where: str, name: str, value: Any) -> None:
    """As ``positive`` for a number or an array (); a traced one is taken at its word.

    Raises:
      ValueError: not one number, or (where it can be read) not finite and above 0.
      TypeError: an array that is not floating point.
    """
    if not isinstance(value, jax.Array):
        positive(where, name, value)
        return
    rank(where, name, value, 0, "()")
    floating(where, name, value)
    if is_concrete(value):
        positive(where, name, value.item())


def one_of(where: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raises ValueError unless ``value`` is one of ``choices``."""
    if value not in choices:
        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{where}: {name} must be one of {listed}, got {value!r}.")


def prng_key(where: str, name: str, value: Any) -> None:
    """Raises TypeError unless ``value`` is one PRNG key: of ``jax.random.key``, or as raw bits."""
    _check_keys(where, name, value, 0, "one PRNG key", "jax.random.key(seed)")


def prng_keys(where: str, name: str, values: Any) -> None:
    """Raises TypeError unless ``values`` are PRNG keys along one axis, typed or as raw bits."""
    _check_keys(where, name, values, 1, "PRNG keys along an axis", "jax.random.split(key, count)")


def _check_keys(where: str, name: str, value: Any, axes: int, wanted: str, maker: str) -> None:
    dtype, found = getattr(value, "dtype", np.dtype(object)), len(getattr(value, "shape", ()))
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and found == axes or dtype == np.uint32 and found == axes + 1):
        is_array = hasattr(value, "shape") and hasattr(value, "dtype")
        got = f"{dtype} of shape {value.shape}" if is_array else f"{value!r:.80}"
        raise TypeError(f"{where}: {name} must be {wanted}, got {got}. Make it with {maker}.")
