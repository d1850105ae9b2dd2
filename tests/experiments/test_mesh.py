"""Every experiment on a mesh of eight devices, and on two processes, measures what it does on one.

The learner is trained once, on one device, and its checkpoint is read onto the mesh: what two
trainings of float32 differ by grows with every step, and is a matter of the optimizer
(``tests/sharding/test_equal.py`` compares their first steps, in float64 to 1e-12).
"""

import contextlib
import dataclasses
import functools
import itertools
import shutil
from unittest import mock

import jax
import numpy as np
import pytest

from experiments import EXPERIMENTS
from experiments.language.checkpoint.run import Config as Checked
from experiments.regression import equivalence
from experiments.regression.both import MODELS
from experiments.regression.composition.report import SUMS, USES
from experiments.tools.comparisons import NULLS
from icl_jax.blocks.config import LAYERS
from icl_jax.records import Run
from icl_jax.sharding import constrain, make_mesh, placing
from tests.experiments import small
from tests.pair import Pair


def keys(experiment, file, *parts):
    """The full names of arrays: experiment, file, and the path of every choice of words."""
    words = [[part] if isinstance(part, str) else list(part) for part in parts]
    return [f"{experiment}/{file} {'.'.join(path)}" for path in itertools.product(*words)]


#: What is compiled from queries; a patch of one token is not.
COMPILED = sorted({*USES, *SUMS, "shuffled"} - {"token"})
#: Measures that amplify a rounding, and by how much.
CONDITION = {
    # An effective rank is the exponential of an entropy of singular values, of which the small ones
    # of a path in float32 are roundings.
    **dict.fromkeys(
        [
            *keys("descent", "arrays.npz", "measures", "path_rank_gap", "value"),
            *keys("descent", "arrays.npz", "measures", "path_rank_gap", "nulls", NULLS),
        ],
        20.0,
    ),
    # What a patch compiled from few queries says has the condition of their normal equations.
    **dict.fromkeys(
        [
            *keys("composition", "arrays.npz", MODELS, "used", COMPILED),
            *keys("composition", "arrays.npz", MODELS, ("stacked", "averaged", "missing", "read")),
            # The cosine of two such patches: seen to be off by 2.3e-5 of itself.
            *keys("composition", "arrays.npz", MODELS, "agreed", "another"),
            *keys("real_composition", "arrays.npz", ("stacked", "averaged", "missing")),
        ],
        10.0,
    ),
}

_CASES = equivalence.cases(equivalence.Config())
_PROMPTS = [f"{dtype}/{index:04d}" for dtype in Checked().dtype for index in range(2)]
#: What is a rounding itself, in units of 1: how far a patched run, or a sum of parts, is from the
#: run that it equals on paper. Of these the rounding is compared, not its digits.
ROUNDINGS = {
    *keys("equivalence", "arrays.npz", ("float32", "float64"), _CASES, ("patched", "open_loop")),
    *keys("equivalence", "arrays.npz", "layers", LAYERS, ("patched", "open_loop")),
    *keys("attribution", "arrays.npz", MODELS, "additivity_error"),
    *keys("prompt_page", "arrays.npz", "patched_error"),
    *(
        key
        for file in _PROMPTS
        for key in (
            *keys("checkpoint", f"{file}.npz", "patched", ("relative_error", "kl")),
            *keys("checkpoint", f"{file}.generated4.npz", "generation", ("relative_error", "kl")),
        )
    ),
}


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


def largest(values):
    """Of the entries that are numbers."""
    numbers = values[~np.isnan(values)].astype(np.float64)
    return float(np.max(np.abs(numbers))) if numbers.size else 0.0


def bound_of(key):
    """Of the largest difference between two arrays, in units of the largest entry."""
    # What was computed in float64 says so; summaries of float32 are kept in float64, too.
    return CONDITION.get(key, 1.0) * (1e-12 if "float64" in key else 1e-5)


