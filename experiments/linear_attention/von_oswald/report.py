"""What experiments.von_oswald finds, in numbers, words and pictures, from its saved arrays only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tools.arrays import Names
from experiments.tools.comparisons import (
    Measured,
    against_best,
    compared,
    interval_curve,
    names_of,
    panel,
    summaries,
    table,
    verdict,
)
from experiments.tools.predictors import AGAINST, THE_NULLS
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.report.figures import Panel, Role, curves, heatmaps
from icl_jax.report.page import Section, Table, number

#: Whose losses are drawn: label and role.
LOSSES: Mapping[str, tuple[str, Role]] = {
    "trained": ("trained layer", "main"),
    "descent": ("one step of descent", "second"),
    "interpolated": ("mean of both weights", "reference"),
    "untrained": ("untrained layer", "control"),
    "zero": ("zero predictor", "control"),
}


#: The losses on skewed inputs, in the order of the table.
OPTIMUM: Mapping[str, str] = {
    "trained": LOSSES["trained"][0],
    "closed_form": "closed form",
    "descent": LOSSES["descent"][0],
    "untrained": LOSSES["untrained"][0],
}


@dataclass(frozen=True)
class Optimum:
    """Squared errors (B,) of a layer trained on skewed inputs and of the best there is.

    Attributes:
      trained, closed_form: (B,).
      descent: (B,), of one step at its best rate.
      untrained: (B,), of the layer before training.
      expected: (), the mean in closed form.
      rate_at_edge: (), whether the step's rate is an end of the grid.
    """

    trained: np.ndarray
    closed_form: np.ndarray
    descent: np.ndarray
    untrained: np.ndarray
    expected: np.ndarray
    rate_at_edge: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """What is measured at X ranges of the inputs, on B prompts.

    Attributes:
      scales_X: (X,), the ranges, in units of the training's.
      losses: (X, B), squared errors.
      measures: (X, B), of the layer beside one step.
      construction_gap: (X, B), of the constructed layer's prediction and the step's.
      descent_prediction: (X, B), the step's.
      rate: (), the best of the step.
      rate_at_edge: (), whether it is an end of the grid.
      bilinear_CC: (C, C), the trained layer's product of query and key kernels.
      value_C: (C,), what its values read.
      optimum: of the layer on skewed inputs.
    """

    scales_X: np.ndarray
    losses: Mapping[str, np.ndarray]
    measures: Mapping[str, Measured]
    construction_gap: np.ndarray
    descent_prediction: np.ndarray
    rate: np.ndarray
    rate_at_edge: np.ndarray
    bilinear_CC: np.ndarray
    value_C: np.ndarray
    optimum: Optimum


#: What is measured.
NAMES: Names = {"losses": LOSSES, **names_of(AGAINST)}


def _home(arrays: Arrays) -> int:
    """The index of the training's own input range."""
    return int(np.argmin(np.abs(arrays.scales_X - 1.0)))


def summarise(config: Any, arrays: Arrays) -> dict[str, Any]:
    """Measures and losses at the training's own range, the construction, and the optimum."""
    home = _home(arrays)
    key = jax.random.key(config.seed)
    gap, scale = arrays.construction_gap[home], arrays.descent_prediction[home]
    optimum = arrays.optimum
    means = {name: float(getattr(optimum, name).mean()) for name in OPTIMUM}
    return {
        "measures": summaries(compared(key, arrays.measures, (home,))),
        "losses": {name: float(arrays.losses[name][home].mean()) for name in LOSSES},
        "learning_rate": float(arrays.rate),
        "learning_rate_at_edge": bool(arrays.rate_at_edge),
        "construction_error": float(np.linalg.norm(gap) / np.linalg.norm(scale)),
        "optimum": {
            **{f"{name}_loss": mean for name, mean in means.items()},
            "expected_loss": float(optimum.expected),
            "ratio": means["trained"] / means["closed_form"],
            "learning_rate_at_edge": bool(optimum.rate_at_edge),
        },
        "num_prompts": config.num_prompts,
    }


