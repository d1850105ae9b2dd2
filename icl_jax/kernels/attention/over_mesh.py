"""A kernel on a mesh: every device has its own heads, and its own rows of a long context.

The compiler divides products among devices, and no kernel that it cannot look into. On the mesh
that is set the kernel runs inside ``shard_map``: heads where the table divides heads (a device
whose heads all read one group takes that group of whole keys), rows where it divides the context.
Rows of a device read all keys, which are gathered: a ring sends the same bytes, and saves, compiled
for three slices, 1 to 17% of a program's memory (``python -m launch.long_context``).
"""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec

from icl_jax.dims import Array
from icl_jax.kernels.attention.shapes import Sees
from icl_jax.sharding import TABLE

_OF_ROWS = ("row_slots_M", "row_positions_M")


def is_divided() -> bool:
    """Whether the mesh that is set has several devices, among which the compiler divides."""
    mesh = jax.sharding.get_abstract_mesh()
    return mesh.size > 1 and all(kind == AxisType.Auto for kind in mesh.axis_types)


def why_not(num_heads: int, num_groups: int) -> str | None:
    """Why the heads cannot be divided over the mesh that is set; None if they can."""
    shares = _shares(_axes("heads", num_heads))
    if num_groups % shares and shares % num_groups:
        return (
            f"{num_heads} heads over {shares} devices do not read whole groups, or one each, of "
            f"the {num_groups} groups of keys: choose another mesh"
        )
    return None


def by_heads(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel(query, key, value, sees, cap=, sinks_A=)``, on its part of the heads and rows."""

    def forward(
        query_MAF: Array, key_TGF: Array, value_TGF: Array, sees: Sees, **options: Any
    ) -> tuple[Array, Array]:
        num_rows, num_heads, _ = query_MAF.shape
        num_groups = key_TGF.shape[1]
        heads, groups = _axes("heads", num_heads), _axes("kv_heads", num_groups)
        context = _axes("context", key_TGF.shape[0])
        shares, row_shares = _shares(heads), _shares(context)
        # Rows that are padding repeat the last one.
        spare = -num_rows % row_shares
        sinks_A = options.pop("sinks_A", None)
        given = {
            item.name: jnp.asarray(getattr(sees, item.name))
            for item in fields(sees)
            if not item.metadata.get("static") and getattr(sees, item.name) is not None
        }
        known = {} if row_shares > 1 else _known(sees)
        traced = {name: array for name, array in given.items() if name not in known}
        rows = {name: _padded(traced[name], spare) for name in _OF_ROWS if name in traced}
        rest = {name: array for name, array in traced.items() if name not in rows}

        def own(
            query_MAF: Array, key_TGF: Array, value_TGF: Array, rows: Any, rest: Any, sinks_A: Any
        ) -> tuple[Array, Array]:
            if heads and groups != heads and num_groups > 1:
                # All own heads read one group.
                group = jax.lax.axis_index(heads) * num_groups // shares
                key_TGF, value_TGF = (
                    jax.lax.dynamic_slice_in_dim(whole, group, 1, axis=1)
                    for whole in (key_TGF, value_TGF)
                )
            if context:
                key_TGF, value_TGF = (
                    jax.lax.all_gather(part, context, axis=0, tiled=True)
                    for part in (key_TGF, value_TGF)
                )
            seen = replace(sees, **known, **rows, **rest)
            return kernel(query_MAF, key_TGF, value_TGF, seen, sinks_A=sinks_A, **options)

        keys = PartitionSpec(context, groups if groups == heads else None)
        mixed_MAF, log_sum_exp_AM = jax.shard_map(
            own,
            in_specs=(
                PartitionSpec(context, heads),
                keys,
                keys,
                PartitionSpec(context),
                PartitionSpec(),
                PartitionSpec(heads),
            ),
            out_specs=(PartitionSpec(context, heads), PartitionSpec(heads, context)),
            check_vma=False,
        )(_padded(query_MAF, spare), key_TGF, value_TGF, rows, rest, sinks_A)
        return mixed_MAF[:num_rows], log_sum_exp_AM[:, :num_rows]

    return forward


def _axes(name: str, size: int) -> tuple[str, ...] | None:
    """The axes of the mesh that is set over which a logical axis of this size is divided."""
    mesh = jax.sharding.get_abstract_mesh()
    parts = tuple(TABLE.spec((name,), (size,), mesh))
    return None if not parts else (parts[0] if isinstance(parts[0], tuple) else (parts[0],))


def _shares(axes: tuple[str, ...] | None) -> int:
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape[axis] for axis in axes or ())


def _known(sees: Sees) -> dict[str, Any]:
    """Slots that are numbers already, from which a kernel sees what it need not compute."""
    return {
        item.name: getattr(sees, item.name)
        for item in fields(sees)
        if not item.metadata.get("static")
        and getattr(sees, item.name) is not None
        and not isinstance(getattr(sees, item.name), jax.Array)
    }


def _padded(array_M: Array, spare: int) -> Array:
    return jnp.pad(array_M, [(0, spare)] + [(0, 0)] * (array_M.ndim - 1), mode="edge")
