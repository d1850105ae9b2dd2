"""experiments.composition: patches used elsewhere and added up, against running them one by one."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.regression.composition.report import (
    AGREED,
    SUMS,
    USES,
    Arrays,
    Composed,
    OwnQuery,
    _order,
    share,
)
from experiments.regression.composition.run import EXPERIMENT, Config, measure
from experiments.regression.composition.sides import (
    added,
    agreement,
    answered,
    compiled,
    of_others,
    with_context,
)
from experiments.regression.learner import Learner, LearnerConfig
from experiments.regression.reusable.sides import Split
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.tasks.linear import LinearRegression
from icl_jax.tasks.prompt import sample_prompts
from tests.report.helpers import texts

SMALL = StackConfig(width=8, num_heads=2, hidden_widths=(16,), wiring="pre_norm", depth=2)
CONFIG = Config(
    num_prompts=3, calibration=4, new=5, stacked=(1, 2),
    learner=LearnerConfig(num_examples=6, stack=SMALL, watch=False),
)  # fmt: skip
SPLIT = Split(6, 4, 0, 5)


@pytest.fixture(scope="module")
def learner():
    stack = build_stack(SMALL)
    made = [stack.init(jax.random.key(seed), jnp.zeros((3, 3)))["params"] for seed in (0, 1)]
    return Learner(CONFIG.learner, stack, LinearRegression(2), *made, {})


@pytest.fixture(scope="module")
def run(learner):
    prompts = sample_prompts(learner.task, jax.random.key(3), num_prompts=3, num_examples=15)
    return learner.stack, learner.trained, prompts, SPLIT


@pytest.fixture(scope="module")
def patches(run):
    return compiled(*run, jnp.float32(1e-6), jax.random.key(0))


@pytest.mark.slow
def test_the_token_patch_answers_its_own_query_as_the_context_does_and_not_others(run, patches):
    full_BQ, alone_BQ = with_context(*run, None), answered(*run, None)
    found_BQ = answered(*run, patches["token"])
    gap = np.abs(full_BQ - alone_BQ)[:, 0].max()
    np.testing.assert_allclose(found_BQ[:, 0], full_BQ[:, 0], atol=1e-3 * gap)
    assert np.abs(found_BQ - full_BQ)[:, 1:].max() > 1e-2 * gap


@pytest.mark.slow
def test_the_null_of_composition_a_context_and_nothing_is_the_context(run, patches):
    whole = patches["whole"]
    nothing = jax.tree.map(jnp.zeros_like, whole)
    np.testing.assert_allclose(answered(*run, added(whole, nothing)), answered(*run, whole),
                               rtol=1e-4, atol=1e-5)  # fmt: skip
    np.testing.assert_allclose(answered(*run, nothing), answered(*run, None), rtol=1e-5)
    np.testing.assert_allclose(with_context(*run, nothing), with_context(*run, None), rtol=1e-4,
                               atol=1e-5)  # fmt: skip
    np.testing.assert_allclose(agreement(whole, whole), 1, atol=1e-4)
    assert np.abs(agreement(of_others(whole), whole)).max() < 0.99


@pytest.mark.slow
def test_patches_given_to_others_are_theirs_one_further(run, patches):
    rolled = of_others(patches["whole"], 2)
    for leaf, old in zip(jax.tree.leaves(rolled), jax.tree.leaves(patches["whole"]), strict=True):
        np.testing.assert_array_equal(leaf[2], old[0])


@pytest.mark.slow
@pytest.mark.slow
def test_a_tiny_run_reports_every_use_with_its_null(learner):
    arrays = measure(CONFIG, learner)
    outcome = EXPERIMENT.report(CONFIG, arrays)
    assert set(USES) <= set(outcome.summary["trained"]["share"])
    assert set(AGREED) == set(outcome.summary["trained"]["cosine"])
    assert len(outcome.sections) == 5
    assert all("null" in one.verdict for one in outcome.sections)
    assert str(share(arrays.trained, arrays.trained.used["own"])) in outcome.sections[0].verdict


def test_the_order_of_the_examples_is_drawn_beside_its_nulls():
    ones = np.ones(3)

    def composed(cosine):
        uses = dict.fromkeys((*USES, *SUMS, "shuffled"), ones)
        agreed = dict.fromkeys(AGREED, np.full(3, cosine))
        many = np.ones((2, 3))
        return Composed(2 * ones, ones, uses, OwnQuery(ones, ones, ones),
                        many, many, ones, many, agreed)  # fmt: skip

    found = _order(Arrays(composed(1.0), composed(0.2)))
    shown = texts(found.figure)
    assert {AGREED["shuffled"], AGREED["another"], "trained", "untrained", "0"} <= set(shown)


def test_what_cannot_be_stacked_or_moved_is_refused_before_any_work():
    with pytest.raises(ValueError, match="must begin with 1"):
        dataclasses.replace(CONFIG, stacked=(2, 4))
    with pytest.raises(ValueError, match="needs more than as many contexts"):
        dataclasses.replace(CONFIG, stacked=(1, 3))
    with pytest.raises(ValueError, match="must be 2 or more"):
        dataclasses.replace(CONFIG, learner=LearnerConfig())
