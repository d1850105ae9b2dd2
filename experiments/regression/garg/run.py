"""What can a transformer learn in context, and how far from its training does it go on?

Trains a softmax stack on prompts of each function class (linear, sparse linear, two-layer networks,
decision trees), every label of a prompt asked for before it is shown, and tracks its loss over the
number of examples beside the baselines: least squares and the like, and what suits the class (a
Lasso, a network fitted by descent, a greedy tree). Then the learner of linear functions meets
inputs that it was not trained on: skewed, in half a subspace, scaled, in one orthant, and a query
that the examples say nothing about. Beside the losses, how far it is from Bayes-optimal ridge
regression as a function of the query, with the nulls.

    python -m experiments.garg --workdir=runs/garg

About seven minutes on 2 cores. Expected: on linear functions within 1.4 times the loss of least
squares from 2d examples on (cosine of the sensitivities with ridge regression 0.993, SPD 0.041,
ILWD 0.029). With all examples 1.1 on networks (a fitted one: 0.98), 0.72 on trees (a greedy one:
1.4) and 0.087 on sparse functions, where the Lasso has 0.030. Far from its training it fails:
inputs of twice the scale cost 9 times the loss of ridge regression, a single orthant 3 times.
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from experiments.regression.garg.report import BASELINES, Arrays, names, sections, summarise
from experiments.regression.learner import (
    TEST_STREAM,
    Learner,
    LearnerConfig,
    obtain,
    predict,
    query_predictions,
    test_prompts,
)
from experiments.tools.baselines import OWN
from experiments.tools.comparisons import Measured
from experiments.tools.conduct import Outcome, each, finish, measured, start
from experiments.tools.flags import launch, option
from experiments.tools.oracles import oracle_losses, query_losses
from experiments.tools.predictors import Predictor, against, over_queries
from icl_jax import checks
from icl_jax.blocks.config import StackConfig
from icl_jax.blocks.stack import Stack
from icl_jax.dims import Array, Params
from icl_jax.oracles.closed_form import Oracle, bayes_ridge_weight, ridge
from icl_jax.tasks.catalogue import TASKS, TaskName
from icl_jax.tasks.prompt import Prompt, prompt_tokens, sample_prompts
from icl_jax.tasks.shifts import SHIFTS, ShiftedLinearRegression
from icl_jax.training.config import TrainingConfig, usual_optimizer


def garg_learner() -> LearnerConfig:
    """A small softmax stack without position codes, on noisy linear functions of 5 inputs."""
    return LearnerConfig(
        input_width=5,
        num_examples=20,
        noise_std=0.5,
        watch=False,
        all_shots=True,
        stack=StackConfig(
            wiring="pre_norm",
            depth=4,
            width=64,
            num_heads=4,
            hidden_widths=(256,),
            activation="gelu",
        ),
        training=TrainingConfig(
            num_steps=6000,
            batch_size=64,
            learning_rate=1e-3,
            checkpoint_every=500,
            optimizer=usual_optimizer(warmup_steps=200),
        ),
    )


@dataclass(frozen=True)
class Config:
    """Function classes, shifts, and the learner, which is trained once per class."""

    classes: tuple[TaskName, ...] = option(
        ("linear", "sparse", "network", "tree"), "what is learned in context, linear among them"
    )
    other_steps: int = option(2000, "training steps of the classes other than linear")
    shifts: tuple[str, ...] = option(tuple(SHIFTS), "of the inputs of linear functions")
    num_prompts: int = option(1000, "test prompts of each class and shift")
    num_queries: int = option(20, "per prompt, of the difference from ridge regression")
    seed: int = option(2, "of the test prompts, the nulls and the resampling")
    learner: LearnerConfig = field(default_factory=garg_learner)

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_queries"):
            checks.positive_int("garg", name, getattr(self, name))
        for name in self.classes:
            checks.one_of("garg", "classes", name, [n for n in TASKS if n != "diabetes"])
            learner_of(self, name)  # It cannot be made of every setting.
        for name in self.shifts:
            checks.one_of("garg", "shifts", name, tuple(SHIFTS))
        width = self.learner.input_width
        if self.learner.task != "linear" or "linear" not in self.classes:
            raise ValueError(
                "garg: learner.task must be linear, and linear one of classes: the shifts are of "
                "linear functions. The other classes are trained with the same settings."
            )
        if self.learner.noise_std == 0:
            raise ValueError(
                "garg: learner.noise_std must be above 0: without noise least squares is exact "
                "from d examples on, and no ratio to it says anything."
            )
        if self.num_queries < width or self.learner.num_examples < 2 * width:
            raise ValueError(
                f"garg: with learner.input_width={width}, num_queries must be at least {width} and "
                f"learner.num_examples at least {2 * width}, got {self.num_queries} and "
                f"{self.learner.num_examples}."
            )

    @classmethod
    def quick(cls) -> "Config":
        """Linear functions only, two shifts, and a learner that has hardly begun."""
        learner = garg_learner()
        return cls(
            classes=("linear",),
            shifts=("skewed", "orthogonal_query"),
            num_prompts=300,
            learner=dataclasses.replace(
                learner,
                stack=dataclasses.replace(learner.stack, depth=2, width=32, hidden_widths=(128,)),
                training=dataclasses.replace(
                    learner.training,
                    num_steps=300,
                    learning_rate=3e-3,
                    optimizer=usual_optimizer(warmup_steps=50),
                ),
            ),
        )


def learner_of(config: Config, name: TaskName) -> LearnerConfig:
    """The learner of a function class."""
    if name == "linear":
        return config.learner
    training = dataclasses.replace(config.learner.training, num_steps=config.other_steps)
    return dataclasses.replace(config.learner, task=name, training=training)


def best_ridge(config: Config) -> Oracle:
    """The posterior mean of linear functions with this noise."""
    weight = bayes_ridge_weight(noise_std=config.learner.noise_std)
    return functools.partial(ridge, weight=weight)


@functools.partial(jax.jit, static_argnames="stack")
def learner_losses(stack: Stack, params: Params, prompts: Prompt) -> Array:
    """The query's squared error after every number of examples, (B, M)."""

    def losses(prompt: Prompt) -> Array:
        return query_losses(query_predictions(stack, params, prompt), prompt)

    return jax.vmap(losses)(prompts)


