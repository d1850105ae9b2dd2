"""Argument checks with one wording: where, what was expected, what came, what to do.

Shapes and dtypes are static, so they are checked at trace time everywhere. Values are known only
outside ``jit``: the checks on values look when they can and stay silent on tracers, where the
caller reads the returned conditioning numbers instead.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.dims import Array


class NumericalError(ValueError):
    """What a model computed cannot be used: it is not finite, or no patch for it exists."""


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


def is_number(value: Any) -> bool:
    """Whether ``value`` is a real number: ``True`` is none, although Python counts with it."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    """Whether a concrete ``value`` is one integer, of Python, numpy or JAX; ``True`` is none."""
    return np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer)


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
    dtype, axes = getattr(value, "dtype", np.dtype(object)), len(getattr(value, "shape", ()))
    typed = jnp.issubdtype(dtype, jax.dtypes.prng_key)
    if not (typed and axes == 0 or dtype == np.uint32 and axes == 1):
        raise TypeError(
            f"{where}: {name} must be one PRNG key, got {value!r:.80}. Make it with "
            "jax.random.key(seed)."
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


def integers(where: str, name: str, values: Any) -> Array | np.ndarray:
    """``values`` of any shape as an array, on the host where it can be read.

    Raises:
      TypeError: not integers; of a list, any entry, which numpy would turn into one.
    """
    array, other = _as_integers(values)
    if other:
        raise TypeError(f"{where}: {name} must be integers, got {other}.")
    return array


def token_list(where: str, name: str, values: Any) -> np.ndarray:
    """Token ids of a vocabulary that is not known here: (N,), int32, of ``values`` of any shape.

    Raises:
      ValueError: a negative id, or one that has no place in 32 bits.
      TypeError: as ``integers``.
    """
    ids = np.asarray(integers(where, name, values)).reshape(-1)
    wrong = ids[(ids < 0) | (ids >= 2**31)]
    if wrong.size:
        raise ValueError(
            f"{where}: {name} must be token ids, from 0 to {2**31 - 1}, got {wrong[:5].tolist()}."
        )
    return ids.astype(np.int32)


def _as_integers(values: Any) -> tuple[Any, str]:
    """``values`` as an array, and what is there in the place of integers; "" for nothing."""
    if not is_concrete(values):
        return values, "" if jnp.issubdtype(values.dtype, jnp.integer) else str(values.dtype)
    try:
        array = np.asarray(values)
    except ValueError:  # Lists of different lengths.
        array = np.asarray(values, object)
    whole = np.issubdtype(array.dtype, np.integer)
    entries = values if isinstance(values, list | tuple) else ()
    if array.dtype == object:
        entries = array.reshape(-1).tolist()
    # numpy would read [1, True] as [1, 1].
    others = [
        one for one in entries if isinstance(one, bool | np.bool_) or not (whole or _int(one))
    ]
    if others and array.dtype.kind not in "bfc":
        return array, f"{type(others[0]).__name__} ({others[0]!r:.40})"
    if entries and not others and not whole:  # Integers, and 64 bits are too few for one of them.
        return np.asarray(values, object), ""
    return array, "" if whole or not array.size else str(array.dtype)


def _int(value: Any) -> bool:
    return isinstance(value, int | np.integer)


def kept_positions(where: str, kept_K: Any, length: int) -> Array:
    """Returns ``kept_K`` as an int32 array after checking it against a sequence of ``length``.

    Raises:
      TypeError: the positions are not integers, such as a mask.
      ValueError: not a non-empty 1-D array; a position outside the sequence; positions that are
        not strictly increasing; or nothing that is removed.
    """
    return jnp.asarray(positions(where, kept_K, length))


def positions(
    where: str, kept_K: Any, length: int, *, some_removed: bool = True
) -> Array | np.ndarray:
    """``kept_positions`` on the host; ``some_removed=False`` lets all positions stay."""
    kept, other = _as_integers(kept_K)
    if kept.ndim != 1 or kept.shape[0] == 0:
        raise ValueError(
            f"{where}: kept_K must be a non-empty 1-D array of positions, got shape {kept.shape}."
        )
    if other:
        raise TypeError(
            f"{where}: kept_K must hold integer positions, got dtype {other}. Of a mask, they "
            "are jnp.flatnonzero(mask)."
        )
    if kept.shape[0] >= length + (not some_removed):
        raise ValueError(
            f"{where}: the removed set is empty: kept_K keeps {kept.shape[0]} positions of a "
            f"sequence of {length}. Keep fewer positions than there are."
        )
    if is_concrete(kept):
        outside = kept[(kept < 0) | (kept >= length)]
        if outside.size:
            raise ValueError(
                f"{where}: kept position {int(outside[0])} is outside the sequence: positions "
                f"run from 0 to {length - 1}. Count from the left; negative indices do not wrap."
            )
        values = kept.astype(np.int32)  # Signed: differences of unsigned positions would wrap.
        if np.any(np.diff(values) <= 0):
            raise ValueError(
                f"{where}: kept_K must be strictly increasing (sequence order, no repeats), got "
                f"{values.tolist()}."
            )
        return values
    return kept.astype(np.int32)


def possible(kept_K: Array, length: Array | int, count: Array | int | None = None) -> Array:
    """Whether traced kept positions are what ``positions`` lets pass, ().

    Args:
      kept_K: (K,).
      length: of the sequence.
      count: how many of them count; the others repeat the last one.
    """
    behind_K = kept_K[1:] > kept_K[:-1]
    if count is not None:
        behind_K |= jnp.arange(1, kept_K.shape[0], dtype=jnp.int32) >= count
    return jnp.all(behind_K) & (kept_K[0] >= 0) & (kept_K[-1] < length)


def places(
    where: str, length: int, positions_T: Any = None, present_T: Any = None, name: str = "T"
) -> None:
    """Raises unless position ids and the mask of a sequence of ``length`` can be theirs.

    Raises:
      TypeError: position ids that are not integers, a mask that is not boolean.
      ValueError: another number of them, or (outside jit) ids that do not increase where the mask
        says that a token is there, or are negative.
    """
    for label, array in ((f"positions_{name}", positions_T), (f"present_{name}", present_T)):
        if array is None:
            continue
        rank(where, label, array, 1, f"({name})")
        axis_size(where, label, array, 0, length, "the sequence's length")
    if present_T is not None and jnp.result_type(present_T) != jnp.bool_:
        raise TypeError(
            f"{where}: present_{name} must be a boolean mask, got dtype "
            f"{jnp.result_type(present_T)}. Compare it first: present_{name} != 0."
        )
    if positions_T is None:
        return
    if not jnp.issubdtype(jnp.result_type(positions_T), jnp.signedinteger):
        raise TypeError(
            f"{where}: positions_{name} must hold signed integers, got dtype "
            f"{jnp.result_type(positions_T)}: differences of unsigned ids wrap."
        )
    if is_concrete(positions_T) and (present_T is None or is_concrete(present_T)):
        ids = np.asarray(positions_T)
        shown = ids if present_T is None else ids[np.asarray(present_T)]
        if np.any(shown < 0) or np.any(np.diff(shown) <= 0):
            raise ValueError(
                f"{where}: positions_{name} must be non-negative and strictly increasing, got "
                f"{shown.tolist()[:20]}. Tokens are given in the order of their positions."
            )
