"""Values of arrays on the host, wherever they lie."""

from typing import Any

import jax
from jax.experimental import multihost_utils


def on_host(tree: Any) -> Any:
    """The arrays of a tree as numpy's, whole.

    In a program of several processes an array is put together from all of them, so every process
    has to ask for it; with one process it is ``jax.device_get``.
    """

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            if not leaf.is_fully_replicated:
                return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(jax.tree.map(whole, tree))