def shot_losses(learner: Learner, oracle: Oracle, prompts: Prompt) -> dict[str, Array]:
    """The losses (B, M) of the learner, trained and not, and of the baselines."""
    losses = {
        "trained": learner_losses(learner.stack, learner.trained, prompts),
        "untrained": learner_losses(learner.stack, learner.untrained, prompts),
    }
    for name in BASELINES:
        losses[name] = oracle_losses(oracle if name == "ridge" else name, prompts)
    return losses


@functools.partial(jax.jit, static_argnames=("stack", "oracle", "num_queries"))
def differences(
    stack: Stack,
    trained: Params,
    untrained: Params,
    oracle: Oracle,
    prompts: Prompt,
    key: Array,
    *,
    num_queries: int,
) -> dict[str, Measured]:
    """The learner against the best there is, as functions of the query, with the nulls: (B,)."""

    def learner(params: Params) -> Predictor:
        return lambda prompt: predict(stack, params, prompt_tokens(prompt))

    def reference(prompt: Prompt) -> Array:
        return oracle(prompt.inputs_ND, prompt.targets_N, prompt.query_D)

    sides = (reference, learner(trained), learner(untrained), prompts, key)
    return against(*sides) | over_queries(*sides, num_queries=num_queries)


def measure(config: Config, learners: Path) -> Arrays:
    """Trains a learner per class, tracks losses over shots; shifts and differences of linear."""
    key = jax.random.key(config.seed)
    oracle = best_ridge(config)
    classes: dict[str, Any] = {}
    shifts: dict[str, Any] = {}
    for name in each(config.classes, "function classes"):
        learner = obtain(learner_of(config, name), learners)
        prompts = test_prompts(learner, config.seed, config.num_prompts)
        losses = shot_losses(learner, oracle, prompts)
        if name in OWN:
            losses["own"] = OWN[name][1](prompts)
        classes[name] = losses
    linear = obtain(config.learner, learners)
    for shift in each(config.shifts, "shifts"):
        prompts = sample_prompts(
            ShiftedLinearRegression(config.learner.input_width, shift, config.learner.noise_std),
            jax.random.fold_in(key, TEST_STREAM),
            num_prompts=config.num_prompts,
            num_examples=config.learner.num_examples,
        )
        shifts[shift] = shot_losses(linear, oracle, prompts)
    measures = differences(
        linear.stack,
        linear.trained,
        linear.untrained,
        oracle,
        test_prompts(linear, config.seed, config.num_prompts),
        key,
        num_queries=config.num_queries,
    )
    return Arrays(classes, shifts or None, measures)


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains (or finds) the learners, compares, writes summary and report."""
    record = start(workdir, "garg", config)
    arrays = measured(
        record,
        Arrays,
        lambda: measure(config, learners or workdir / "learners"),
        names=names(config),
    )
    outcome = Outcome(summarise(config, arrays), sections(config, arrays))
    return finish(record, "What is learned in context", __doc__, outcome)


if __name__ == "__main__":
    launch(Config, run, __doc__)
