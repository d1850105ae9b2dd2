"""The one table from logical axes to axes of the mesh.

A logical axis is what a letter of ``dims.py`` stands for. Kernels that read the residual stream are
cut by columns and those that write it by rows, so a layer's two halves cost one all-reduce each of
what they add to the stream, and no kernel is ever put together.
"""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jax.sharding import PartitionSpec

#: What the letters of an array's name stand for here; axes of other letters stay whole.
LETTERS = {
    "B": "prompts",
    "N": "context",
    "M": "context",
    "T": "context",
    "D": "width",
    "H": "hidden",
    "A": "heads",
    "G": "kv_heads",
    "E": "experts",
    "V": "vocabulary",
    "L": "layers",
}


@dataclass(frozen=True)
class Table:
    """Logical axis -> the axes of a mesh that it is divided over, as far as the mesh has them.

    An axis that its part of the mesh does not divide stays whole: keys and values of one head, for
    instance, are on every device.

    Attributes:
      prompts: of a batch.
      tasks: of a fleet of descents, which say nothing to each other: over all devices.
      context: positions of one sequence; on a mesh with an axis for them.
      width: of the residual stream. Divided, every product would end in an exchange of kernels or
        of partial sums.
      hidden: of an MLP, and of every expert.
      heads: of queries, and what they pass on.
      kv_heads: of keys and values, where they are fewer.
      experts: whole by default: each token picks its own, and a scan that takes expert after expert
        would exchange kernels (seen in the compiled program); their hidden width is divided.
      vocabulary: rows of the embedding, columns of the head.
      layers: whole: a scan walks them.
    """

    prompts: tuple[str, ...] = ("data",)
    tasks: tuple[str, ...] = ("tasks", "data", "model", "context")
    context: tuple[str, ...] = ("context",)
    width: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ("model",)
    heads: tuple[str, ...] = ("model",)
    kv_heads: tuple[str, ...] = ("model",)
    experts: tuple[str, ...] = ()
    vocabulary: tuple[str, ...] = ("model",)
    layers: tuple[str, ...] = ()

    def mesh_axes(self) -> tuple[str, ...]:
        """Every axis of a mesh that the table knows, in the order of first mention."""
        rows = (getattr(self, name) for name in self.__dataclass_fields__)
        return tuple(dict.fromkeys(axis for row in rows for axis in row))

    def spec(self, axes: Sequence[str | None], shape: Sequence[int], mesh: Any) -> PartitionSpec:
        """How an array lies on a mesh.

        Args:
          axes: the logical axis of every axis, such as ``("prompts", None, "hidden")``; None for
            one that stays whole.
          shape: of the array.
          mesh: a ``Mesh`` or an ``AbstractMesh``.

        Raises:
          ValueError: another number of axes than the shape has.
        """
        if len(axes) != len(shape):
            raise ValueError(
                f"Table.spec: axes must name each of the {len(shape)} axes of shape "
                f"{tuple(shape)}, got {tuple(axes)}. Put None for an axis without a name."
            )
        sizes, taken, parts = dict(mesh.shape), set[str](), list[Any]()
        for name, size in zip(axes, shape, strict=True):
            chosen: list[str] = []
            for axis in () if name is None else getattr(self, name):
                over = math.prod(sizes[one] for one in chosen)
                if axis in sizes and axis not in taken and size % (over * sizes[axis]) == 0:
                    chosen.append(axis)
            taken.update(chosen)
            parts.append(None if not chosen else chosen[0] if len(chosen) == 1 else tuple(chosen))
        while parts and parts[-1] is None:
            parts.pop()
        return PartitionSpec(*parts)


#: What is meant where nothing else is said.
TABLE = Table()

#: The same for prompts that are tasks: nothing passes between them, so all devices share them.
OF_TASKS = dataclasses.replace(TABLE, prompts=TABLE.tasks)
