"""Meshes: devices in a grid whose axes have the names that the table knows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from icl_jax.sharding.table import TABLE, Table

#: The axis of the mesh that tasks are divided over.
TASKS_AXIS = "tasks"


def task_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh of one axis, ``tasks``, over the first ``num_devices`` devices (all, when left out).

    Raises:
      ValueError: there are not so many devices.

    Examples:
      >>> dict(task_mesh(1).shape)
      {'tasks': 1}
    """
    devices = jax.devices()
    count = len(devices) if num_devices is None else num_devices
    if not 1 <= count <= len(devices):
        raise ValueError(
            f"task_mesh: num_devices must be from 1 to {len(devices)}, the devices that there are, "
            f"got {num_devices}."
        )
    return jax.make_mesh((count,), (TASKS_AXIS,), (AxisType.Auto,), devices=devices[:count])


def make_mesh(
    axes: Mapping[str, int], devices: Sequence[Any] | None = None, *, table: Table = TABLE
) -> Mesh:
    """A mesh of named axes, laid onto the network of the devices as JAX thinks best.

    Args:
      axes: name -> size, the slowest first, such as ``{"data": 4, "model": 2}``.
      devices: as many as the sizes' product; the first of all devices when left out.
      table: whose names are meant.

    Raises:
      ValueError: no axes, a name that the table does not know, a size below 1, or another number of
        devices.

    Examples:
      >>> mesh = make_mesh({"data": 1, "model": 1}, jax.devices()[:1])
      >>> dict(mesh.shape)
      {'data': 1, 'model': 1}
    """
    known = table.mesh_axes()
    for name, size in axes.items():
        if name not in known:
            raise ValueError(
                f"make_mesh: axes must be named from {', '.join(known)}, got {name!r}: nothing "
                "would be divided over it."
            )
        if not isinstance(size, int | np.integer) or size < 1:
            raise ValueError(f"make_mesh: the size of {name!r} must be at least 1, got {size!r}.")
    if not axes:
        raise ValueError("make_mesh: axes is empty; give one, such as {'data': 8}.")
    count = math.prod(axes.values())
    found = list(jax.devices() if devices is None else devices)
    if count > len(found) or (devices is not None and count != len(found)):
        raise ValueError(
            f"make_mesh: axes {dict(axes)} are for {count} devices, got {len(found)}. Choose sizes "
            f"whose product is {len(found)}."
        )
    return jax.make_mesh(
        tuple(axes.values()), tuple(axes), (AxisType.Auto,) * len(axes), devices=found[:count]
    )


def mesh_axes(text: str) -> dict[str, int]:
    """``"data:4,model:2"`` as name -> size.

    Raises:
      ValueError: text of another form, or a name twice.
    """
    axes: dict[str, int] = {}
    for part in text.split(","):
        name, colon, size = part.partition(":")
        if not name or not colon or not size.isdecimal() or int(size) < 1 or name in axes:
            raise ValueError(
                f"mesh must be written as NAME:SIZE,NAME:SIZE, each name once, got {text!r}. For "
                "example data:4,model:2."
            )
        axes[name] = int(size)
    return axes
