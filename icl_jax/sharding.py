"""Tasks over devices: each works on its share, and nothing passes between them."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

#: The axis of the mesh that tasks are divided over.
TASKS_AXIS = "tasks"


def task_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh of one axis, ``tasks``, over the first ``num_devices`` devices (all, when left out).

    Raises:
      ValueError: there are not so many devices.
    """
    devices = jax.devices()
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise ValueError(
            f"task_mesh: num_devices must be from 1 to {len(devices)}, the devices that there are, "
            f"got {num_devices}."
        )
    return jax.make_mesh((count,), (TASKS_AXIS,), (AxisType.Auto,), devices=devices[:count])


def shard_tasks(tree: Any, mesh: Mesh) -> Any:
    """Places arrays with their leading axis, one entry per task, divided over the mesh.

    A function of each task (a ``vmap``, or ``descent.fleet``) that is jitted and called with them
    runs on all devices at once.

    Args:
      tree: arrays that share their leading axis.
      mesh: from ``task_mesh``, or another with an axis called ``tasks``.

    Raises:
      ValueError: no arrays, leading axes that differ or do not divide by the size of the mesh, or a
        mesh without that axis.
    """
    if TASKS_AXIS not in mesh.axis_names:
        raise ValueError(
            f"shard_tasks: mesh must have an axis {TASKS_AXIS!r}, got {mesh.axis_names}. "
            "Use task_mesh()."
        )
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(
            "shard_tasks: the arrays of tree must share a leading axis, one entry per task, got "
            f"leading axes {sorted(counts)}."
        )
    ((count,),) = counts
    size = mesh.shape[TASKS_AXIS]
    if count % size:
        raise ValueError(
            f"shard_tasks: {count} tasks do not divide by the {size} devices of mesh. Take "
            f"{count - count % size} or {count + size - count % size} tasks."
        )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(TASKS_AXIS)))
