"""Can what a context teaches be kept as weights, for queries that were never seen with it?

A learner reads examples of an unknown function. From a few calibration queries, each run with the
examples and without, one change of the weights is solved for in closed form; then new queries are
asked without the examples. The ladder, from the cheapest: the mean change (a thought vector), the
cheap sum, the exact solution (up to as many queries as the model is wide), and ridge, whose weight
is chosen on held-out queries; over the number of queries and the rank of the update. Beside them no
context, the full one, the patch of another prompt's context, and an untrained learner.

    python -m experiments.reusable --workdir=runs/reusable

About two minutes on 2 cores. Expected: from 25 queries ridge and the exact solution close all of
the gap in squared error on new queries (1.00; from one query 0.45, from two 0.93; at rank 1 already
0.999), the thought vector none of it (-0.03), another context's patch less than none (-1.07). The
cheap sum, which takes the queries for orthogonal, is off by five orders of magnitude.
"""

from dataclasses import dataclass, field
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.learner import Examined, Learner, LearnerConfig, examine, quick_learner
from experiments.regression.reusable.report import (
    LADDER,
    MODELS,
    NAMES,
    Arrays,
    Asked,
    names,
    sections,
    summarise,
)
from experiments.regression.reusable.sides import Split, ends, patched
from experiments.tools.conduct import TEST_STREAM, Outcome
from experiments.tools.flags import LONE, launch, option
from icl_jax import checks
from icl_jax.patches.fit import Fit
from icl_jax.tasks.prompt import Prompt, sample_prompts


@dataclass(frozen=True)
class Config:
    """How many queries, and whose."""

    num_prompts: int = option(64, "contexts, each compiled by itself")
    counts: tuple[int, ...] = option((1, 2, 3, 5, 10, 15, 25, 50), "calibration queries")
    shown: int = option(25, "of the counts: of the table, and of the curve over ranks")
    ranks: tuple[int, ...] = option((1, 2, 3, 4, 8, 16), "of the update, for the curve")
    held_out: int = option(16, "queries on which the ridge weight is chosen")
    new: int = option(64, "queries that are asked")
    weights: tuple[float, ...] = option((1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1), "of the ridge")
    seed: int = option(5, "of the test prompts")
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        checks.at_least_two("reusable", "num_prompts", self.num_prompts, LONE)
        for name in ("held_out", "new"):
            checks.positive_int("reusable", name, getattr(self, name))
        checks.one_of("reusable", "shown", self.shown, self.counts)
        for rank in self.ranks:
            checks.positive_int("reusable", "ranks", rank)
        for weight in self.weights:
            checks.positive("reusable", "weights", weight)

    @classmethod
    def quick(cls) -> "Config":
        """A short training, few prompts and counts."""
        return cls(
            num_prompts=8,
            counts=(1, 5, 25),
            ranks=(1, 4),
            weights=(1e-4, 1e-2),
            learner=quick_learner(),
        )


def measure(config: Config, learner: Learner) -> Arrays:
    """The ladder of both models on the same prompts."""
    split = Split(learner.config.num_examples, max(config.counts), config.held_out, config.new)
    key = jax.random.fold_in(jax.random.key(config.seed), TEST_STREAM)
    prompts = sample_prompts(
        learner.task, key, num_prompts=config.num_prompts, num_examples=split.rows
    )
    return Arrays(**{name: asked(config, learner, name, prompts, split) for name in MODELS})


def asked(config: Config, learner: Learner, model: str, prompts: Prompt, split: Split) -> Asked:
    """One model's errors."""
    stack, params = learner.stack, getattr(learner, model)
    targets_BQ = np.asarray(prompts.targets_N)[:, split.examples :]
    held = slice(split.calibration, split.calibration + split.held_out)
    new = slice(split.calibration + split.held_out, None)
    alone_BQ, full_BQ = jax.device_get(ends(stack, params, prompts, split))

    def error(predicted_BQ: np.ndarray) -> np.ndarray:
        found: np.ndarray = np.mean((predicted_BQ[:, new] - targets_BQ[:, new]) ** 2, axis=-1)
        return found

    def distance(predicted_BQ: np.ndarray) -> np.ndarray:
        off = np.mean((predicted_BQ[:, new] - full_BQ[:, new]) ** 2, axis=-1)
        found: np.ndarray = off / np.mean((alone_BQ[:, new] - full_BQ[:, new]) ** 2, axis=-1)
        return found

    def chosen(fit: Fit, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        grid = config.weights if fit.rung == "ridge" else config.weights[:1]
        weights_X = jnp.asarray(grid, jnp.float32)
        size = count if fit.rung == "exact" else split.calibration
        run = (stack, params, prompts, split, fit, weights_X, count)
        found = jax.device_get(patched(*run, size=size))
        own_XBQ, other_XBQ = found
        off_XB = np.mean((own_XBQ[..., held] - full_BQ[:, held]) ** 2, axis=-1)
        best_B = np.argmin(np.where(np.isfinite(off_XB), off_XB, np.inf), axis=0)
        pick = (best_B, np.arange(len(best_B)))
        return own_XBQ[pick], other_XBQ[pick], np.asarray(grid)[best_B]

    none_B = np.full(config.num_prompts, np.nan)
    errors: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    distances: dict[str, list[np.ndarray]] = {name: [] for name in NAMES}
    weights = []
    for count in config.counts:
        for rung in LADDER:
            if rung == "exact" and count > learner.config.stack.width:
                errors[rung].append(none_B)
                distances[rung].append(none_B)
                continue
            own_BQ, other_BQ, weight_B = chosen(Fit(rung), count)
            errors[rung].append(error(own_BQ))
            distances[rung].append(distance(own_BQ))
            if rung == "ridge":
                weights.append(weight_B)
                errors["another"].append(error(other_BQ))
                distances["another"].append(distance(other_BQ))
    by_rank = [error(chosen(Fit(rank=rank), config.shown)[0]) for rank in config.ranks]
    return Asked(
        alone=error(alone_BQ),
        full=error(full_BQ),
        by_count={name: np.stack(rows) for name, rows in errors.items()},
        by_rank=np.stack(by_rank),
        weight=np.stack(weights),
        distance={name: np.stack(rows) for name, rows in distances.items()},
    )


EXPERIMENT = Examined(
    "reusable",
    "A context that can be put away",
    __doc__,
    Arrays,
    measure,
    summarise,
    sections,
    names,
)


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains (or finds) the learner, compiles its contexts, asks."""
    return examine(EXPERIMENT, config, workdir, learners)


if __name__ == "__main__":
    launch(Config, run, __doc__)
