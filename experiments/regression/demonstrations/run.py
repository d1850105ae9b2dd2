"""Which examples of a context does a learner need, and how much does each still teach?

Sixteen examples of an unknown function; four are kept, chosen by what they add to the update of the
weights (its parts are exact, and one run gives them all), and the query is asked behind these
alone: beside leave-one-out (in one block exact from one run), a greedy search by the answer,
attention, a gradient, and random fours. Nobody sees the query's label. Shapley values, one prefix
pass for each order; and how fast the steps of the weights fall as the context grows.

    python -m experiments.demonstrations --workdir=runs/demonstrations

About two minutes on 2 cores (``--quick``: one). Expected: chosen by the update, four examples have
a squared error of 0.31, random fours 0.67 (less by 0.36, 0.13 to 0.66) and all sixteen 0.15. The
rivals that ask for answers do better (leave-one-out 0.23, the greedy search 0.13), attention no
better than chance (0.86). The steps fall like 1/i: exponent -0.93 (-1.01 to -0.86), before training
-0.96, too.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.demonstrations.report import (
    MODELS,
    WAYS,
    Arrays,
    Asked,
    names,
    sections,
    summarise,
)
from experiments.regression.demonstrations.sides import (
    answers,
    greedy_by_answer,
    learned,
    said,
    valued,
)
from experiments.regression.learner import (
    Examined,
    Learner,
    LearnerConfig,
    examine,
    quick_learner,
    test_prompts,
)
from experiments.tools.conduct import Outcome
from experiments.tools.flags import LONE, launch, option
from icl_jax import checks
from icl_jax.measures.representation import kendall_tau
from icl_jax.tasks.prompt import Prompt


def _learner() -> LearnerConfig:
    """Trained on every length of context, as it is to answer from short ones, too."""
    return LearnerConfig(num_examples=16, all_shots=True, watch=False)


@dataclass(frozen=True)
class Config:
    """How many are chosen, and how often."""

    num_prompts: int = option(128, "test prompts")
    chosen: int = option(4, "examples that are kept")
    counts: tuple[int, ...] = option((1, 2, 4, 8), "of kept examples, for the curve")
    draws: int = option(32, "random choices for each prompt")
    valued: int = option(16, "prompts with Shapley values")
    orders: int = option(64, "of the examples, for these")
    players: int = option(4, "first examples whose exact values are known, too")
    first: int = option(4, "the first step from which the fall is fitted")
    seed: int = option(7, "of the test prompts and the draws")
    learner: LearnerConfig = field(default_factory=_learner)

    def __post_init__(self) -> None:
        where = "demonstrations"
        for name in ("num_prompts", "valued", "draws", "orders"):
            checks.at_least_two(where, name, getattr(self, name), LONE)
        for name in ("chosen", "players", "first"):
            checks.positive_int(where, name, getattr(self, name))
        count = self.learner.num_examples
        checks.one_of(where, "chosen", self.chosen, self.counts)
        if max(self.counts) >= count or self.players > count:
            raise ValueError(
                f"{where}: counts={self.counts} must be below, and players={self.players} at most, "
                f"learner.num_examples={count}."
            )
        if not 2 <= self.players <= 6:
            raise ValueError(
                f"{where}: players={self.players} must be from 2 to 6: all their orders are run."
            )
        if self.valued > self.num_prompts:
            raise ValueError(f"{where}: valued must be at most num_prompts={self.num_prompts}.")
        if count < self.first + 2:
            raise ValueError(
                f"{where}: first={self.first} leaves too few of learner.num_examples={count} steps."
            )
        if not self.learner.stack.layer.endswith("attention") or not self.learner.stack.causal:
            raise ValueError(
                f"{where}: learner.stack.layer={self.learner.stack.layer!r} must be 'attention' or "
                "'linear_attention', with learner.stack.causal: parts are sums over tokens, and "
                "prefixes share one pass."
            )

    @classmethod
    def quick(cls) -> "Config":
        """A short training, few prompts and orders."""
        learner = quick_learner(num_examples=16, all_shots=True, watch=False)
        return cls(num_prompts=24, counts=(1, 4), draws=8, valued=4, orders=16, learner=learner)


def measure(config: Config, learner: Learner) -> Arrays:
    """Both models on the same prompts."""
    prompts = test_prompts(learner, config.seed, config.num_prompts)
    return Arrays(**{model: _asked(config, learner, model, prompts) for model in MODELS})


def _asked(config: Config, learner: Learner, model: str, prompts: Prompt) -> Asked:
    run = (learner.stack, getattr(learner, model))
    num_examples, most = learner.config.num_examples, max(config.counts)
    found = jax.device_get(said(*run, prompts, count=most))
    ranked = {way: np.argsort(-scores, axis=1) for way, scores in found.scores.items()}
    ranked["update"] = found.greedy
    ranked["greedy_answer"] = greedy_by_answer(*run, prompts, found.full, most)
    rng = np.random.default_rng(config.seed)
    noise_BSN = rng.random((config.num_prompts, config.draws, num_examples))
    random_BSN = np.argsort(np.argsort(noise_BSN, axis=-1), axis=-1)
    targets_B1 = np.asarray(prompts.query_target)[:, None]

    def errors(sets_BXN: np.ndarray) -> np.ndarray:
        found_BX: np.ndarray = (np.asarray(answers(*run, prompts, sets_BXN)) - targets_B1) ** 2
        return found_BX

    by_count = []
    for count in config.counts:
        sets = [_members(ranked[way][:, :count], num_examples) for way in WAYS]
        by_count.append(errors(np.concatenate([np.stack(sets, axis=1), random_BSN < count], 1)))
    by_count_XBY = np.stack(by_count)
    ends_BXN = np.broadcast_to([[False], [True]], (config.num_prompts, 2, num_examples))
    ends_BX = errors(ends_BXN)

    few = jax.tree.map(lambda leaf: leaf[: config.valued], prompts)
    key = jax.random.key(config.seed)
    values = valued(*run, few, found.full[: config.valued], key, num_orders=config.orders)
    taus = {
        way: np.array(
            [
                kendall_tau(jnp.asarray(score_N), value_N)
                for score_N, value_N in zip(scores, values.values_N, strict=False)
            ]
        )
        for way, scores in found.scores.items()
    }
    sizes, exponents, ranks = jax.device_get(learned(*run, prompts, first=config.first))
    return Asked(
        none=ends_BX[:, 0],
        full=ends_BX[:, 1],
        chosen={way: by_count_XBY[..., number] for number, way in enumerate(WAYS)},
        random=by_count_XBY[..., len(WAYS) :],
        cosine=found.cosine,
        alike=found.alike,
        one_pass=found.one_pass,
        taus=taus,
        covered=_covered(config, run, few, key),
        sizes=sizes,
        exponents=exponents,
        ranks=ranks,
    )


def _members(picked_BK: np.ndarray, num_examples: int) -> np.ndarray:
    """Numbers of examples (B, k) as sets (B, N)."""
    sets_BN = np.zeros((len(picked_BK), num_examples), bool)
    np.put_along_axis(sets_BN, np.asarray(picked_BK), True, axis=1)
    return sets_BN


def _covered(config: Config, run: tuple[Any, ...], prompts: Prompt, key: jax.Array) -> np.ndarray:
    """Of the first examples alone: whether the sampled intervals cover the exact values, (V, n)."""
    few = Prompt(
        prompts.inputs_ND[:, : config.players],
        prompts.targets_N[:, : config.players],
        prompts.query_D,
        prompts.query_target,
    )
    everybody = np.ones((len(few.targets_N), 1, config.players), bool)
    full_B = answers(*run, few, everybody)[:, 0]
    drawn = valued(*run, few, full_B, key, num_orders=config.orders)
    exact = valued(*run, few, full_B, key, num_orders=1, exact=True)
    inside = (drawn.low_N <= exact.values_N) & (exact.values_N <= drawn.high_N)
    return np.asarray(inside)


EXPERIMENT = Examined(
    "demonstrations",
    "The examples that a learner needs",
    __doc__,
    Arrays,
    measure,
    summarise,
    sections,
    names,
)


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains (or finds) the learner, chooses, asks."""
    return examine(EXPERIMENT, config, workdir, learners)


if __name__ == "__main__":
    launch(Config, run, __doc__)
