"""Does the context do to a learner what gradient descent does?

The same learner, the same examples, the same query. On one side the context: the learner after
every prefix, and the implicit updates of one of its kernels. On the other the same learner
fine-tuned on the same examples, each taken as a query without context, by any optax optimiser on
any of its weights, at the learning rate that is best on tasks held out for the search. Their losses
and predictions, how these depend on the query, and the angle between their weight updates; beside
them the nulls: the untrained learner, shuffled labels, a random update of the same norm, and
another task's update.

    python -m experiments.descent --workdir=runs/descent
    python -m experiments.descent --explicit.optimizer.name=adam \\
        --explicit.trains=mlp \\
        --explicit.batch=full --workdir=runs/adam

Less than a minute on 2 cores. Expected, after 50 examples: losses of 0.144 in context, 0.118
fine-tuned, and 0.013 fine-tuned from the untrained learner. As functions of the query both are
alike (cosine 0.96, nulls up to 0.07). As updates of the weights hardly: cosine 0.21, nulls up to
0.033, so related beyond chance and far from equal; and norms, leading directions and ranks of their
paths are no nearer than the nulls'.
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.descent.report import Arrays, Moved, Searched, names, sections
from experiments.regression.descent.sides import (
    Implicit,
    Side,
    explicit_side,
    fine_tune,
    implicit,
    kernel_updates,
)
from experiments.regression.learner import (
    Examined,
    Learner,
    LearnerConfig,
    examine,
    quick_learner,
    search_prompts,
    test_prompts,
)
from experiments.tools.comparisons import compared, joined, summaries, with_nulls
from experiments.tools.conduct import Outcome
from experiments.tools.flags import LONE, launch, option
from experiments.tools.oracles import oracle_losses, query_losses
from icl_jax import checks
from icl_jax.blocks.stack import Stack
from icl_jax.descent.explicit import MOVES_KERNEL, ExplicitConfig
from icl_jax.descent.line_search import check_grid, rate_grid, tune_learning_rate
from icl_jax.dims import Array, Params
from icl_jax.measures.function_space import (
    prediction_difference,
    relative_model_difference,
    sensitivity_cosine,
)
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.measures.nulls import another_prompts, random_points, shuffled_labels
from icl_jax.measures.subspaces import effective_rank_of_updates, leading_angles
from icl_jax.measures.weight_space import cosine, norm_ratio
from icl_jax.oracles.closed_form import ORACLES
from icl_jax.patches.low_rank import LowRank
from icl_jax.report.page import Section
from icl_jax.tasks.prompt import Prompt

#: What is held against the context: descent, and three of its nulls.
WALKS = ("descent", "shuffled", "another", "random")


@dataclass(frozen=True)
class Config:
    """What descends, on how many prompts, beside which layer's updates."""

    num_prompts: int = option(200, "test prompts, one run each")
    num_search_prompts: int = option(100, "held-out prompts of the learning rate's line search")
    layer: int = option(0, "whose first kernel's implicit updates are compared, from 0")
    num_directions: int = option(3, "in which the paths of the kernel mostly go, compared")
    lowest_rate: float = option(1e-4, "of the line search")
    highest_rate: float = option(10.0, "of the line search")
    num_rates: int = option(26, "of the line search, evenly spaced in the logarithm")
    seed: int = option(2, "of the test prompts, the nulls and the resampling")
    explicit: ExplicitConfig = field(default_factory=ExplicitConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_search_prompts", "num_rates"):
            checks.positive_int("descent", name, getattr(self, name))
        check_grid("descent", self.lowest_rate, self.highest_rate, self.num_rates)
        checks.at_least_two("descent", "num_prompts", self.num_prompts, LONE)
        depth = self.learner.stack.depth
        if not 0 <= self.layer < depth:
            raise ValueError(
                f"descent: layer must be from 0 to {depth - 1}, got {self.layer}: "
                f"learner.stack.depth is {depth}."
            )
        steps = (
            self.learner.num_examples if self.explicit.batch == "one" else self.explicit.num_steps
        )
        self.explicit.optimizer.make(1.0, steps)
        checks.positive_int("descent", "num_directions", self.num_directions)
        fewest = min(steps, self.learner.num_examples)
        if self.num_directions > fewest:
            raise ValueError(
                f"descent: num_directions must be at most {fewest}, the points of the shorter path "
                f"(examples or steps), got {self.num_directions}."
            )

    @classmethod
    def quick(cls) -> "Config":
        """A short training and fewer prompts."""
        return cls(num_prompts=100, num_search_prompts=50, num_rates=16, learner=quick_learner())


@functools.partial(jax.jit, static_argnames=("stack", "config"))
def search(
    stack: Stack, params: Params, prompts: Prompt, config: ExplicitConfig, rates_X: Array
) -> Any:
    """The learning rate of the lowest query loss, averaged over prompts and all points but the
    start."""

    def score(rate: Array) -> Array:
        def run(prompt: Prompt) -> Array:
            trajectory = fine_tune(stack, params, config, prompt, rate)
            side = explicit_side(stack, params, config, trajectory.points, prompt)
            return query_losses(side.predictions_P, prompt)[1:].mean()

        return jax.vmap(run)(prompts).mean()

    return tune_learning_rate(score, rates_X)


@functools.partial(jax.jit, static_argnames=("stack", "config"))
def face_to_face(
    stack: Stack, params: Params, prompts: Prompt, config: Config, rate: Array, key: Array
) -> dict[str, Any]:
    """Measures, their nulls but the untrained one, and losses, at every point: (P, B) each.

    Measures begin after the first step: at the start nothing has moved. Those of whole paths have
    one value, (1, B).
    """
    explicit = config.explicit
    moves_kernel = explicit.trains in MOVES_KERNEL

    def one(inputs: tuple[Prompt, Prompt, Array]) -> dict[str, Any]:
        prompt, another, prompt_key = inputs
        shuffle_key, random_key = jax.random.split(prompt_key)
        confused = dataclasses.replace(
            prompt, targets_N=shuffled_labels(shuffle_key, prompt.targets_N)
        )
        path = implicit(stack, params, prompt, config.layer)
        context = path
        if explicit.batch == "full":  # Every step is held against the whole context.
            side, updates = jax.tree.map(
                lambda leaf: jnp.broadcast_to(leaf[-1:], (explicit.num_steps + 1, *leaf.shape[1:])),
                (path.side, path.updates),
            )
            context = Implicit(side, updates, path.peeled)
        # Side by side: descent, descent on shuffled labels, and on another task; a random walk.
        lessons = jax.tree.map(lambda *leaves: jnp.stack(leaves), prompt, confused, another)
        descents = jax.vmap(lambda lesson: fine_tune(stack, params, explicit, lesson, rate))(
            lessons
        )
        mine = jax.tree.map(lambda leaf: leaf[0], descents.points)
        points = jax.tree.map(
            lambda leaf, walk: jnp.concatenate([leaf, walk[None]]),
            descents.points,
            random_points(random_key, mine),
        )

        def compare(points: Params) -> tuple[dict[str, Array], Array]:
            side = explicit_side(stack, params, explicit, points, prompt)
            found = _functions(context.side, side)
            if moves_kernel:
                moved_PDH = kernel_updates(stack, points, config.layer)
                found |= _weights(context, moved_PDH) | _paths(config, path.updates, moved_PDH)
            return found, query_losses(side.predictions_P, prompt)

        measures, walk_losses = jax.vmap(compare)(points)
        found = {
            name: {measure: array[i] for measure, array in measures.items()}
            for i, name in enumerate(WALKS)
        }
        losses = {name: walk_losses[i] for i, name in enumerate(WALKS)}
        losses["implicit"] = query_losses(context.side.predictions_P, prompt)
        losses["training"] = descents.losses_S[0]
        numbers: dict[str, Any] = {
            "measures": with_nulls(found.pop("descent"), found),
            "losses": losses,
            "moved": None,
        }
        if moves_kernel:
            moved_PDH = kernel_updates(stack, mine, config.layer)[1:]
            numbers["moved"] = {
                "norm_ratio": jax.vmap(norm_ratio)(_later(context.updates), moved_PDH),
                "implicit_rank": effective_rank_of_updates(_later(path.updates))[None],
                "descent_rank": _path_rank(moved_PDH)[None],
            }
        return numbers

    keys_B = jax.random.split(key, prompts.query_target.shape[0])
    # In small groups: every prompt holds all points of four descents.
    found = jax.lax.map(one, (prompts, another_prompts(prompts), keys_B), batch_size=16)
    return jax.tree.map(jnp.transpose, found)


def _later(tree: Any) -> Any:
    """All points but the start."""
    return jax.tree.map(lambda leaf: leaf[1:], tree)


def _functions(context: Side, descent: Side) -> dict[str, Array]:
    """Both sides as functions of the query, (P - 1,) each."""
    mine, theirs = _later(context), _later(descent)
    return {
        "prediction_difference": jax.vmap(prediction_difference)(
            mine.predictions_P[:, None], theirs.predictions_P[:, None]
        ),
        "sensitivity_cosine": jax.vmap(sensitivity_cosine)(
            mine.sensitivities_PD, theirs.sensitivities_PD
        ),
        "model_difference": jax.vmap(relative_model_difference)(
            mine.sensitivities_PD, theirs.sensitivities_PD
        ),
    }


def _weights(context: Implicit, moved_PDH: Array) -> dict[str, Array]:
    """How the kernel has moved, (P - 1,) each."""
    updates, moved_PDH = _later(context.updates), moved_PDH[1:]
    peeled_cosine = functools.partial(cosine, context.peeled)
    return {
        "update_cosine": jax.vmap(cosine)(updates, moved_PDH),
        "peel_off_cosine": jax.vmap(peeled_cosine)(moved_PDH),
        "norm_gap": jnp.abs(jnp.log(jax.vmap(norm_ratio)(updates, moved_PDH))),
    }


def _paths(config: Config, updates: LowRank, moved_PDH: Array) -> dict[str, Array]:
    """The ways of the kernel as wholes, (1,) each."""
    updates, moved_PDH = _later(updates), moved_PDH[1:]
    angles = leading_angles(updates, moved_PDH, config.num_directions)
    ranks = effective_rank_of_updates(updates), _path_rank(moved_PDH)
    return {
        "path_angle": jnp.degrees(jnp.mean(angles))[None],
        "path_rank_gap": jnp.abs(jnp.log(ranks[0] / ranks[1]))[None],
    }


def _path_rank(moved_PDH: Array) -> Array:
    return effective_rank_of_updates(moved_PDH.reshape(moved_PDH.shape[0], -1))


def measure(config: Config, learner: Learner) -> Arrays:
    """Both sides for the trained learner; both again for the untrained one, at its own rate."""
    prompts = test_prompts(learner, config.seed, config.num_prompts)
    held_out = search_prompts(learner, config.seed + 1, config.num_search_prompts)
    key = jax.random.key(config.seed)
    rates_X = rate_grid(config.lowest_rate, config.highest_rate, config.num_rates, jnp.float32)
    oracles: dict[str, Any] = {name: oracle_losses(name, prompts).T for name in ORACLES}
    searches, sides = {}, {}
    for model in ("trained", "untrained"):
        params = getattr(learner, model)
        found = search(learner.stack, params, held_out, config.explicit, rates_X)
        searches[model] = Searched(found.best_rate, found.at_edge, found.scores_X)
        sides[model] = face_to_face(learner.stack, params, prompts, config, found.best_rate, key)
    mine, null = sides["trained"], sides["untrained"]
    untrained = {f"untrained_{n}": null["losses"][n] for n in ("implicit", "descent")}
    return Arrays(
        losses={**oracles, **mine["losses"], **untrained},
        measures=joined(mine["measures"], "untrained", null["measures"]),
        rates_X=np.asarray(rates_X),
        moved=None if mine["moved"] is None else Moved(**mine["moved"]),
        **searches,
    )


def summarise(config: Config, arrays: Arrays) -> dict[str, Any]:
    """Mean losses at every point, and the measures at the last with nulls, margin, intervals."""
    key = jax.random.key(config.seed)
    losses = {f"{name}_loss": values.mean(axis=1) for name, values in arrays.losses.items()}
    summary: dict[str, Any] = {
        "num_prompts": config.num_prompts,
        "points": np.arange(len(losses["descent_loss"])),
        **losses,
        "optimizer": config.explicit.optimizer.name,
        "trains": config.explicit.trains,
        "learning_rate": arrays.trained.rate,
        "learning_rate_at_edge": bool(arrays.trained.at_edge),
        "untrained_learning_rate": arrays.untrained.rate,
        "measures": summaries(compared(key, arrays.measures, (-1,))),
    }
    if (moved := arrays.moved) is not None:
        ratio = bootstrap_mean(key, jnp.asarray(moved.norm_ratio[-1]))
        summary["norm_ratio"] = ratio.mean
        summary["norm_ratio_interval"] = [ratio.low, ratio.high]
        summary["path_ranks"] = {
            "implicit": moved.implicit_rank.mean(),
            "descent": moved.descent_rank.mean(),
        }
    return summary


def pictures(config: Config, arrays: Arrays) -> list[Section]:
    """The sections, with the numbers that they tell of."""
    return sections(config, summarise(config, arrays), arrays)


EXPERIMENT = Examined(
    "descent",
    "In context and by gradient descent",
    __doc__,
    Arrays,
    measure,
    summarise,
    pictures,
    names,
)


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains the learner (or finds it in ``learners``), compares, writes summary and report."""
    return examine(EXPERIMENT, config, workdir, learners)


if __name__ == "__main__":
    launch(Config, run, __doc__)