def sections(config: Any, arrays: Arrays) -> list[Section]:
    """Losses and measures against the range of the inputs, the weights, and the optimum."""
    summary, home = summarise(config, arrays), _home(arrays)
    key = jax.random.key(config.seed)
    comparisons = compared(key, arrays.measures, (home,))
    losses, rate, optimum = summary["losses"], summary["learning_rate"], summary["optimum"]
    x, x_label = arrays.scales_X, "range of the inputs / range in training"
    lines = [
        interval_curve(key, arrays.losses[name], x, label, role)
        for name, (label, role) in LOSSES.items()
    ]
    panels = [
        panel(key, arrays.measures, name, x, x_label, label="trained layer")
        for name in ("sensitivity_cosine", "model_difference")
    ]
    wide = {name: float(arrays.losses[name][-1].mean()) for name in LOSSES}
    width = config.learner.input_width
    step_CC = np.zeros((width + 1, width + 1))
    step_CC[:width, :width] = rate * np.eye(width)
    off = float(np.linalg.norm(arrays.bilinear_CC - step_CC) / np.linalg.norm(step_CC))
    columns = [jnp.asarray(getattr(arrays.optimum, name)) for name in OPTIMUM]
    best = bootstrap_mean(key, jnp.stack(columns, axis=1))
    edge = " (at the edge of its search)" if optimum["learning_rate_at_edge"] else ""
    found_it = "finds" if abs(optimum["ratio"] - 1) <= 0.02 else "does not find"
    return [
        Section(
            "The losses of one layer and one step",
            f"On {config.num_prompts} new tasks the trained layer has a loss of "
            f"{number(losses['trained'])}, one step of descent at its best rate "
            f"({number(rate)}) {number(losses['descent'])}, and a layer halfway between the two "
            f"{number(losses['interpolated'])}; predicting zero gives {number(losses['zero'])}. "
            f"With inputs from {x[-1]:.2g} times the range of training the layer has "
            f"{number(wide['trained'])}, the step {number(wide['descent'])}.",
            figure=curves(
                [Panel("", lines, x_label, "squared error of the query's label", log_y=True)]
            ),
            verdict=against_best(
                "The trained layer's loss",
                losses["trained"],
                {LOSSES[n][0]: losses[n] for n in ("descent", "interpolated", "zero")},
                {LOSSES["untrained"][0]: losses["untrained"]},
            ),
            anchor="loss",
        ),
        Section(
            "One layer and one step as functions of the query",
            "Predictions and their derivatives, task by task.",
            verdict=verdict(comparisons),
            figure=curves(panels),
            tables=[
                table(
                    comparisons,
                    f"Means over tasks in the training's own range. {THE_NULLS}",
                )
            ],
            anchor="measures",
        ),
        Section(
            "The weights of one layer and one step",
            "The product of the query and key kernels, scaled so that the values read the label "
            "with weight 1, beside that of a layer that takes the step by construction.",
            verdict="The layer that takes the step by construction predicts what the step predicts "
            f"to {number(summary['construction_error'])} of its size, in float32; the trained one "
            f"differs from it by {number(off)} of its kernel's norm (a kernel of zeros: 1).",
            tables=[
                Table(
                    ("kernel", "distance from the constructed step's, in its norm"),
                    [(LOSSES["trained"][0], off), ("a kernel of zeros", 1)],
                )
            ],
            figure=heatmaps(
                [arrays.bilinear_CC, step_CC],
                ["trained layer", "constructed step"],
                x_label="coordinate of an example",
                y_label="coordinate of the query",
                value_label="weight",
                low=-rate,
                high=rate,
            ),
            anchor="weights",
        ),
        Section(
            "The optimum in closed form",
            f"Trained on normal inputs of variances {', '.join(map(str, config.skewed.variances))} "
            f"(N = {config.skewed.num_examples}), a layer has a loss of "
            f"{number(optimum['trained_loss'])}; the closed form of the best layer has "
            f"{number(optimum['closed_form_loss'])} on the same tasks, and "
            f"{number(optimum['expected_loss'])} in expectation. The closed form is a step of "
            "descent with a matrix for a rate; the step beside it has the one rate that is best on "
            f"held-out tasks{edge}.",
            verdict=f"Training {found_it} the closed form of the best layer: the ratio of the two "
            f"losses is {optimum['ratio']:.4f} ({number(optimum['trained_loss'])} to "
            f"{number(optimum['closed_form_loss'])}). Of rivals {OPTIMUM['descent']} has "
            f"{number(optimum['descent_loss'])}, of nulls the {OPTIMUM['untrained']} "
            f"{number(optimum['untrained_loss'])}.",
            tables=[
                Table(
                    ("predictor", "loss", "95% interval"),
                    [
                        (name, float(best.mean[i]), f"{best.low[i]:.4g} to {best.high[i]:.4g}")
                        for i, name in enumerate(OPTIMUM.values())
                    ],
                    f"Mean squared error over {config.num_optimum_prompts} tasks.",
                )
            ],
            anchor="optimum",
        ),
    ]
