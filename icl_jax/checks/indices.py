"""Integers that name something: tokens, positions that are kept, positions of a text."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from icl_jax.checks.arrays import axis_size, is_concrete, rank
from icl_jax.dims import Array


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
    entries = _entries(values) if isinstance(values, list | tuple) else []
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


def _entries(values: Any) -> list[Any]:
    """What stands in lists in lists."""
    nested = isinstance(values, list | tuple)
    return [entry for one in values for entry in _entries(one)] if nested else [values]


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
    where: str, kept_K: Any, length: int, *, some_removed: bool = True, name: str = "kept"
) -> Array | np.ndarray:
    """``kept_positions`` on the host, called ``name``; ``some_removed=False`` lets all stay."""
    kept, other = _as_integers(kept_K)
    if kept.ndim != 1 or kept.shape[0] == 0:
        raise ValueError(
            f"{where}: {name}_K must be a non-empty 1-D array of positions, got shape {kept.shape}."
        )
    if other:
        raise TypeError(
            f"{where}: {name}_K must hold integer positions, got dtype {other}. Of a mask, they "
            "are jnp.flatnonzero(mask)."
        )
    if kept.shape[0] >= length + (not some_removed):
        raise ValueError(
            f"{where}: the removed set is empty: {name}_K keeps {kept.shape[0]} positions of a "
            f"sequence of {length}. Keep fewer positions than there are."
        )
    if is_concrete(kept):
        outside = kept[(kept < 0) | (kept >= length)]
        if outside.size:
            raise ValueError(
                f"{where}: {name} position {int(outside[0])} is outside the sequence: positions "
                f"run from 0 to {length - 1}. Count from the left; negative indices do not wrap."
            )
        values = kept.astype(np.int32)  # Signed: differences of unsigned positions would wrap.
        if np.any(np.diff(values) <= 0):
            raise ValueError(
                f"{where}: {name}_K must be strictly increasing (sequence order, no repeats), got "
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
