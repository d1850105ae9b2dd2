"""Every experiment on a mesh of eight devices, and on two processes, measures what it does on one.

The learner is trained once, on one device, and its checkpoint is read onto the mesh: what two
trainings of float32 differ by grows with every step, and is a matter of the optimizer
(``tests/sharding/test_equal.py`` compares their first steps, in float64 to 1e-12).
"""

import dataclasses
import functools
import shutil

import jax
import numpy as np
import pytest

from experiments import EXPERIMENTS
from icl_jax.records import Run
from icl_jax.sharding import make_mesh
from tests.experiments import small
from tests.pair import Pair

#: Measures that amplify a rounding, and by how much. An effective rank is the exponential of an
#: entropy of singular values, of which the small ones of a path in float32 are roundings.
#: What a patch compiled from few queries says has the condition of their normal equations.
COMPILED = ("used", "stacked", "averaged", "read", "missing", "by_count", "by_rank", "distance")
CONDITION = {"path_rank": 20.0, **dict.fromkeys(COMPILED, 10.0)}


def files(folder):
    return sorted(path for path in folder.rglob("*.npz") if "checkpoints" not in path.parts)


def unmeasured(folder, other):
    """A copy of an experiment's folder in which only trainings are there."""
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns(".lock"))
    for path in files(other):
        path.unlink()
    return other


def arrays(folder, name):
    """What was measured, but for what is measured in seconds, or in bytes of one device."""
    found = Run(folder).load_arrays(name)
    # LoRA descends for as many seconds as the solution took.
    others = [
        key for key in found if key.endswith(("seconds", "memory")) or key.startswith("lora_")
    ]
    return {key: values for key, values in found.items() if key not in others}


def size_of(values):
    """The root mean square of the entries that are numbers."""
    numbers = values[~np.isnan(values)].astype(np.float64)
    return float(np.sqrt(np.mean(numbers**2))) if numbers.size else 0.0


def assert_equal(name, want, got):
    assert want.keys() == got.keys()
    errors = {}
    for key, expected in want.items():
        if not np.issubdtype(expected.dtype, np.floating):
            np.testing.assert_array_equal(got[key], expected, err_msg=f"{name} {key}")
            continue
        # What was computed in float64 says so; summaries of float32 are kept in float64, too.
        bound = 1e-12 if "float64" in f"{name} {key}" else 1e-5
        bound = next((one for part, one in CONDITION.items() if part in key), 1.0) * bound
        np.testing.assert_array_equal(np.isnan(got[key]), np.isnan(expected), err_msg=key)
        # Of all entries together, relative to their size; of numbers below 1, such as errors that
        # are roundings themselves, to 1.
        error = size_of(got[key] - expected) / max(size_of(expected), 1.0)
        if error > bound:
            errors[key] = (float(error), bound)
    assert not errors, f"{name}: {errors}"


def assert_as_measured(folder, other):
    count = 0
    for path in files(folder):
        name = str(path.relative_to(folder))
        want = arrays(folder, name)
        assert_equal(name, want, arrays(other, name))
        count += len(want)
    assert count > 3


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Runs an experiment on one device, once: its folder, and that of the models."""
    models = tmp_path_factory.mktemp("models")
    small.make_models(models)

    @functools.cache
    def run(name):
        folder = tmp_path_factory.mktemp(name)
        small.run(name, models, folder / "one")
        return folder, models

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", small.NAMES)
def test_an_experiment_measures_the_same_on_eight_devices(name, one):
    folder, models = one(name)
    other = unmeasured(folder / "one", folder / "eight")
    with jax.set_mesh(make_mesh({"data": 4, "model": 2})):
        small.run(name, models, other)
    assert_as_measured(folder / "one", other)


@pytest.mark.slow
def test_the_first_steps_of_a_training_on_the_mesh_are_those_on_one_device(tmp_path):
    module, config = small.experiments(tmp_path)["training"]
    learner = config.learner
    optimizer = dataclasses.replace(learner.training.optimizer, warmup_steps=0)
    steps = dataclasses.replace(learner.training, num_steps=5, optimizer=optimizer)
    config = dataclasses.replace(config, learner=dataclasses.replace(learner, training=steps))
    module.run(config, tmp_path / "one")
    with jax.set_mesh(make_mesh({"data": 4, "model": 2})):
        module.run(config, tmp_path / "eight")
    assert_as_measured(tmp_path / "one", tmp_path / "eight")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    with Pair("tests.experiments.two", tmp_path_factory.mktemp("pair")) as both:
        yield both


@pytest.mark.slow
@pytest.mark.parametrize("name", small.NAMES)
def test_and_the_same_on_four_devices_of_each_of_two_processes(name, one, pair):
    folder, models = one(name)
    other = unmeasured(folder / "one", folder / "two")
    pair.ask(name, models, other)
    assert_as_measured(folder / "one", other)


def test_every_experiment_is_run_or_named_with_a_reason():
    assert not set(small.NAMES) & set(small.NOT_RUN) and all(small.NOT_RUN.values())
    assert {*small.NAMES, *small.NOT_RUN} == set(EXPERIMENTS)
