"""experiments.reusable: what is asked of whom, and what the report says of it."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.regression.learner import Learner, LearnerConfig
from experiments.regression.reusable.report import NAMES, share
from experiments.regression.reusable.run import EXPERIMENT, Config, measure
from experiments.regression.reusable.sides import Split, ends, patched
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.patches.fit import Fit
from icl_jax.tasks.linear import LinearRegression
from icl_jax.tasks.prompt import prompt_tokens, sample_prompts

SMALL = StackConfig(width=8, num_heads=2, hidden_widths=(16,))
CONFIG = Config(
    num_prompts=3,
    counts=(2, 10),
    shown=10,
    ranks=(1,),
    weights=(1e-6, 1e-2),
    held_out=4,
    new=5,
    learner=LearnerConfig(num_examples=6, stack=SMALL),
)
SPLIT = Split(6, 10, 4, 5)


@pytest.fixture(scope="module")
def learner():
    stack = build_stack(SMALL)
    made = [stack.init(jax.random.key(seed), jnp.zeros((3, 3)))["params"] for seed in (0, 1)]
    return Learner(CONFIG.learner, stack, LinearRegression(2), *made, {})


@pytest.fixture(scope="module")
def prompts(learner):
    key = jax.random.key(3)
    return sample_prompts(learner.task, key, num_prompts=3, num_examples=SPLIT.rows)


def test_the_ends_are_the_learner_with_its_examples_and_without(learner, prompts):
    alone_BQ, full_BQ = ends(learner.stack, learner.trained, prompts, SPLIT)
    prompt = jax.tree.map(lambda leaf: leaf[1], prompts)
    tokens_TC = prompt_tokens(
        dataclasses.replace(
            prompt,
            inputs_ND=prompt.inputs_ND[:6],
            targets_N=prompt.targets_N[:6],
            query_D=prompt.inputs_ND[8],
        )
    )
    run = learner.stack.apply
    want = run({"params": learner.trained}, tokens_TC)[-1, 0]
    np.testing.assert_allclose(full_BQ[1, 2], want, rtol=1e-4)
    want = run({"params": learner.trained}, tokens_TC[-1:])[0, 0]
    np.testing.assert_allclose(alone_BQ[1, 2], want, rtol=1e-4)


def test_fitted_queries_are_answered_as_with_the_context_and_others_are_not_fitted(
    learner, prompts
):
    _, full_BQ = ends(learner.stack, learner.trained, prompts, SPLIT)
    run = (learner.stack, learner.trained, prompts, SPLIT)
    weights_X = jnp.asarray([1e-6])
    exact, other = patched(*run, Fit("exact"), weights_X, 2, size=2)
    np.testing.assert_allclose(exact[0][:, :2], full_BQ[:, :2], rtol=1e-2, atol=1e-3)
    assert np.abs(other[0][:, :2] - full_BQ[:, :2]).max() > 1e-2
    # The mask counts as many as an array of that length has.
    masked, _ = patched(*run, Fit(), jnp.asarray([1e-2]), 2, size=10)
    short, _ = patched(*run, Fit(), jnp.asarray([1e-2]), 2, size=2)
    np.testing.assert_allclose(masked, short, rtol=1e-3, atol=1e-4)


def test_the_report_names_every_rung_and_its_best_rival(learner):
    arrays = measure(CONFIG, learner)
    assert arrays.trained.by_count["ridge"].shape == (2, 3)
    assert np.isnan(arrays.trained.by_count["exact"][1]).all()  # 10 queries, and width 8.
    outcome = EXPERIMENT.report(CONFIG, arrays)
    assert set(outcome.summary["trained"]["share"]) == set(NAMES) - {"exact"}
    json.dumps(outcome.summary, allow_nan=False)  # As a run's folder keeps it.
    assert "nan" not in str(outcome.sections[0].tables[0].rows)
    assert outcome.summary["trained"]["share_by_count"]["exact"][1] is None
    verdict = outcome.sections[0].verdict
    value = share(arrays.trained, arrays.trained.by_count["ridge"][1])
    assert str(value) in verdict and "best other rung" in verdict and "another context" in verdict


def test_a_count_that_is_not_measured_cannot_be_shown():
    with pytest.raises(ValueError, match="shown must be one of 2, 10, got 25"):
        dataclasses.replace(CONFIG, shown=25)
