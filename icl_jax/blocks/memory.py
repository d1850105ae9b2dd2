"""The key-value cache of one attention layer: what a continued sequence has to remember."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class KeyValues:
    """Keys and values of the tokens so far, in slots of a fixed number.

    Attributes:
      key_TGF: (T, G, F), normed and turned, zero in free slots.
      value_TGF: (T, G, F).
      positions_T: (T,), int32 position ids.
      present_T: (T,), False in free slots and for padding.
      length: (), int32, the number of slots in use.
    """

    key_TGF: Array
    value_TGF: Array
    positions_T: Array
    present_T: Array
    length: Array


def empty_memory(slots: int, num_heads: int, head_width: int, dtype: jnp.dtype) -> KeyValues:
    """A memory without tokens and with room for ``slots`` of them."""
    checks.positive_int("empty_memory", "slots", slots)
    shape = (slots, num_heads, head_width)
    return KeyValues(
        jnp.zeros(shape, dtype),
        jnp.zeros(shape, dtype),
        jnp.zeros(slots, jnp.int32),
        jnp.zeros(slots, bool),
        jnp.zeros((), jnp.int32),
    )


def append(
    memory: KeyValues,
    key_MGF: Array,
    value_MGF: Array,
    positions_M: Array,
    present_M: Array | None = None,
) -> tuple[KeyValues, Array]:
    """Puts M tokens into the next free slots.

    Returns:
      The memory, and which slots (M, T) each new token may read: those that are present, up to its
      own. A token always reads itself, so that the output of padding stays finite.

    Raises:
      ValueError: more new tokens than slots. (How many are free is a value: the caller counts.)
    """
    num_new, slots = key_MGF.shape[0], memory.key_TGF.shape[0]
    if num_new > slots:
        raise ValueError(
            f"append: {num_new} new tokens do not fit into a memory of {slots} slots; make a "
            "larger one."
        )
    if present_M is None:
        present_M = jnp.ones(num_new, bool)
    start = memory.length
    update = jax.lax.dynamic_update_slice_in_dim
    memory = KeyValues(
        update(memory.key_TGF, key_MGF.astype(memory.key_TGF.dtype), start, axis=0),
        update(memory.value_TGF, value_MGF.astype(memory.value_TGF.dtype), start, axis=0),
        update(memory.positions_T, positions_M.astype(jnp.int32), start, axis=0),
        update(memory.present_T, present_M, start, axis=0),
        start + num_new,
    )
    own_M1 = (start + jnp.arange(num_new, dtype=jnp.int32))[:, None]
    slots_1T = jnp.arange(slots, dtype=jnp.int32)[None, :]
    return memory, (memory.present_T[None, :] & (slots_1T <= own_M1)) | (slots_1T == own_M1)
