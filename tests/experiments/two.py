"""One of two processes that run experiments together (``tests/pair.py``)."""

import functools
import importlib
from pathlib import Path

import jax

from experiments.tools.machine import forget_programs
from experiments.tools.processes import greet
from icl_jax.sharding import make_mesh
from tests.pair import serve


@functools.cache
def met():
    """A mesh over both, on which they have found each other."""
    mesh = make_mesh({"data": 4, "model": 2})
    with jax.set_mesh(mesh):
        greet(mesh)
    return mesh


def run(name, models, workdir):
    """One experiment; the first process writes its files."""
    # Modules of tests compute while they are imported, which nobody may before the two have met.
    small = importlib.import_module("tests.experiments.small")
    with jax.set_mesh(met()):
        small.run(name, Path(models), Path(workdir))
    forget_programs()


if __name__ == "__main__":
    serve(run)
