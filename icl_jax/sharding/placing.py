"""Arrays onto a mesh, and values inside a program: by the table."""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from icl_jax.sharding.mesh import TASKS_AXIS
from icl_jax.sharding.names import parameter_axes, record_axes
from icl_jax.sharding.table import TABLE, Table

Tree = TypeVar("Tree")


def specs(tree: Any, mesh: Any, *, leading: str = "", table: Table = TABLE) -> Any:
    """How the leaves of parameters, banks, memories or any record lie on a mesh.

    Args:
      tree: of arrays or of shapes (``jax.ShapeDtypeStruct``).
      mesh: a ``Mesh`` or an ``AbstractMesh``.
      leading: letters (``dims.py``) of the axes in front of those that a record's names tell: of a
        bank ``"LK"``, of a batch of banks ``"BLK"``, of the memories of several texts ``"LB"``, of
        a plain array of prompts ``"B"``.
      table: which logical axis goes where.

    Returns:
      A tree of ``PartitionSpec`` like ``tree``.
    """
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    paths = [_names(path) for path, _ in leaves]
    known = frozenset(paths)
    found = []
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        shape = np.shape(leaf)
        axes = parameter_axes(path, len(shape), known)
        if axes is None:
            axes = record_axes(path[-1] if path else "", len(shape), leading)
        found.append(table.spec(axes, shape, mesh))
    return jax.tree.unflatten(structure, found)


def place(tree: Tree, mesh: Mesh | None = None, *, leading: str = "", table: Table = TABLE) -> Tree:
    """The same arrays, divided over a mesh.

    In a program of several processes every process calls it, with equal values.

    Args:
      tree, leading, table: as in ``specs``.
      mesh: the one that is set (``jax.set_mesh``) when left out, and the default device where none
        is set.

    Examples:
      >>> mesh = make_mesh({"data": 1, "model": 1}, jax.devices()[:1])
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> params = place(model.init(jax.random.key(0), jnp.arange(3, 13))["params"], mesh)
      >>> params["embedding"].sharding.spec  # the vocabulary is divided
      P('model',)
    """
    mesh = jax.sharding.get_mesh() if mesh is None else mesh
    if mesh.empty:
        return jax.device_put(tree)
    placed = jax.tree.map(
        lambda spec: NamedSharding(mesh, spec),
        specs(tree, mesh, leading=leading, table=table),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
    return jax.device_put(tree, placed)


def constrain(tree: Tree, *, leading: str = "", table: Table = TABLE) -> Tree:
    """The same values, asked to lie on the mesh that is set (``jax.set_mesh``); without one, as is.

    What a program draws itself, such as a batch, lies nowhere yet, and every device would compute
    all of it. Inside ``shard_map``, where arrays are parts already, nothing is asked.

    Args:
      tree: of arrays.
      leading, table: as in ``specs``.
    """
    mesh = _divided_mesh()
    if mesh is None:
        return tree
    return jax.tree.map(
        jax.lax.with_sharding_constraint,
        tree,
        specs(tree, mesh, leading=leading, table=table),
    )


def mapped_axes(name: str, size: int, *, table: Table = TABLE) -> str | tuple[str, ...] | None:
    """The axes of the mesh that is set which a mapped axis lies along: ``vmap(spmd_axis_name=)``.

    Args:
      name: a row of the table, such as ``prompts``.
      size: how many there are.
      table: which logical axis goes where.
    """
    mesh = _divided_mesh()
    parts = () if mesh is None else tuple(table.spec((name,), (size,), mesh))
    return parts[0] if parts else None


def shard_tasks(tree: Tree, mesh: Mesh, *, table: Table = TABLE) -> Tree:
    """Places arrays with their leading axis, one entry per task, divided over the mesh.

    A function of each task (a ``vmap``, or ``descent.fleet``) that is jitted and called with them
    runs on all devices at once.

    Args:
      tree: arrays that share their leading axis.
      mesh: from ``task_mesh`` or ``make_mesh``.
      table: its row ``tasks`` says over which axes of the mesh.

    Raises:
      ValueError: no arrays, leading axes that differ or do not divide by the number of devices, or
        a mesh without such an axis.

    Examples:
      >>> tasks = shard_tasks(jnp.arange(4.0), task_mesh(1))  # or of all devices: task_mesh()
      >>> tasks.sharding.spec
      P('tasks',)
    """
    axes = tuple(name for name in table.tasks if name in mesh.axis_names)
    if not axes:
        raise ValueError(
            f"shard_tasks: mesh must have an axis {TASKS_AXIS!r} (or another of {table.tasks}), "
            f"got {mesh.axis_names}. Use task_mesh()."
        )
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(tree)}
    if len(counts) != 1 or counts == {()}:
        raise ValueError(
            "shard_tasks: the arrays of tree must share a leading axis, one entry per task, got "
            f"leading axes {sorted(counts)}."
        )
    ((count,),) = counts
    size = int(np.prod([mesh.shape[name] for name in axes]))
    if count % size:
        raise ValueError(
            f"shard_tasks: {count} tasks do not divide by the {size} devices of mesh. Take "
            f"{count - count % size} or {count + size - count % size} tasks."
        )
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(axes)))


def _divided_mesh() -> Any:
    """The mesh that is set, where the compiler divides arrays; None without one."""
    mesh = jax.sharding.get_abstract_mesh()
    automatic = all(kind == AxisType.Auto for kind in mesh.axis_types)
    return None if mesh.empty or not automatic else mesh


def _names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """The keys of a leaf's path as text."""
    return tuple(jax.tree_util.keystr((key,), simple=True) for key in path)
