"""Values of arrays on the host, wherever they lie, and what all processes agree on."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec


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


def any_process(answer: bool) -> bool:
    """Whether one of the processes of this program says so; every process has to ask."""
    if not jax.distributed.is_initialized():
        return answer
    mesh = Mesh(np.asarray(jax.devices()), ("all",))
    with jax.set_mesh(mesh):
        told = jax.make_array_from_callback(
            (mesh.size,),
            NamedSharding(mesh, PartitionSpec("all")),
            lambda _: np.full(1, answer, np.int32),
        )
        return bool(np.asarray(jax.jit(jnp.max)(told).addressable_data(0)) > 0)
