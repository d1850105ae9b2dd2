"""Many devices: which axis of an array lies along which axis of the mesh, and who puts it there.

Reading order: ``table`` (logical axes to axes of the mesh), ``names`` (the logical axes of a leaf,
from its name), ``placing`` (arrays onto a mesh, and values inside a program), ``mesh``, ``hosts``
(values of all processes). Nothing else of the library knows the name of a mesh's axis.

    mesh = make_mesh({"data": 4, "model": 2})
    params = place(params, mesh)
    with jax.set_mesh(mesh):
        banks = prompt_patches(model, params, tokens, kept)
"""

from icl_jax.sharding.hosts import any_process, on_host
from icl_jax.sharding.mesh import make_mesh, mesh_axes, task_mesh
from icl_jax.sharding.placing import constrain, mapped_axes, place, shard_tasks, specs
from icl_jax.sharding.table import TABLE, Table

__all__ = [
    "TABLE",
    "Table",
    "any_process",
    "constrain",
    "make_mesh",
    "mapped_axes",
    "mesh_axes",
    "on_host",
    "place",
    "shard_tasks",
    "specs",
    "task_mesh",
]
