"""How a contextual layer is asked to read: a whole sequence, its prefixes, its suffixes, or more.

One layer, four questions. A layer answers all of them through ``ContextualLayer.mix(read, view)``;
what a view needs besides what is read is in the view.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Whole:
    """Every position reads the sequence (T, D).

    Attributes:
      positions_T: (T,), integer position ids; 0..T-1 when left out.
      present_T: (T,), False where a position must contribute nothing to the others.
    """

    positions_T: Array | None = None
    present_T: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prefixes:
    """A context (N, D), and beside it one probe after each of its prefixes (M, D), M = N + 1.

    Attributes:
      positions_M: (M,), increasing position ids of the probes; the context has the first N.
    """

    positions_M: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Suffixes:
    """A context (N, D) and one query (1, D) that reads each of its suffixes.

    Attributes:
      positions_T: (T,) with T = N + 1, position ids of the context and of the query.
    """

    positions_T: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Slots:
    """Where the tokens of a growing sequence lie, the newest included.

    Attributes:
      positions_T: (T,), int32 position ids; zero in free slots.
      present_T: (T,), False in free slots and for padding.
      start: (), int32, the slot of the first new token; the others follow.
      fresh: whether nothing stands before the new tokens, and padding behind them only: then they
        need not look at the memory.
    """

    positions_T: Array
    present_T: Array
    start: Array
    fresh: bool = field(default=False, metadata={"static": True})

    def rows(self, count: int) -> Array:
        """The slots (M,) of the newest tokens."""
        return self.start + jnp.arange(count, dtype=jnp.int32)

    def newest(self, count: int) -> tuple[Array, Array]:
        """Position ids (M,) of the newest tokens, and which of them are present (M,)."""
        cut = jax.lax.dynamic_slice_in_dim
        return cut(self.positions_T, self.start, count), cut(self.present_T, self.start, count)


def free_slots(count: int) -> Slots:
    """Room for ``count`` tokens, and none of them there."""
    checks.positive_int("free_slots", "count", count)
    return Slots(jnp.zeros(count, jnp.int32), jnp.zeros(count, bool), jnp.zeros((), jnp.int32))


def occupy(
    slots: Slots, start: Array | int, positions_M: Array, present_M: Array | None = None
) -> Slots:
    """The slots with M new tokens from ``start`` on; from a literal 0 on, they are ``fresh``.

    Raises:
      ValueError: more new tokens than slots. (How many are free is a value: the caller counts.)
    """
    count, room = positions_M.shape[0], slots.positions_T.shape[0]
    if count > room:
        raise ValueError(
            f"occupy: {count} new tokens do not fit into a memory of {room} slots; make a larger "
            "one."
        )
    present_M = jnp.ones(count, bool) if present_M is None else present_M
    first = jnp.asarray(start, jnp.int32)
    update = jax.lax.dynamic_update_slice_in_dim
    return Slots(
        update(slots.positions_T, positions_M.astype(jnp.int32), first, axis=0),
        update(slots.present_T, present_M, first, axis=0),
        first,
        fresh=isinstance(start, int) and start == 0,
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Extend:
    """New tokens (M, D) after those in a memory; sequences go side by side, a tuple of each.

    Attributes:
      memories: of each sequence, as the layer's ``empty_memory`` made it.
      slots: of each sequence, with the new tokens in them.
    """

    memories: tuple[Any, ...]
    slots: tuple[Slots, ...]


View = Whole | Prefixes | Suffixes | Extend
