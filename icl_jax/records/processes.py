"""Several processes of one program: the first one writes, and all see the same."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils


def is_first() -> bool:
    """Whether this process is the one that writes."""
    # Asked in this order, a program of one process is not made to look for devices.
    return not jax.distributed.is_initialized() or jax.process_index() == 0


def gathered(value: Any) -> Any:
    """An array with all of its parts, which may lie on other processes."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        if not value.is_fully_replicated:
            return multihost_utils.process_allgather(value, tiled=True)
    return value


def meet() -> None:
    """Returns when every process of this program is here: what one has written, all can read."""
    of_the_first(True)


def of_the_first(answer: bool) -> bool:
    """The first process' answer, in all of them."""
    if not jax.distributed.is_initialized():
        return answer
    said = answer and jax.process_index() == 0
    # On a mesh of its own, whatever mesh is set: one number of every device.
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
    with jax.set_mesh(mesh):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
        told = jax.make_array_from_callback(
            (mesh.size,), sharding, lambda _: np.full(1, said, np.int32)
        )
        return bool(np.asarray(jax.jit(jnp.max)(told).addressable_data(0)) > 0)
