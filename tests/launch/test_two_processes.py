"""Two real processes with four devices each give what one device gives.

Run by its own command: ``pytest -m faults``.
"""

import jax
import numpy as np
import pytest

from tests.pair import Pair
from tests.sharding.programs import PROGRAMS
from tests.sharding.test_equal import BOUNDS, alone, assert_equal
from tests.sharding.two import MESHES, named

pytestmark = pytest.mark.faults


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Pair("tests.sharding.two", tmp_path_factory.mktemp("pair")) as both:
        yield both


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    ("mesh", "dtype"), [("prompts", "float64"), ("crossed", "float64"), ("crossed", "float32")]
)
def test_a_program_of_two_processes_gives_what_one_device_gives(
    program, mesh, dtype, pair, tmp_path
):
    assert mesh in MESHES
    pair.ask(program, mesh, dtype, tmp_path / "found.npz")
    scalar = getattr(jax.numpy, dtype)
    want = alone(program, scalar)
    with np.load(tmp_path / "found.npz") as found:
        assert list(found) == list(named(want))
        got = jax.tree.unflatten(jax.tree.structure(want), list(found.values()))
    assert_equal(got, want, BOUNDS[scalar])
