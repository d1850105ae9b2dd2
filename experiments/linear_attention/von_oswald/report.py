"""What experiments.von_oswald finds, in numbers, words and pictures, from its saved arrays only."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tools.comparisons import (
    compared,
    interval_curve,
    panel,
    summaries,
    table,
    verdict,
)
from experiments.tools.predictors import NULLS
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


def _home(arrays: Mapping[str, np.ndarray]) -> int:
    """The index of the training's own input range."""
    return int(np.argmin(np.abs(arrays["scales"] - 1.0)))


def summarise(config: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Measures and losses at the training's own range, the construction, and the optimum."""
    home = _home(arrays)
    key = jax.random.key(config.seed)
    gap, scale = arrays["construction_gap"][home], arrays["descent_prediction"][home]
    trained, best = (
        float(arrays[f"optimum.{name}_loss"].mean()) for name in ("trained", "closed_form")
    )
    return {
        "measures": summaries(compared(key, arrays, (home,))),
        "losses": {name: float(arrays[f"{name}_loss"][home].mean()) for name in LOSSES},
        "learning_rate": float(arrays["rate"]),
        "learning_rate_at_edge": bool(arrays["rate_at_edge"]),
        "construction_error": float(np.linalg.norm(gap) / np.linalg.norm(scale)),
        "optimum": {
            "trained_loss": trained,
            "closed_form_loss": best,
            "expected_loss": float(arrays["optimum.expected_loss"]),
            "ratio": trained / best,
        },
        "num_prompts": config.num_prompts,
    }


def sections(config: Any, arrays: Mapping[str, np.ndarray]) -> list[Section]:
    """Losses and measures against the range of the inputs, the weights, and the optimum."""
    summary, home = summarise(config, arrays), _home(arrays)
    key = jax.random.key(config.seed)
    comparisons = compared(key, arrays, (home,))
    losses, rate, optimum = summary["losses"], summary["learning_rate"], summary["optimum"]
    x, x_label = arrays["scales"], "range of the inputs / range in training"
    lines = [
        interval_curve(key, arrays[f"{name}_loss"], x, label, role)
        for name, (label, role) in LOSSES.items()
    ]
    panels = [
        panel(key, arrays, name, x, x_label, label="trained layer")
        for name in ("sensitivity_cosine", "model_difference")
    ]
    wide = {name: float(arrays[f"{name}_loss"][-1].mean()) for name in LOSSES}
    width = config.learner.input_width
    step_CC = np.zeros((width + 1, width + 1))
    step_CC[:width, :width] = rate * np.eye(width)
    ratio = bootstrap_mean(
        key,
        jnp.stack(
            [
                jnp.asarray(arrays["optimum.trained_loss"]),
                jnp.asarray(arrays["optimum.closed_form_loss"]),
            ],
            axis=1,
        ),
    )
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
            anchor="loss",
        ),
        Section(
            "One layer and one step as functions of the query",
            verdict(comparisons),
            figure=curves(panels),
            tables=[
                table(
                    comparisons,
                    f"Means over tasks in the training's own range. {NULLS}",
                )
            ],
            anchor="measures",
        ),
        Section(
            "The weights of one layer and one step",
            "The product of the query and key kernels, scaled so that the values read the label "
            "with weight 1, beside that of a layer that takes the step by construction. That layer "
            f"predicts what the step predicts to {number(summary['construction_error'])} of its "
            "size, in float32.",
            figure=heatmaps(
                [arrays["bilinear"], step_CC],
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
            f"{number(optimum['expected_loss'])} in expectation. Their ratio is "
            f"{optimum['ratio']:.4f}: training {found_it} the closed form, which is a step of "
            "descent with a matrix for a rate.",
            tables=[
                Table(
                    ("predictor", "loss", "95% interval"),
                    [
                        (name, float(ratio.mean[i]), f"{ratio.low[i]:.4g} to {ratio.high[i]:.4g}")
                        for i, name in enumerate(("trained layer", "closed form"))
                    ],
                    f"Mean squared error over {config.num_optimum_prompts} tasks.",
                )
            ],
            anchor="optimum",
        ),
    ]
