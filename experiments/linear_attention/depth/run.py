"""Do k layers of linear attention take k steps of gradient descent?

Trains stacks of one to three layers on linear regression (d = N = 10, inputs uniform between -1 and
1) and sets each beside as many steps of gradient descent, at the best learning rate, and of GD++,
at the best rate and curvature correction: their losses, and their predictions and derivatives with
respect to the query, task by task, with the nulls.

    python -m experiments.depth --workdir=runs/depth

About a minute and a half on 2 cores. Expected, at depth 1, 2, 3: losses of 1.65, 0.70, 0.33 for the
stack, 1.65, 0.86, 0.62 for GD++ and 1.65, 1.28, 1.05 for gradient descent. One layer is one step;
deeper stacks end below GD++, and their sensitivities stay nearer to its (cosine 0.99 and 0.95) than
to descent's (0.94 and 0.89). Four layers diverge at these settings.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.linear_attention.depth.report import (
    STEPPERS,
    Against,
    Arrays,
    Deep,
    names,
    sections,
    summarise,
)
from experiments.linear_attention.learner import (
    LinearLearnerConfig,
    draw,
    obtain,
    predict,
    predict_all,
    shortened,
)
from experiments.tools.conduct import Outcome, each, finish, measured, start
from experiments.tools.flags import LONE, launch, option
from experiments.tools.predictors import Predictor, against
from icl_jax import checks
from icl_jax.blocks.attention_stack import AttentionStack
from icl_jax.descent.line_search import check_grid, rate_grid, tune_learning_rate
from icl_jax.descent.linear_steps import gd_plus_plus
from icl_jax.dims import Array, Params
from icl_jax.measures.function_space import squared_error
from icl_jax.oracles.closed_form import least_squares
from icl_jax.tasks.prompt import Prompt
from icl_jax.training.config import TrainingConfig, usual_optimizer


def deep_learner() -> LinearLearnerConfig:
    """Batches half as large as for one layer."""
    training = TrainingConfig(
        num_steps=3000,
        batch_size=1024,
        learning_rate=5e-3,
        optimizer=usual_optimizer(gradient_clip=0.3),
    )
    return LinearLearnerConfig(training=training)


@dataclass(frozen=True)
class Config:
    """The depths, and on how many tasks they are compared."""

    depths: tuple[int, ...] = option((1, 2, 3), "layers, one stack each")
    num_prompts: int = option(2000, "test prompts, a task each")
    num_search_prompts: int = option(2000, "held-out prompts of the line searches")
    lowest_rate: float = option(0.1, "of the line searches")
    highest_rate: float = option(10.0, "of the line searches")
    num_rates: int = option(61, "of the line searches, evenly spaced in the logarithm")
    corrections: tuple[float, ...] = option(
        (0.0, 0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0, 1.3, 1.6), "of GD++, searched with the rate"
    )
    seed: int = option(2, "of the test prompts, the nulls and the resampling")
    learner: LinearLearnerConfig = field(default_factory=deep_learner)

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_search_prompts", "num_rates"):
            checks.positive_int("depth", name, getattr(self, name))
        check_grid("depth", self.lowest_rate, self.highest_rate, self.num_rates)
        checks.at_least_two("depth", "num_prompts", self.num_prompts, LONE)
        if not self.depths or list(self.depths) != sorted(set(self.depths)) or self.depths[0] < 1:
            raise ValueError(f"depth: depths must be positive and increasing, got {self.depths}.")
        if not self.corrections or min(self.corrections) < 0:
            raise ValueError(
                f"depth: corrections must be numbers from 0 on, got {self.corrections}."
            )

    @classmethod
    def quick(cls) -> "Config":
        """Two short trainings."""
        return cls(
            depths=(1, 2),
            num_prompts=500,
            num_search_prompts=500,
            num_rates=31,
            corrections=(0.0, 0.1, 0.3, 0.6, 1.0),
            learner=shortened(deep_learner(), num_steps=500),
        )


def after_steps(num_steps: int, rate: Array, correction: Array, prompt: Prompt) -> Array:
    """What GD++ predicts after so many steps, (); descent, without a correction."""
    predictions_P = gd_plus_plus(
        prompt.inputs_ND,
        prompt.targets_N,
        prompt.query_D,
        rate=rate,
        correction=correction,
        num_steps=num_steps,
    )
    return predictions_P[-1]


@functools.partial(jax.jit, static_argnames="num_steps")
def search(num_steps: int, prompts: Prompt, rates_X: Array, corrections_G: Array) -> Any:
    """For every correction the learning rate that predicts best: leaves with an axis G."""

    def tuned(correction: Array) -> Any:
        def score(rate: Array) -> Array:
            predicted_B = jax.vmap(functools.partial(after_steps, num_steps, rate, correction))(
                prompts
            )
            return jnp.mean(squared_error(predicted_B, prompts.query_target))

        return tune_learning_rate(score, rates_X)

    return jax.lax.map(tuned, corrections_G)


@functools.partial(jax.jit, static_argnames=("model", "num_steps"))
def face_to_face(
    model: AttentionStack,
    trained: Params,
    untrained: Params,
    num_steps: int,
    rates: Mapping[str, Array],
    corrections: Mapping[str, Array],
    prompts: Prompt,
    key: Array,
) -> dict[str, Any]:
    """Measures against each stepper, and losses, for every prompt (B,)."""
    learner: Predictor = functools.partial(predict, model, trained)
    before: Predictor = functools.partial(predict, model, untrained)
    found = {"trained": jax.vmap(learner)(prompts), "untrained": jax.vmap(before)(prompts)}
    measures = {}
    for name in STEPPERS:
        stepper = functools.partial(after_steps, num_steps, rates[name], corrections[name])
        found[name] = jax.vmap(stepper)(prompts)
        measures[name] = against(stepper, learner, before, prompts, key)
    layers_BS = jax.vmap(functools.partial(predict_all, model, trained))(prompts)
    targets_BS = jnp.broadcast_to(prompts.query_target[:, None], layers_BS.shape)
    losses = {name: squared_error(array, prompts.query_target) for name, array in found.items()}
    layers = squared_error(layers_BS, targets_BS)
    return {"losses": losses, "layers": layers, "measures": measures}


@jax.jit
def baselines(prompts: Prompt) -> dict[str, Any]:
    """The losses (B,) of least squares, which no number of steps is better than, and of zero."""
    exact_B = jax.vmap(least_squares)(prompts.inputs_ND, prompts.targets_N, prompts.query_D)
    return {
        "least_squares": squared_error(exact_B, prompts.query_target),
        "zero": prompts.query_target**2,
    }


def measure(config: Config, learners: Path) -> Arrays:
    """Trains a stack of every depth, searches, compares."""
    task, examples = config.learner.task(), config.learner.num_examples
    prompts = draw(task, config.seed, config.num_prompts, examples)
    held_out = draw(task, config.seed + 1, config.num_search_prompts, examples)
    rates_X = rate_grid(config.lowest_rate, config.highest_rate, config.num_rates, jnp.float32)
    corrections_G = jnp.asarray((0.0, *config.corrections), jnp.float32)
    key = jax.random.key(config.seed)
    depths = {}
    for depth in each(config.depths, "depths"):
        learner = obtain(replace(config.learner, depth=depth), learners)
        found = search(depth, held_out, rates_X, corrections_G)
        # The first correction is none: gradient descent.
        picks = {"descent": 0, "gd_plus_plus": int(jnp.argmin(jnp.min(found.scores_X, axis=1)))}
        rates = {name: found.best_rate[index] for name, index in picks.items()}
        corrections = {name: corrections_G[index] for name, index in picks.items()}
        numbers = face_to_face(
            learner.model,
            learner.trained,
            learner.untrained,
            depth,
            rates,
            corrections,
            prompts,
            key,
        )
        losses = numbers["losses"]
        steppers = {
            name: Against(
                losses[name],
                rates[name],
                np.asarray(corrections[name]),
                found.at_edge[index],
                numbers["measures"][name],
            )
            for name, index in picks.items()
        }
        depths[str(depth)] = Deep(
            losses["trained"], losses["untrained"], numbers["layers"], steppers
        )
    return Arrays(depths, **baselines(prompts))


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains (or finds) the stacks, compares, writes summary and report."""
    record = start(workdir, "depth", config)
    arrays = measured(
        record,
        Arrays,
        lambda: measure(config, learners or workdir / "learners"),
        names=names(config),
    )
    outcome = Outcome(summarise(config, arrays), sections(config, arrays))
    return finish(record, "Layers and steps of descent", __doc__, outcome)


if __name__ == "__main__":
    launch(Config, run, __doc__)
