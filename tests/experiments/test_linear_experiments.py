"""experiments.von_oswald and experiments.depth, made tiny, and what they share."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.linear_attention.depth import run as depth
from experiments.linear_attention.learner import LinearLearnerConfig, draw
from experiments.linear_attention.von_oswald import run as von_oswald
from experiments.tools.predictors import against, over_queries
from icl_jax.descent.linear_steps import descent_prediction
from icl_jax.oracles.closed_form import ridge
from icl_jax.tasks.linear import LinearRegression
from icl_jax.training.config import TrainingConfig

pytestmark = pytest.mark.slow

TRAINING = TrainingConfig(num_steps=500, batch_size=128, learning_rate=2e-2, checkpoint_every=500)
LEARNER = LinearLearnerConfig(input_width=4, num_examples=8, training=TRAINING)
NULLS = {"untrained", "shuffled", "random", "another"}
KEYS = {"value", "interval", "margin", "margin_interval"} | NULLS


def read(folder):
    return json.loads((folder / "summary.json").read_text())


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory):
    skewed = dataclasses.replace(LEARNER, input_range=None, variances=(2.0, 1.0, 0.7, 0.3))
    config = von_oswald.Config(
        num_prompts=200,
        num_search_prompts=400,
        num_rates=21,
        num_optimum_prompts=4000,
        learner=LEARNER,
        skewed=skewed,
    )
    folder = tmp_path_factory.mktemp("von_oswald") / "run"
    von_oswald.run(config, folder)
    return folder


def test_a_trained_layer_is_one_step_and_the_construction_is_exactly_that(one_layer):
    found = read(one_layer)
    assert found["construction_error"] < 1e-5
    assert not found["learning_rate_at_edge"]
    for measure in found["measures"].values():
        assert set(measure) == KEYS
    assert found["measures"]["sensitivity_cosine"]["value"] > 0.95
    assert found["measures"]["sensitivity_cosine"]["margin"] > 0.3
    losses = found["losses"]
    assert losses["trained"] < 1.15 * losses["descent"] < 0.8 * losses["zero"]


def test_the_trained_optimum_is_the_closed_forms(one_layer):
    found = read(one_layer)["optimum"]
    assert 0.9 < found["ratio"] < 1.1
    assert found["closed_form_loss"] == pytest.approx(found["expected_loss"], rel=0.15)


def test_the_report_of_one_layer_stands_alone(one_layer):
    page = (one_layer / "report.html").read_text()
    assert page.count("<svg") >= 3 and 'src="http' not in page


@pytest.fixture(scope="module")
def layers(tmp_path_factory):
    config = depth.Config(
        depths=(1, 2),
        num_prompts=100,
        num_search_prompts=200,
        num_rates=11,
        corrections=(0.0, 0.3),
        learner=LEARNER,
    )
    folder = tmp_path_factory.mktemp("depth") / "run"
    depth.run(config, folder)
    return folder


def test_every_depth_is_compared_with_both_steppers(layers):
    found = read(layers)
    assert set(found["depths"]) == {"1", "2"}
    for each in found["depths"].values():
        for stepper in ("descent", "gd_plus_plus"):
            assert set(each[stepper]["measures"]["model_difference"]) == KEYS
    assert found["measures"] == found["depths"]["2"]["gd_plus_plus"]["measures"]


def test_after_one_step_a_correction_has_changed_nothing(layers):
    found = read(layers)["depths"]
    first, second = (found[key]["losses"] for key in ("1", "2"))
    assert first["descent"] == pytest.approx(first["gd_plus_plus"], rel=1e-5)
    assert second["descent"] != pytest.approx(second["gd_plus_plus"], rel=1e-3)
    assert found["1"]["descent"]["correction"] == found["2"]["descent"]["correction"] == 0


PROMPTS = draw(LinearRegression(2), 0, 50, 6)


def step(prompt, rate=0.5):
    return descent_prediction(prompt.inputs_ND, prompt.targets_N, prompt.query_D, rate=rate)


@pytest.mark.parametrize("compare", (against, functools.partial(over_queries, num_queries=8)))
def test_a_learner_that_is_the_reference_is_at_no_distance_and_its_nulls_are(compare):
    def best(prompt):
        return ridge(prompt.inputs_ND, prompt.targets_N, prompt.query_D)

    found = compare(step, step, best, PROMPTS, jax.random.key(0))
    for name, measured in found.items():
        same = 1.0 if "cosine" in name else 0.0
        np.testing.assert_allclose(measured.value, same, atol=1e-5)
        for null, values_B in measured.nulls.items():
            assert abs(jnp.mean(values_B) - same) > 0.01, (name, null)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="learner.depth must be 1"):
        von_oswald.Config(learner=dataclasses.replace(LEARNER, depth=2))
    with pytest.raises(ValueError, match="skewed.input_range must be none"):
        von_oswald.Config(skewed=LEARNER)
    with pytest.raises(ValueError, match="depths must be positive and increasing"):
        depth.Config(depths=(2, 1))
    with pytest.raises(ValueError, match="corrections must be numbers from 0 on"):
        depth.Config(corrections=(-0.1,))
    with pytest.raises(ValueError, match="variances must be input_width=4 numbers, got 3"):
        dataclasses.replace(LEARNER, input_range=None, variances=(1.0, 2.0, 3.0))
