"""What a loop starts from, inside ``shard_map``.

There a value knows the axes of the mesh over which it varies, and a loop wants the same of its
carry from the first round on. A constant varies over none, so a loop over sharded rows that starts
from zeros is refused until the zeros are said to vary as the rows do.
"""

from typing import Any, TypeVar

import jax

Tree = TypeVar("Tree")


def varying_like(tree: Tree, *examples: Any) -> Tree:
    """``tree`` as it is, marked to vary over every axis of the mesh that an example varies over.

    The identity outside ``shard_map``; under a transformation, of the values that it traces.

    Args:
      tree: arrays, what a loop starts from.
      *examples: trees of arrays, what the loop reads.
    """
    axes = frozenset[Any]().union(*(_axes(leaf) for leaf in jax.tree.leaves(examples)))

    def marked(array: Any) -> Any:
        missing = tuple(sorted(axes - _axes(array), key=str))
        return jax.lax.pcast(array, missing, to="varying") if missing else array

    return jax.tree.map(marked, tree)


def _axes(array: Any) -> frozenset[Any]:
    """The axes of the mesh that an array varies over; none outside ``shard_map``."""
    return frozenset(jax.typeof(array).manual_axis_type.varying)
