"""One of two processes that run the main programs together (``tests/pair.py``)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tools.processes import greet
from icl_jax.sharding import make_mesh, on_host
from tests.pair import serve
from tests.sharding.programs import PROGRAMS, setting

#: Devices 0 to 3 are the first process': over ``prompts`` it has half of the prompts; over
#: ``crossed`` both have all of them, and half of each layer.
MESHES = {"prompts": {"data": 4, "model": 2}, "crossed": {"model": 2, "data": 4}}


def named(tree):
    """The leaves of a tree by their paths."""
    return {
        jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


@functools.cache
def met(name):
    """A mesh, on which the processes have found each other."""
    mesh = make_mesh(MESHES[name])
    with jax.set_mesh(mesh):
        greet(mesh)
    return mesh


def run(program, mesh, dtype, file):
    """One program; the first process writes what it gave."""
    with jax.set_mesh(met(mesh)):
        found = on_host(PROGRAMS[program](setting(jnp.dtype(dtype))))
    if jax.process_index() == 0:
        np.savez(file, **named(found))


if __name__ == "__main__":
    serve(run)
