"""Does the learner learn in context, and do patched weights learn with it?

Trains the learner of a configuration (or finds it on disk), and compares it on fresh prompts with
the predictors that have a closed form. While it trains, every batch is predicted twice: by the
context, and by the query alone with the weights that the context has patched.

    python -m experiments.training --workdir=runs/training

About half a minute on 2 cores. Expected: a final loss far below the zero predictor's, and two
training curves that lie on each other.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.learner import (
    Learner,
    LearnerConfig,
    examine,
    predictions,
    quick_learner,
    test_prompts,
    traced,
)
from experiments.tools.conduct import Outcome
from experiments.tools.flags import launch, option
from experiments.tools.one_program import OneProgram
from icl_jax import checks
from icl_jax.blocks.stack import Stack
from icl_jax.descent.closed_form import ORACLES
from icl_jax.dims import Array, Params
from icl_jax.measures.function_space import squared_error
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table, number
from icl_jax.tasks.prompt import Prompt, prompt_tokens


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


def measure(config: Config, learner: Learner, seed: Any = None) -> dict[str, Any]:
    """Test losses of the learner before and after training and of the oracles; the history.

    ``seed`` replaces the configured one, and may be traced.
    """
    seed = config.seed if seed is None else seed
    prompts = test_prompts(learner, seed, config.num_prompts)
    trained = losses(learner.stack, learner.trained, prompts)
    untrained = losses(learner.stack, learner.untrained, prompts)
    oracles = {
        f"{name}_loss": jax.block_until_ready(oracle_loss(name, prompts)) for name in ORACLES
    }
    return {
        "initial_loss": untrained["context"],
        "final_loss": trained["context"],
        "final_patched_loss": trained["patched"],
        "final_alone_loss": trained["alone"],
        **oracles,
        **{f"history.{name}": values for name, values in learner.history.items()},
    }


def measure_traced(config: Config, values: Mapping[str, Array]) -> dict[str, Any]:
    """Trains and measures as a pure function of what differs between the runs of a program."""
    training = "learner.training"
    learner = traced(
        config.learner, values[f"{training}.learning_rate"], values[f"{training}.seed"]
    )
    return measure(config, learner, values["seed"])


#: Sweeps over these alone run as one program: ``launch.executors.inprocess``.
ONE_PROGRAM = OneProgram(
    ("seed", "learner.training.seed", "learner.training.learning_rate"), measure_traced
)


def summarise(config: Config, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The test losses, their ratio, and how far apart the two training curves are."""
    summary: dict[str, Any] = {
        n: float(x)
        for n, x in arrays.items()
        if n.endswith("_loss") and not n.startswith("history.")
    }
    gap_N = np.abs(arrays["history.loss"] - arrays["history.patched_loss"])
    return summary | {
        "ratio_to_zero": summary["final_loss"] / summary["zero_loss"],
        "steps": len(gap_N),
        "largest_patched_gap": (gap_N / arrays["history.loss"]).max(),
    }


def sections(config: Config, arrays: Mapping[str, np.ndarray]) -> list[Section]:
    """The training curves and the table of test losses."""
    summary = summarise(config, arrays)
    examples = config.learner.num_examples
    return [
        Section(
            f"The learner learns in context, and so do its patched weights (N = {examples})",
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
                            _smoothed(arrays, "loss", "with the context", "main"),
                            _smoothed(arrays, "patched_loss", "patched, no context", "second"),
                            _smoothed(arrays, "alone_loss", "unpatched, no context", "control"),
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
                    [
                        (n.removesuffix("_loss").replace("_", " "), x)
                        for n, x in summary.items()
                        if n.endswith("_loss")
                    ],
                    f"Mean squared error over {config.num_prompts} test prompts.",
                )
            ],
            anchor=f"training-{examples}",
        )
    ]


def _smoothed(arrays: Mapping[str, np.ndarray], name: str, label: str, role: Role) -> Curve:
    """Means of about a hundred stretches of the training."""
    groups = np.array_split(np.arange(len(arrays["history.step"])), 100)
    step, value = (
        np.asarray([arrays[f"history.{key}"][group].mean() for group in groups if group.size])
        for key in ("step", name)
    )
    return Curve(label, step, value, role=role)


def report(config: Config, arrays: Mapping[str, np.ndarray]) -> Outcome:
    """The numbers and the pictures."""
    return Outcome(summarise(config, arrays), sections(config, arrays))


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains the learner (or finds it in ``learners``), tests it, writes summary and report."""
    folders = (workdir, learners)
    return examine(
        "training", "Does the learner learn in context?", __doc__, config, folders, measure, report
    )


if __name__ == "__main__":
    launch(Config, run, __doc__)
