"""Chips to plan for: what they hold and how quick they are, and their devices without owning any.

Numbers of one chip, as published (cloud.google.com/tpu/docs; the network as jax-ml.github.io's
"How to scale your model" measures it): peaks, which no program reaches.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax

from experiments.tools.flags import UsageError


@dataclass(frozen=True)
class Chip:
    """One chip.

    Attributes:
      gibibytes: its memory.
      flops: of bfloat16 products, per second.
      memory: bytes per second to and from its memory.
      network: bytes per second that a ring along one axis of the slice brings to each chip, both
        directions together. A slice whose axes are no closed rings has half of it.
      axes: of its network: 2 or 3.
    """

    gibibytes: float
    flops: float
    memory: float
    network: float
    axes: int

    @property
    def capacity(self) -> int:
        """Its memory in bytes."""
        return int(self.gibibytes * 2**30)

    def seconds(self, flops: float, traffic: float, sent: float) -> dict[str, float]:
        """What each part of a program takes alone, at the peaks.

        Args:
          flops: of products in bfloat16.
          traffic: bytes to and from the memory.
          sent: bytes that pass through the chip on the network.
        """
        return {
            "compute": flops / self.flops,
            "memory": traffic / self.memory,
            "network": sent / self.network,
        }


CHIPS: Mapping[str, Chip] = {
    "v5e": Chip(16, 197e12, 819e9, 90e9, 2),
    "v5p": Chip(95, 459e12, 2765e9, 180e9, 3),
    "v6e": Chip(32, 918e12, 1638e9, 180e9, 2),
}

#: What JAX calls a device of each (``Device.device_kind``).
KINDS: Mapping[str, str] = {"TPU v5 lite": "v5e", "TPU v5": "v5p", "TPU v6 lite": "v6e"}

#: How many times longer true float32 products take than bfloat16's (measured on a v6e; DESIGN).
FLOAT32_SLOWDOWN = 4.6


def chip_of(topology: str) -> Chip:
    """The chip of ``v5e:16x16``.

    Raises:
      UsageError: another form, or a chip that is not known.
    """
    name, _, grid = topology.partition(":")
    sizes = grid.split("x")
    if name not in CHIPS or not all(size.isdigit() and int(size) > 0 for size in sizes):
        raise UsageError(
            f"--topology={topology}: must be CHIP:AxB or CHIP:AxBxC with a CHIP of "
            f"{', '.join(CHIPS)}, for example v5e:16x16 or v5p:2x2x1."
        )
    if len(sizes) != CHIPS[name].axes:
        raise UsageError(
            f"--topology={topology}: a slice of {name} has {CHIPS[name].axes} axes, got "
            f"{len(sizes)}."
        )
    return CHIPS[name]


def chip_of_kind(kind: str) -> Chip | None:
    """The chip of a device that JAX calls ``kind``; None where it is not known here, as a CPU."""
    return CHIPS[KINDS[kind]] if kind in KINDS else None


def grid_of(topology: str) -> tuple[int, ...]:
    """The chips along each axis of a slice."""
    return tuple(int(size) for size in topology.partition(":")[2].split("x"))


#: Chips that a described slice has along each axis at least.
_LEAST: Mapping[str, tuple[int, ...]] = {"v5e": (2, 2), "v5p": (2, 2, 1), "v6e": (2, 2)}


def devices_of(topology: str) -> list[Any]:
    """The devices of a slice, described by libtpu; of one smaller than a host, a part of a host.

    Raises:
      UsageError: libtpu is not installed, or knows no such slice.
    """
    chip_of(topology)
    name, grid = topology.partition(":")[0], grid_of(topology)
    whole = tuple(max(size, least) for size, least in zip(grid, _LEAST[name], strict=True))
    # Read when libtpu is loaded: it asks nobody for its machine, and leaves other processes alone.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    jax.devices()  # JAX has read XLA_FLAGS by now; libtpu ends the process over a flag for CPUs.
    os.environ.pop("XLA_FLAGS", None)
    from jax.experimental import topologies

    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{name}:{'x'.join(map(str, whole))}"
        )
    except Exception as error:  # libtpu's own words, of many kinds.
        raise UsageError(
            f"--topology={topology}: libtpu does not describe it ({' '.join(str(error).split())}). "
            "Is the extra tpu installed (pip install icl_jax[tpu])?"
        ) from error
    return list(described.devices)[: math.prod(grid)]
