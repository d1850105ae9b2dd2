"""Folders of runs with damaged files: an error that names the file, or what was written."""

import shutil
import time
from dataclasses import dataclass

import numpy as np
import pytest

from icl_jax.records import WorkdirError, open_run
from tests.fuzz import damage

pytestmark = pytest.mark.fuzz


@dataclass(frozen=True)
class Config:
    """What was asked for."""

    width: int = 8


ARRAYS = {"losses": np.linspace(0.0, 1.0, 200), "name": np.arange(5)}
SUMMARY = {"loss": 0.25, "names": ["a", "b"]}


def empty(random, file):
    """Nothing, or no file of the kind (a list is as good as any other value here)."""
    return damage.empty(random, file, ("empty", "zeros", "pointer"))


JSON = (damage.truncate, damage.flip_text, damage.nest, empty)
CASES = [
    (name, way, seed)
    for name, ways in (
        ("config.json", JSON),
        ("provenance.json", JSON),
        ("summary.json", JSON),
        ("arrays.npz", (damage.truncate, damage.flip, empty)),
    )
    for way in ways
    for seed in range(3)
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "whole"
    run = open_run(folder, Config(), experiment="fuzz")
    run.save_json("summary.json", SUMMARY)
    run.save_arrays("arrays.npz", ARRAYS)
    return folder


@pytest.mark.parametrize(
    ("name", "way", "seed"), CASES, ids=lambda value: getattr(value, "__name__", value)
)
def test_a_damaged_file_of_a_run_is_named(whole, tmp_path, name, way, seed):
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    way(np.random.default_rng([seed, len(name)]), folder / name)
    start = time.monotonic()
    try:
        run = open_run(folder, Config(), experiment="fuzz")
        found, arrays = run.load_json("summary.json"), run.load_arrays("arrays.npz")
    except WorkdirError as error:
        assert str(folder) in str(error)
    else:
        assert found == SUMMARY and arrays.keys() == ARRAYS.keys()
        for key, array in arrays.items():
            np.testing.assert_array_equal(array, ARRAYS[key])
    assert time.monotonic() - start < 10
