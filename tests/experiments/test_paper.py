"""The main job, made tiny: every key that is promised, every number where it has to be."""

import dataclasses
import json

import numpy as np
import pytest

from experiments.regression import alignment, attribution, convergence, paper, training
from experiments.regression.descent import run as descent
from experiments.regression.learner import LearnerConfig, obtain
from icl_jax.blocks.config import StackConfig
from icl_jax.blocks.wiring import WIRINGS
from icl_jax.records import WorkdirError
from icl_jax.training.config import TrainingConfig

CASES = (*WIRINGS, "stack10")
LAYERS = ("attention", "linear_attention", "state_space", "recurrent")


def tiny(**stack):
    training_config = TrainingConfig(
        num_steps=60, batch_size=16, learning_rate=3e-3, steps_per_call=20
    )
    return LearnerConfig(
        num_examples=8, stack=StackConfig(**stack), training=training_config, watch=not stack
    )


CONFIG = paper.Config(
    num_prompts=100,
    num_tasks=8,
    long_examples=0,
    learner=tiny(),
    deep=tiny(wiring="pre_norm", depth=2),
)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("paper") / "run"
    paper.run(CONFIG, workdir)
    return workdir


@pytest.fixture(scope="module")
def summary(whole_run):
    return json.loads((whole_run / "summary.json").read_text())


@pytest.mark.parametrize(("precision", "bound"), [("float32", 1e-5), ("float64", 1e-12)])
@pytest.mark.parametrize("wiring", CASES)
def test_patched_is_exact_and_the_controls_are_not(summary, precision, bound, wiring):
    errors = summary["equivalence"][precision][wiring]
    assert errors["patched"] <= bound
    assert errors["open_loop"] <= bound
    for control in ("unpatched", "shuffled", "random"):
        assert errors[control] >= 1e-2


@pytest.mark.parametrize("layer", LAYERS)
def test_every_contextual_layer_is_exact(summary, layer):
    errors = summary["equivalence"]["layers"][layer]
    assert errors["patched"] <= 1e-12
    assert min(errors["unpatched"], errors["shuffled"], errors["random"]) >= 1e-2


def test_training_is_compared_with_the_closed_forms(summary):
    losses = summary["training"]
    assert losses["final_loss"] < losses["initial_loss"]
    assert losses["least_squares_loss"] < 1e-6 < losses["zero_loss"]
    assert losses["largest_patched_gap"] < 1e-4
    np.testing.assert_allclose(losses["final_patched_loss"], losses["final_loss"], rtol=1e-4)


def test_step_norms_have_a_value_per_example(summary):
    steps = summary["convergence"]["step_norms"]
    assert len(steps) == len(summary["convergence"]["untrained_step_norms"]) == 8
    assert all(step > 0 for step in steps)
    assert summary["convergence"]["num_prompts"] >= 100
    assert summary["convergence"]["peel_output_gap"] < 1e-4
    assert summary["convergence"]["peel_distance"] > 1e-2


def test_descent_has_a_value_per_context_size(summary):
    found = summary["descent"]
    assert found["points"] == list(range(9))
    for name in ("implicit", "descent", "least_squares", "untrained_implicit"):
        assert len(found[f"{name}_loss"]) == 9
    assert found["num_prompts"] >= 100
    assert abs(found["measures"]["update_cosine"]["random"]) < 0.1
    assert found["descent_loss"][-1] < found["descent_loss"][0]
    # Nothing has been seen: both sides stand on the same weights.
    np.testing.assert_allclose(found["implicit_loss"][0], found["descent_loss"][0], rtol=1e-4)


def test_the_implicit_loss_is_that_of_the_context(summary, whole_run):
    config = descent.Config(num_prompts=CONFIG.num_prompts, learner=CONFIG.learner)
    learner = obtain(CONFIG.learner, whole_run / "learners")
    prompts = training.test_prompts(learner, config.seed, config.num_prompts)
    by_context = training.losses(learner.stack, learner.trained, prompts)["context"]
    np.testing.assert_allclose(summary["descent"]["implicit_loss"][-1], by_context, rtol=1e-4)


def test_attribution_adds_up_and_another_prompts_does_not(summary):
    assert summary["attribution"]["additivity_error"] <= 1e-5
    assert summary["attribution"]["shuffled_error"] >= 1e-2


def test_alignment_is_within_its_range(summary):
    found = summary["alignment"]
    assert len(found["token_alignment"]) == 2
    assert all(-1 <= value <= 1 for value in found["token_alignment"])
    assert -1 <= found["block_alignment"] <= 1


def test_the_report_stands_alone(whole_run):
    page = (whole_run / "report.html").read_text()
    assert page.count("<svg") >= 8
    assert 'src="http' not in page
    assert 'href="http' not in page


def test_a_finished_run_is_read_back_and_not_measured_again(whole_run, summary, monkeypatch):
    for module in (convergence, descent, attribution, alignment, training):
        monkeypatch.setattr(module, "measure", None)
    assert paper.run(CONFIG, whole_run).summary.keys() == summary.keys()
    assert json.loads((whole_run / "summary.json").read_text()) == summary


def test_a_run_that_lost_a_stage_measures_that_stage_again(whole_run, summary):
    (whole_run / "attribution" / "arrays.npz").unlink()
    paper.run(CONFIG, whole_run)
    assert json.loads((whole_run / "summary.json").read_text()) == summary


def test_a_folder_of_another_configuration_is_refused_before_any_work(whole_run):
    with pytest.raises(WorkdirError, match="num_prompts"):
        paper.run(dataclasses.replace(CONFIG, num_prompts=101), whole_run)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="layer must be from 0 to 1, got 2"):
        descent.Config(layer=2, learner=tiny(wiring="skip", depth=2))
    with pytest.raises(ValueError, match="depth must be at least 2"):
        alignment.Config(learner=tiny())
    with pytest.raises(ValueError, match="no sum over tokens and heads"):
        attribution.Config(learner=tiny(layer="recurrent"))
    with pytest.raises(ValueError, match="num_prompts must be an integer"):
        paper.Config(num_prompts=0)


def test_the_first_numbers_of_the_page_stand_beside_their_best_rivals():
    nulls = {"untrained": 0.2, "shuffled": 0.3, "another": 0.1, "random": 0.0}
    losses = dict.fromkeys(("initial", "zero", "ridge", "least_squares", "nearest_neighbours"), 2.0)
    training = {"final": 0.5, **losses, "averaging": 0.25}
    shown = paper.highlights(
        {
            "equivalence": {"float32": {"stack10": {"patched": 1e-7, "unpatched": 1.0}}},
            "training": {f"{name}_loss": value for name, value in training.items()},
            "descent": {"measures": {"update_cosine": {"value": 0.25, **nulls}}},
            "attribution": {"additivity_error": 1e-7, "shuffled_error": 1.0},
        }
    )
    assert [one.control for one in shown[1:3]] == [
        "0.250 for averaging, the best of 5 baselines",
        "0.300 for the nearest null, shuffled labels",
    ]