def assert_equal(name, want, got):
    """``name`` is of the experiment and its file."""
    assert want.keys() == got.keys()
    errors = {}
    for path, expected in want.items():
        key, found = f"{name} {path}", got[path]
        assert found.shape == expected.shape, key
        if not np.issubdtype(expected.dtype, np.floating):
            np.testing.assert_array_equal(found, expected, err_msg=key)
            continue
        np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=key)
        error = largest(found.astype(np.float64) - expected.astype(np.float64))
        size = max(largest(expected), 1.0) if key in ROUNDINGS else largest(expected)
        if error > bound_of(key) * size:
            errors[key] = f"off by {error:.3g}, of {size:.3g}: above {bound_of(key):.3g} of it"
    assert not errors, errors


def assert_as_measured(experiment, folder, other):
    count = 0
    for path in files(folder):
        name = str(path.relative_to(folder))
        want = arrays(folder, name)
        assert_equal(f"{experiment}/{name}", want, arrays(other, name))
        count += len(want)
    assert count > 3


def is_there(leaf):
    """Whether it is an array, and not one of a program that is traced."""
    return isinstance(leaf, jax.Array) and not isinstance(leaf, jax.core.Tracer)


def is_divided(array):
    """Whether its parts lie on all eight devices."""
    return len(array.sharding.device_set) == 8 and not array.is_fully_replicated


@contextlib.contextmanager
def divided():
    """A list of what was computed in the block and lay on all devices, in parts: the first such.

    Whenever arrays are placed or read the ones that live are looked through. Parameters do not
    count, which are put where they are.
    """
    found, put, before = [], [], jax.live_arrays()

    def look():
        if found:
            return
        known = {id(array) for array in (*put, *before)}
        for array in jax.live_arrays():
            if id(array) not in known and not array.is_deleted() and is_divided(array):
                found.append((array.shape, array.sharding))
                return

    def looking(function):
        @functools.wraps(function)
        def watched(*arguments, **named):
            look()
            return function(*arguments, **named)

        return watched

    def noting(function):
        @functools.wraps(function)
        def watched(*arguments, **named):
            made = function(*arguments, **named)
            if not found:
                put.extend(leaf for leaf in jax.tree.leaves(made) if is_there(leaf))
            return made

        return watched

    with contextlib.ExitStack() as stack:
        for owner, name, wrap in (
            (placing, "specs", looking),  # Asked by whatever places arrays or values.
            (jax, "device_get", looking),
            (Run, "save_arrays", looking),
            (jax, "device_put", noting),
            (jax, "make_array_from_callback", noting),
        ):
            stack.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name))))
        yield found
        put.clear()


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
    with divided() as found, jax.set_mesh(make_mesh({"data": 4, "model": 2})):
        small.run(name, models, other)
    assert found, f"{name}: nothing that it computed lay on the mesh"
    assert_as_measured(name, folder / "one", other)


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
    assert_as_measured("training", tmp_path / "one", tmp_path / "eight")


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
    assert_as_measured(name, folder / "one", other)


def test_every_experiment_is_run_or_named_with_a_reason():
    assert not set(small.NAMES) & set(small.NOT_RUN) and all(small.NOT_RUN.values())
    assert {*small.NAMES, *small.NOT_RUN} == set(EXPERIMENTS)


def test_what_is_computed_on_the_mesh_is_told_from_what_is_only_put_there():
    weights = np.ones((8, 4), np.float32)

    @jax.jit
    def doubled(values_BC):
        return constrain(2 * values_BC, leading="BC")

    def ask(*, compute):
        with divided() as found:
            placed = placing.place(weights, leading="BC")
            other = doubled(placed) if compute else placed
            jax.device_get(other)
        return found

    with jax.set_mesh(make_mesh({"data": 8})):
        assert not ask(compute=False)
        assert ask(compute=True)
    assert not ask(compute=True)


def test_one_wrong_entry_of_many_is_seen():
    want = np.linspace(1e-3, 2e-3, 1000)
    assert_equal("training/arrays.npz", {"x": want}, {"x": want * (1 + 9e-6)})
    wrong = want.copy()
    wrong[500] += 3e-8
    with pytest.raises(AssertionError, match="training/arrays.npz x.*off by 3e-08, of 0.002"):
        assert_equal("training/arrays.npz", {"x": want}, {"x": wrong})
