"""TPUs to compile for on a machine that has none: ``libtpu`` describes them."""

import os

# Set before libtpu is loaded: no metadata server is asked, and parallel tests may load it, too.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.experimental import topologies  # noqa: E402

#: The smallest slice of each generation that a topology can be asked for, and a chip's memory.
SLICES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
GIBIBYTES = {"v5e": 16, "v5p": 95, "v6e": 32}


def devices(generation: str) -> np.ndarray:
    """The devices of the smallest slice of a generation."""
    # libtpu reads these when it first compiles, and ends the process over what it does not know,
    # such as what tests/conftest.py sets for CPUs. JAX has read them once it has devices.
    jax.devices()
    os.environ.pop("XLA_FLAGS", None)
    described = topologies.get_topology_desc(platform="tpu", topology_name=SLICES[generation])
    return np.asarray(described.devices)


def one_chip(generation: str) -> jax.sharding.Mesh:
    """A mesh of one chip. Set (``jax.set_mesh``), it makes programs ones for that chip."""
    return jax.sharding.Mesh(
        devices(generation)[:1], ("chip",), axis_types=(jax.sharding.AxisType.Auto,)
    )


def on_one_chip(mesh: jax.sharding.Mesh, *arrays: jax.ShapeDtypeStruct) -> tuple:
    """The shapes of arguments that lie on the chip."""
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    return tuple(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=whole), arrays)
    )
