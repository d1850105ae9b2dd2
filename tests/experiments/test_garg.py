"""experiments.garg, made tiny: what is tracked over shots, and where it has to be."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from sklearn.tree import DecisionTreeRegressor

from experiments.regression.garg import report
from experiments.regression.garg import run as garg
from experiments.regression.learner import predict, query_predictions, shot_predictions
from experiments.tools.baselines import OWN, greedy_tree_losses
from experiments.tools.oracles import oracle_losses
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.report.looks import Looks
from icl_jax.tasks.linear import LinearRegression
from icl_jax.tasks.networks import TwoLayerNetwork
from icl_jax.tasks.prompt import Prompt, prompt_tokens, sample_prompts
from icl_jax.tasks.sparse import SparseLinearRegression
from icl_jax.tasks.trees import DecisionTree
from icl_jax.training.config import TrainingConfig, usual_optimizer

pytestmark = pytest.mark.slow

LEARNER = dataclasses.replace(
    garg.garg_learner(),
    input_width=2,
    num_examples=6,
    stack=StackConfig(wiring="pre_norm", depth=2, width=8, num_heads=2, hidden_widths=(16,)),
    training=TrainingConfig(
        num_steps=150, batch_size=32, learning_rate=1e-2, optimizer=usual_optimizer(warmup_steps=10)
    ),
)
CONFIG = garg.Config(
    classes=("linear", "tree"),
    shifts=("scaled_twice", "orthogonal_query"),
    other_steps=20,
    num_prompts=100,
    num_queries=4,
    learner=LEARNER,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("garg") / "run"
    garg.run(CONFIG, workdir)
    return workdir


@pytest.fixture(scope="module")
def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def test_losses_are_tracked_over_shots_for_classes_and_shifts(summary):
    assert summary["shots"] == list(range(7))
    for group, names in (("classes", CONFIG.classes), ("shifts", CONFIG.shifts)):
        assert set(summary[group]) == set(names)
        for losses in summary[group].values():
            assert {"trained", "untrained", *garg.BASELINES} <= set(losses)
            assert all(len(values) == 7 for values in losses.values())
    assert "own" in summary["classes"]["tree"] and "own" not in summary["classes"]["linear"]
    linear = summary["classes"]["linear"]
    assert linear["trained"][-1] < 0.7 * linear["trained"][0]
    assert linear["trained"][-1] < linear["untrained"][-1]
    ratios = np.divide(linear["trained"], linear["least_squares"])
    assert summary["worst_ratio_from_2d"] == pytest.approx(max(ratios[4:]))


def test_nothing_is_known_of_an_orthogonal_query(summary):
    found = summary["shifts"]["orthogonal_query"]
    assert found["ridge"][-1] == pytest.approx(found["zero"][-1], rel=1e-4)
    assert found["trained"][-1] > 0.8 * found["zero"][-1]


def test_every_measure_has_its_nulls(summary):
    assert {"squared_prediction_difference", "ilwd", "sensitivity_cosine"} <= set(
        summary["measures"]
    )
    for measure in summary["measures"].values():
        assert {"untrained", "shuffled", "random", "another", "margin"} <= set(measure)


def test_the_report_has_a_picture_per_class_and_shift(folder):
    assert (folder / "report.html").read_text().count("<svg") >= 2


@pytest.mark.parametrize("name", OWN)
def test_what_suits_a_class_beats_what_does_not(name):
    task = {
        "sparse": SparseLinearRegression(8, num_nonzero=1, noise_std=0.3),
        "network": TwoLayerNetwork(1, num_hidden=4),
        "tree": DecisionTree(1, depth=1),
    }[name]
    prompts = sample_prompts(task, jax.random.key(3), num_prompts=40, num_examples=12)
    losses_BM = np.asarray(OWN[name][1](prompts))
    assert losses_BM.shape == (40, 13)
    # Nothing is known before the first example.
    np.testing.assert_allclose(losses_BM[:, 0], np.asarray(prompts.query_target) ** 2, rtol=1e-5)
    general_B = np.asarray(oracle_losses("least_squares", prompts))[:, -1]
    assert losses_BM[:, -1].mean() < 0.8 * np.mean(general_B)


def test_a_greedy_tree_is_scikit_learns_at_every_prefix():
    prompts = sample_prompts(DecisionTree(2), jax.random.key(4), num_prompts=2, num_examples=5)
    losses_BM = greedy_tree_losses(prompts)
    inputs_ND, targets_N = (
        np.asarray(prompts.inputs_ND[1, :3]),
        np.asarray(prompts.targets_N[1, :3]),
    )
    fitted = DecisionTreeRegressor(random_state=0).fit(inputs_ND, targets_N)
    answer = fitted.predict(np.asarray(prompts.query_D[1:]))[0]
    expected = (answer - float(prompts.query_target[1])) ** 2
    np.testing.assert_allclose(losses_BM[1, 3], expected, rtol=1e-5)


def test_a_label_is_asked_for_before_it_is_shown():
    stack = build_stack(LEARNER.stack)
    prompt = LinearRegression(2).sample(jax.random.key(0), num_examples=4)
    params = stack.init(jax.random.key(1), prompt_tokens(prompt))["params"]
    shots_M = jax.jit(lambda: shot_predictions(stack, params, prompt))()
    for count in (0, 2):
        # As a prompt of its own, the label that comes next being the query's.
        shorter = Prompt(
            prompt.inputs_ND[:count],
            prompt.targets_N[:count],
            prompt.inputs_ND[count],
            prompt.targets_N[count],
        )
        want = jax.jit(predict, static_argnums=0)(stack, params, prompt_tokens(shorter))
        np.testing.assert_allclose(shots_M[count], want, rtol=1e-4, atol=1e-5)
    whole_M = jax.jit(lambda: query_predictions(stack, params, prompt))()
    np.testing.assert_allclose(shots_M[-1], whole_M[-1], rtol=1e-5)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="learner.task must be linear, and linear one of classes"):
        garg.Config(classes=("tree",))
    with pytest.raises(ValueError, match="noise_std must be above 0"):
        garg.Config(learner=dataclasses.replace(LEARNER, noise_std=0.0))
    with pytest.raises(ValueError, match="num_queries must be at least 5"):
        garg.Config(num_queries=3)
    with pytest.raises(ValueError, match="shifts must be one of"):
        garg.Config(shifts=("sheared",))
    with pytest.raises(ValueError, match="watch=True follows the last label alone"):
        dataclasses.replace(LEARNER, watch=True)


def test_baselines_of_all_classes_can_be_told_apart_in_one_figure():
    looks, config = Looks("test"), garg.Config()
    for name in (*config.classes, *config.shifts):
        for label, role in report._baselines(name).values():
            looks.add(label, role)
