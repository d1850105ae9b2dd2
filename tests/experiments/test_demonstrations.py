"""experiments.demonstrations: the ways to choose against brute force, and a tiny run."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.regression.demonstrations.report import WAYS, over_random
from experiments.regression.demonstrations.run import EXPERIMENT, Config, measure
from experiments.regression.demonstrations.sides import answers, greedy_by_answer, said, valued
from experiments.regression.learner import Learner, LearnerConfig
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.tasks.linear import LinearRegression
from icl_jax.tasks.prompt import Prompt, prompt_tokens, sample_prompts

SMALL = StackConfig(width=8, num_heads=2, hidden_widths=(16,))
CONFIG = Config(
    num_prompts=3, chosen=2, counts=(1, 2), draws=2, valued=2, orders=6, players=3, first=2,
    learner=LearnerConfig(num_examples=6, stack=SMALL, all_shots=True, watch=False),
)  # fmt: skip


@pytest.fixture(scope="module")
def learner():
    stack = build_stack(SMALL)
    made = [stack.init(jax.random.key(seed), jnp.zeros((3, 3)))["params"] for seed in (0, 1)]
    return Learner(CONFIG.learner, stack, LinearRegression(2), *made, {})


@pytest.fixture(scope="module")
def prompts(learner):
    return sample_prompts(learner.task, jax.random.key(3), num_prompts=3, num_examples=6)


def really(learner, prompts, number, chosen):
    """The learner's answer when it is given only these examples."""
    one = jax.tree.map(lambda leaf: leaf[number], prompts)
    picked = np.array(chosen, np.int32)
    few = Prompt(one.inputs_ND[picked], one.targets_N[picked], one.query_D, one.query_target)
    return float(learner.stack.apply({"params": learner.trained}, prompt_tokens(few))[-1, 0])


def test_sets_of_examples_are_answered_as_if_the_others_had_never_been(learner, prompts):
    sets = [(0, 1, 2, 3, 4, 5), (1, 4), (), (0, 2, 3, 4, 5)]
    members = np.array([[n in chosen for n in range(6)] for chosen in sets])
    found_BX = answers(learner.stack, learner.trained, prompts, np.tile(members, (3, 1, 1)))
    want = [[really(learner, prompts, b, chosen) for chosen in sets] for b in range(3)]
    np.testing.assert_allclose(found_BX, want, rtol=1e-4, atol=1e-5)


def test_leave_one_out_is_really_leaving_out_and_one_pass_says_the_same(learner, prompts):
    found = said(learner.stack, learner.trained, prompts, count=2)
    assert float(np.max(found.one_pass)) < 1e-5
    full = really(learner, prompts, 1, range(6))
    want = [
        (really(learner, prompts, 1, [n for n in range(6) if n != gone]) - full) ** 2
        for gone in range(6)
    ]
    np.testing.assert_allclose(found.scores["answer"][1], want, rtol=1e-2, atol=1e-7)
    np.testing.assert_allclose(found.full[1], full, rtol=1e-4)
    assert found.greedy.shape == (3, 2) and (found.cosine <= 1 + 1e-5).all()


def test_the_greedy_search_takes_what_is_nearest_to_the_whole_answer(learner, prompts):
    full_B = np.array([really(learner, prompts, b, range(6)) for b in range(3)])
    chosen = greedy_by_answer(learner.stack, learner.trained, prompts, full_B, 2)
    for b in range(3):
        off = [(really(learner, prompts, b, [n]) - full_B[b]) ** 2 for n in range(6)]
        assert chosen[b, 0] == int(np.argmin(off))


def test_values_from_prefix_passes_are_the_mean_over_all_orders(learner, prompts):
    few = Prompt(prompts.inputs_ND[:, :3], prompts.targets_N[:, :3], prompts.query_D,
                 prompts.query_target)  # fmt: skip
    full_B = np.array([really(learner, few, b, range(3)) for b in range(3)], np.float32)
    run = (learner.stack, learner.trained, few, full_B, jax.random.key(0))
    found = valued(*run, num_orders=1, exact=True)

    def worth(b, order):
        return -((really(learner, few, b, order) - full_B[b]) ** 2)

    gains = np.zeros(3)
    for order in itertools.permutations(range(3)):
        for i, player in enumerate(order):
            gains[player] += (worth(0, order[: i + 1]) - worth(0, order[:i])) / 6
    np.testing.assert_allclose(found.values_N[0], gains, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.slow
def test_a_tiny_run_reports_every_way_and_its_best_rival(learner):
    arrays = measure(CONFIG, learner)
    outcome = EXPERIMENT.report(CONFIG, arrays)
    assert set(WAYS) <= set(outcome.summary["trained"])
    assert arrays.trained.sizes.shape == (3, 6) and arrays.trained.covered.shape == (2, 3)
    words = outcome.sections[0].verdict
    assert str(over_random(arrays.trained, "update", 1)) in words and "best rival" in words
    assert "; untrained, the null, it is " in outcome.sections[2].verdict


def test_more_examples_than_there_are_cannot_be_kept():
    with pytest.raises(ValueError, match=r"counts=\(2, 6\) must be below"):
        dataclasses.replace(CONFIG, counts=(2, 6))
    with pytest.raises(ValueError, match="players=7"):
        dataclasses.replace(CONFIG, players=7, learner=LearnerConfig(num_examples=16))
