"""Every experiment on a mesh of eight devices measures what it measures on one.

The learner is trained once, on one device, and its checkpoint is read onto the mesh: what two
trainings of float32 differ by grows with every step, and is a matter of the optimizer
(``tests/sharding/test_equal.py`` compares their first steps, in float64 to 1e-12).
"""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

from experiments.language import language_model
from experiments.language.checkpoint import run as checkpoint
from experiments.language.checkpoint.tiny import make_tiny
from experiments.language.classification import run as classification
from experiments.language.compile import run as compiling
from experiments.language.prompt_page import run as prompt_page
from experiments.linear_attention.depth import run as depth
from experiments.linear_attention.von_oswald import run as von_oswald
from experiments.regression import alignment, attribution, convergence, equivalence, training
from experiments.regression.composition import run as composition
from experiments.regression.demonstrations import run as demonstrations
from experiments.regression.descent import run as descent
from experiments.regression.garg import run as garg
from experiments.regression.reusable import run as reusable
from icl_jax.records import Run
from icl_jax.sharding import make_mesh
from tests.experiments import (
    test_composition,
    test_demonstrations,
    test_garg,
    test_language_model,
    test_linear_experiments,
    test_paper,
    test_reusable,
)

pytestmark = pytest.mark.slow

LEARNER, DEEP = test_paper.CONFIG.learner, test_paper.CONFIG.deep
LINEAR = dataclasses.replace(
    test_linear_experiments.LEARNER,
    training=dataclasses.replace(
        test_linear_experiments.TRAINING, num_steps=60, checkpoint_every=60
    ),
)

#: Name -> module and configuration.
EXPERIMENTS = {
    "training": (training, training.Config(num_prompts=64, learner=LEARNER)),
    "equivalence": (equivalence, equivalence.Config(num_prompts=16)),
    "convergence": (convergence, convergence.Config(num_prompts=32, learner=LEARNER)),
    "descent": (descent, descent.Config(num_prompts=16, num_search_prompts=8, learner=LEARNER)),
    "alignment": (alignment, alignment.Config(num_prompts=16, learner=DEEP)),
    "attribution": (attribution, attribution.Config(num_prompts=16, learner=LEARNER)),
    "garg": (garg, dataclasses.replace(test_garg.CONFIG, num_prompts=64)),
    "von_oswald": (
        von_oswald,
        von_oswald.Config(
            num_prompts=64,
            num_search_prompts=64,
            num_rates=11,
            num_optimum_prompts=400,
            learner=LINEAR,
            skewed=dataclasses.replace(LINEAR, input_range=None, variances=(2.0, 1.0, 0.7, 0.3)),
        ),
    ),
    "depth": (
        depth,
        depth.Config(
            depths=(1, 2),
            num_prompts=64,
            num_search_prompts=64,
            num_rates=11,
            corrections=(0.0, 0.3),
            learner=LINEAR,
        ),
    ),
    # A weight that rounding does not choose.
    "reusable": (
        reusable,
        dataclasses.replace(test_reusable.CONFIG, num_prompts=8, weights=(0.1,)),
    ),
    "demonstrations": (
        demonstrations,
        dataclasses.replace(test_demonstrations.CONFIG, num_prompts=8, valued=4),
    ),
    "composition": (composition, dataclasses.replace(test_composition.CONFIG, num_prompts=8)),
}


#: Measures that amplify a rounding, and by how much. An effective rank is the exponential of an
#: entropy of singular values, of which the small ones of a path in float32 are roundings.
#: What a patch compiled from few queries says has the condition of their normal equations.
COMPILED = ("used", "stacked", "averaged", "read", "missing", "by_count", "by_rank", "distance")
CONDITION = {"path_rank": 20.0, **dict.fromkeys(COMPILED, 10.0)}


def files(folder):
    return sorted(path for path in folder.rglob("*.npz") if "checkpoints" not in path.parts)


def measured_again_on_a_mesh(module, config, folder, other):
    """Both folders' arrays: as they are, and with the experiment's own measured on a mesh."""
    shutil.copytree(folder, other, ignore=shutil.ignore_patterns(".lock"))
    for path in files(other):
        path.unlink()
    with jax.set_mesh(make_mesh({"data": 4, "model": 2})):
        module.run(config, other)
    for path in files(folder):
        name = str(path.relative_to(folder))
        yield name, Run(folder).load_arrays(name), Run(other).load_arrays(name)


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


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_measures_the_same_on_eight_devices(name, tmp_path):
    module, config = EXPERIMENTS[name]
    module.run(config, tmp_path / "one")
    count = 0
    for file, want, got in measured_again_on_a_mesh(
        module, config, tmp_path / "one", tmp_path / "eight"
    ):
        assert_equal(file, want, got)
        count += len(want)
    assert count > 3


#: Of a checkpoint: name -> module and how it is asked.
OF_A_CHECKPOINT = {
    "classification": (
        classification,
        {"num_examples": 1, "num_prompts": 8, "num_search_prompts": 4, "num_rates": 5},
    ),
    "prompt_page": (prompt_page, {"text": "Ada built the lighthouse. Who built it? Ada."}),
    # Descent by LoRA goes on for as many seconds as the solution took.
    "compile": (compiling, {"lora": False, "num_queries": 8, "held_out": 4, "asked": 8}),
}


@pytest.mark.parametrize("name", OF_A_CHECKPOINT)
def test_an_experiment_asks_a_checkpoint_on_the_mesh_and_hears_the_same(name, tmp_path):
    make_tiny("llama", tmp_path / "tiny", seed=0)
    module, options = OF_A_CHECKPOINT[name]
    if name == "compile":
        (tmp_path / "context.txt").write_text("Ada built the lighthouse in 1871. " * 3)
        options = {**options, "context": str(tmp_path / "context.txt")}
    config = module.Config(checkpoint=str(tmp_path / "tiny"), **options)
    module.run(config, tmp_path / "one")
    count = 0
    for file, want, got in measured_again_on_a_mesh(
        module, config, tmp_path / "one", tmp_path / "eight"
    ):
        for arrays in (want, got):
            for key in [key for key in arrays if key.endswith(("seconds", "memory"))]:
                del arrays[key]
        assert_equal(file, want, got)
        count += len(want)
    assert count > 3


def test_the_language_model_is_measured_on_the_mesh_as_on_one_device(tmp_path):
    config = test_language_model.CONFIG
    language_model.run(config, tmp_path / "one")
    for file, want, got in measured_again_on_a_mesh(
        language_model, config, tmp_path / "one", tmp_path / "eight"
    ):
        assert_equal(file, want, got)


def test_a_checkpoint_is_loaded_onto_the_mesh_and_answers_the_same(tmp_path):
    make_tiny("llama", tmp_path / "tiny", seed=0)
    config = checkpoint.Config(
        checkpoint=str(tmp_path / "tiny"),
        prompts=str(tmp_path / "tiny" / "prompts.jsonl"),
        max_prompts=2,
        generate=4,
    )
    checkpoint.run(config, tmp_path / "one")
    for file, want, got in measured_again_on_a_mesh(
        checkpoint, config, tmp_path / "one", tmp_path / "eight"
    ):
        # Errors of patched runs are roundings themselves.
        assert_equal(file, want, got)
