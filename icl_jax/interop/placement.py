"""Where the parameters go: one device, or a mesh, each device with its part and no more."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from icl_jax.interop.assemble import Part, Path, Slices, flatten, region, unflatten
from icl_jax.interop.safetensors import MappedTensors, listed
from icl_jax.sharding import TABLE, specs


def placements(
    shapes: Mapping[Path, tuple[int, ...]], mesh: Mesh | None, shardings: Any = None
) -> dict[Path, Sharding | None]:
    """The sharding of each parameter; None for the default device.

    Args:
      shapes: path -> shape of the parameters.
      mesh: the devices; None for the mesh that is set, if the table knows an axis of it, and else
        for the default device. Its axes are used as automatic ones.
      shardings: path -> PartitionSpec, or a tree of them like the parameters; the table of
        ``icl_jax.sharding`` where there is none.

    Raises:
      ValueError: shardings without a mesh, a mesh without an axis that the table knows, a tree that
        is not like the parameters, or a spec that does not fit the shape or the mesh.
    """
    if mesh is None:
        if shardings is not None:
            raise ValueError("load: shardings need a mesh to lie on, got mesh = None. Give one.")
        mesh = jax.sharding.get_mesh()
        if not set(TABLE.mesh_axes()) & set(mesh.axis_names):
            return dict.fromkeys(shapes)
    # With explicit axes, such as jax.make_mesh makes, the model would have to name shardings.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    wanted: dict[Path, Any]
    if shardings is None:
        wanted = _by_the_table(shapes, mesh)
    elif callable(shardings):
        wanted = {path: shardings(path) for path in shapes}
    elif not isinstance(shardings, Mapping):
        raise ValueError(
            "load: shardings must be a function, path -> PartitionSpec, or a tree like the "
            f"parameters, got {shardings!r}. For one of all, give lambda path: SPEC."
        )
    else:
        wanted = flatten(shardings)
        differing = sorted("/".join(path) for path in wanted.keys() ^ shapes.keys())
        if differing:
            raise ValueError(
                "load: shardings must be a tree like the parameters; only one of the two has "
                f"{listed(differing)}. A function of the path is easier: path -> PartitionSpec."
            )
    return {path: _sharding(path, shape, mesh, wanted[path]) for path, shape in shapes.items()}


def _by_the_table(shapes: Mapping[Path, tuple[int, ...]], mesh: Mesh) -> dict[Path, Any]:
    known = TABLE.mesh_axes()
    if not set(known) & set(mesh.axis_names):
        raise ValueError(
            f"load: the mesh has the axes {mesh.axis_names}, and the table divides over "
            f"{', '.join(known)}: every device would get everything. Name an axis of the mesh "
            "'model', or give shardings."
        )
    leaves = {path: jax.ShapeDtypeStruct(shape, np.float32) for path, shape in shapes.items()}
    return flatten(specs(unflatten(leaves), mesh))


def place(
    parts: tuple[Part, ...],
    names: Mapping[str, str],
    tensors: MappedTensors,
    shape: tuple[int, ...],
    dtype: Any,
    sharding: Sharding | None,
) -> jax.Array:
    """A parameter on its devices, each of their parts read from the map on its own.

    Args:
      parts: of the parameter.
      names: name in the table -> name in the files.
      tensors: the files.
      shape: of the parameter.
      dtype: of the parameter.
      sharding: over devices; None for the default device.
    """

    def read(index: Any) -> np.ndarray:
        return region(parts, names, tensors, _filled(index, shape), np.dtype(dtype))

    if sharding is None:
        return jax.device_put(read((slice(None),) * len(shape)))
    return jax.make_array_from_callback(shape, sharding, read)


def _sharding(path: Path, shape: tuple[int, ...], mesh: Mesh, spec: Any) -> Sharding:
    """The sharding of a parameter, checked against its shape."""
    if spec is not None and not isinstance(spec, PartitionSpec | Sharding):
        raise ValueError(
            f"load: the sharding of {'/'.join(path)} must be a PartitionSpec, got {spec!r}."
        )
    try:
        if isinstance(spec, PartitionSpec) and len(spec) > len(shape):
            raise ValueError(f"{len(spec)} axes are too many")
        sharding = (
            spec if isinstance(spec, Sharding) else NamedSharding(mesh, spec or PartitionSpec())
        )
        sharding.shard_shape(shape)
    except Exception as error:  # Some of jax's are no ValueError.
        raise ValueError(
            f"load: {'/'.join(path)} of shape {shape} cannot be sharded as {spec}: "
            f"{str(error).rstrip('.')}. Give a PartitionSpec that fits the mesh "
            f"{dict(mesh.shape)}, or None for a copy on each device."
        ) from error
    return sharding


def _filled(index: tuple[slice, ...], shape: tuple[int, ...]) -> Slices:
    """Slices with a start and a stop."""
    bounds = [part.indices(size) for part, size in zip(index, shape, strict=True)]
    return tuple(slice(start, stop) for start, stop, _ in bounds)
