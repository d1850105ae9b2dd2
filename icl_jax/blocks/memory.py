"""The key-value cache of one attention layer: what a continued sequence has to remember."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.blocks.views import Slots
from icl_jax.dims import Array
from icl_jax.kernels.attention import Sees


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyValues:
    """Keys and values of the tokens so far, in a fixed number of slots (``views.Slots``).

    Attributes:
      key_TGF: (T, G, F), normed and turned, zero in free slots.
      value_TGF: (T, G, F).
    """

    key_TGF: Array
    value_TGF: Array


def empty_keys(slots: int, num_heads: int, head_width: int, dtype: jnp.dtype) -> KeyValues:
    """A memory without tokens and with room for ``slots`` of them."""
    checks.positive_int("empty_keys", "slots", slots)
    shape = (slots, num_heads, head_width)
    return KeyValues(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def append(memory: KeyValues, key_MGF: Array, value_MGF: Array, slots: Slots) -> KeyValues:
    """Puts the newest M tokens into their slots."""
    update = jax.lax.dynamic_update_slice_in_dim
    return KeyValues(
        update(memory.key_TGF, key_MGF.astype(memory.key_TGF.dtype), slots.start, axis=0),
        update(memory.value_TGF, value_MGF.astype(memory.value_TGF.dtype), slots.start, axis=0),
    )


def newest(memory: Any, slots: Slots, num_new: int) -> Any:
    """Of a memory that has just been extended what is new: the rows of a cache, a state as it is.

    A loop over tokens and layers that hands on rows alone leaves the stacked caches where they lie;
    handed on whole, every layer's cache is written once more for every token.
    """
    if not isinstance(memory, KeyValues):
        return memory
    cut = jax.lax.dynamic_slice_in_dim
    return jax.tree.map(lambda rows_TGF: cut(rows_TGF, slots.start, num_new), memory)


def with_newest(memory: Any, new: Any, start: Array) -> Any:
    """The memory with what ``newest`` found, of one layer or of many: leaves (..., T, G, F)."""
    if not isinstance(memory, KeyValues):
        return new
    update = jax.lax.dynamic_update_slice_in_dim
    return jax.tree.map(lambda old, rows: update(old, rows, start, axis=old.ndim - 3), memory, new)


def sees_memory(
    slots: Slots, num_new: int, window: int | None, *, counts_positions: bool | None = None
) -> Sees:
    """What the newest tokens see: those that are present up to themselves, within the window.

    Args:
      slots: the newest tokens included.
      num_new: how many they are.
      window: in position ids.
      counts_positions: whether their ids matter; where there is a window when left out.
    """
    positions_M = slots.newest(num_new)[0]
    if counts_positions is None:
        counts_positions = window is not None
    if slots.fresh:  # Among themselves; only padding sees what stands behind the last token.
        return Sees(
            row_positions_M=positions_M if counts_positions else None,
            column_positions_T=positions_M if counts_positions else None,
            window=window,
        )
    return Sees(
        row_slots_M=slots.rows(num_new),
        row_positions_M=positions_M,
        column_positions_T=slots.positions_T,
        present_T=slots.present_T,
        window=window,
    )
