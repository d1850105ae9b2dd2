"""Does the learner learn in context, and do patched weights learn with it?

Trains the learner of a configuration (or finds it on disk), and compares it on fresh prompts with
the predictors that have a closed form. While it trains, every batch is predicted twice: by the
context, and by the query alone with the weights that the context has patched.

    python -m experiments.training --workdir=runs/training

About a minute on 2 cores. Expected after 50 examples: a loss of 0.103, where the zero predictor has
2.1, averaging 0.114 and ridge regression 0.001; by patched weights the same to 1e-6 at every step.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.learner import (
    Examined,
    Learner,
    LearnerConfig,
    examine,
    predictions,
    quick_learner,
    test_prompts,
    traced,
)
from experiments.tools.arrays import Names, flatten
from experiments.tools.comparisons import against_best
from experiments.tools.conduct import Outcome
from experiments.tools.flags import launch, option
from experiments.tools.one_program import OneProgram
from icl_jax import checks
from icl_jax.blocks.stack import Stack
from icl_jax.dims import Array, Params
from icl_jax.measures.function_space import squared_error
from icl_jax.oracles.closed_form import ORACLES
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table, number
from icl_jax.tasks.prompt import Prompt, prompt_tokens

#: Loss -> what tables and legends call it.
LABELS: Mapping[str, str] = {
    "final": "with the context",
    "final_patched": "patched, no context",
    "final_alone": "unpatched, no context",
    "initial": "before training, with the context",
    "least_squares": "least squares",
    "ridge": "ridge regression",
    "averaging": "averaging",
    "nearest_neighbours": "3 nearest neighbours",
    "zero": "zero predictor",
}


@dataclass(frozen=True)
class Config:
    """Which learner, and on how many prompts it is tested."""

    num_prompts: int = option(1000, "test prompts")
    seed: int = option(5, "of the test prompts")
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        checks.positive_int("training", "num_prompts", self.num_prompts)
        if not self.learner.watch:
            raise ValueError(
                "training: learner.watch must be true: the patched loss is what is compared here."
            )

    @classmethod
    def quick(cls) -> "Config":
        """A short training."""
        return cls(learner=quick_learner())


@dataclass(frozen=True)
class Losses:
    """Mean squared errors of the learner, each ().

    Attributes:
      initial: before training.
      final, final_patched, final_alone: after it, by the context, by patched weights without it,
        and by neither.
    """

    initial: np.ndarray
    final: np.ndarray
    final_patched: np.ndarray
    final_alone: np.ndarray


@dataclass(frozen=True)
class History:
    """The metrics of a training that is watched, (S,) each.

    Attributes:
      step: its number.
      loss, patched_loss, alone_loss: by the context, by patched weights without it, by neither.
      gradient_norm: of the loss by the context.
    """

    step: np.ndarray
    loss: np.ndarray
    gradient_norm: np.ndarray
    patched_loss: np.ndarray
    alone_loss: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """What is measured.

    Attributes:
      losses: of the learner.
      oracles: (), those of closed forms.
      history: of its training.
    """

    losses: Losses
    oracles: Mapping[str, np.ndarray]
    history: History


def names(config: Config) -> Names:
    """What is measured."""
    return {"oracles": tuple(ORACLES)}


@functools.partial(jax.jit, static_argnames="stack")
def losses(stack: Stack, params: Params, prompts: Prompt) -> dict[str, Array]:
    """The mean squared error of the learner by context, by patched weights, and by neither."""
    tokens_BTC = jax.vmap(prompt_tokens)(prompts)
    predicted = jax.vmap(functools.partial(predictions, stack, params))(tokens_BTC)
    return {
        name: jnp.mean(squared_error(values_B, prompts.query_target))
        for name, values_B in predicted.items()
    }


@functools.partial(jax.jit, static_argnames="name")
def oracle_loss(name: str, prompts: Prompt) -> Array:
    """The mean squared error of a closed-form predictor."""
    predicted_B = jax.vmap(ORACLES[name])(prompts.inputs_ND, prompts.targets_N, prompts.query_D)
    return jnp.mean(squared_error(predicted_B, prompts.query_target))


def measure(config: Config, learner: Learner, seed: Any = None) -> Arrays:
    """Test losses of the learner before and after training and of the oracles; the history.

    ``seed`` replaces the configured one, and may be traced.
    """
    seed = config.seed if seed is None else seed
    prompts = test_prompts(learner, seed, config.num_prompts)
    trained: dict[str, Any] = losses(learner.stack, learner.trained, prompts)
    untrained: dict[str, Any] = losses(learner.stack, learner.untrained, prompts)
    oracles: dict[str, Any] = {
        name: jax.block_until_ready(oracle_loss(name, prompts)) for name in ORACLES
    }
    found = Losses(
        initial=untrained["context"],
        final=trained["context"],
        final_patched=trained["patched"],
        final_alone=trained["alone"],
    )
    return Arrays(found, oracles, History(**learner.history))


def measure_traced(config: Config, values: Mapping[str, Array]) -> dict[str, Any]:
    """Trains and measures as a pure function of what differs between the runs of a program."""
    training = "learner.training"
    learner = traced(
        config.learner, values[f"{training}.learning_rate"], values[f"{training}.seed"]
    )
    return flatten(measure(config, learner, values["seed"]))


#: Sweeps over these alone run as one program: ``launch.executors.inprocess``.
ONE_PROGRAM = OneProgram(
    ("seed", "learner.training.seed", "learner.training.learning_rate"), measure_traced
)


def summarise(config: Config, arrays: Arrays) -> dict[str, Any]:
    """The test losses, their ratio, and how far apart the two training curves are."""
    told = {**dataclasses.asdict(arrays.losses), **arrays.oracles}
    summary: dict[str, Any] = {f"{name}_loss": float(loss) for name, loss in told.items()}
    history = arrays.history
    gap_N = np.abs(history.loss - history.patched_loss)
    return summary | {
        "ratio_to_zero": summary["final_loss"] / summary["zero_loss"],
        "steps": len(gap_N),
        "largest_patched_gap": (gap_N / history.loss).max(),
    }


def sections(config: Config, arrays: Arrays) -> list[Section]:
    """The training curves and the table of test losses."""
    summary = summarise(config, arrays)
    examples = config.learner.num_examples
    return [
        Section(
            f"In context and by patched weights (N = {examples})",
            f"Trained on fresh {config.learner.task} prompts for {summary['steps']} steps, the "
            f"learner predicts {config.num_prompts} new queries with a loss of "
            f"{number(summary['final_loss'])}; it began at {number(summary['initial_loss'])}, and "
            f"predicting zero gives {number(summary['zero_loss'])}. At every step the same batch "
            "was also predicted without its context, by weights patched for each prompt: the two "
            "losses differ by at most a fraction "
            f"{number(summary['largest_patched_gap'])} in the whole training. The query alone with "
            f"unpatched weights stays at {number(summary['final_alone_loss'])}: all that was "
            "learned comes through the context, and all of that fits into the patch.",
            figure=curves(
                [
                    Panel(
                        "",
                        [
                            _smoothed(arrays, "loss", LABELS["final"], "main"),
                            _smoothed(arrays, "patched_loss", LABELS["final_patched"], "second"),
                            _smoothed(arrays, "alone_loss", LABELS["final_alone"], "control"),
                        ],
                        "training step",
                        "squared error of the query",
                        log_y=True,
                    )
                ]
            ),
            tables=[
                Table(
                    ("predictor", "loss"),
                    [(label, summary[f"{name}_loss"]) for name, label in LABELS.items()],
                    f"Mean squared error over {config.num_prompts} test prompts.",
                )
            ],
            verdict=against_best(
                "The learner's loss",
                summary["final_loss"],
                {LABELS[name]: summary[f"{name}_loss"] for name in ORACLES},
                {LABELS[name]: summary[f"{name}_loss"] for name in ("initial", "final_alone")},
            )
            + " Patched weights without the context have the same loss to a fraction of "
            f"{number(summary['largest_patched_gap'])}.",
            anchor=f"training-{examples}",
        )
    ]


def _smoothed(arrays: Arrays, name: str, label: str, role: Role) -> Curve:
    """Means of about a hundred stretches of the training."""
    history = vars(arrays.history)
    groups = np.array_split(np.arange(len(history["step"])), 100)
    step, value = (
        np.asarray([history[key][group].mean() for group in groups if group.size])
        for key in ("step", name)
    )
    return Curve(label, step, value, role=role)


EXPERIMENT = Examined(
    "training",
    "Does the learner learn in context?",
    __doc__,
    Arrays,
    measure,
    summarise,
    sections,
    names,
)


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains the learner (or finds it in ``learners``), tests it, writes summary and report."""
    return examine(EXPERIMENT, config, workdir, learners)


if __name__ == "__main__":
    launch(Config, run, __doc__)
