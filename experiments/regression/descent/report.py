"""What experiments.descent shows: losses, functions of the query, weights."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.tools.comparisons import compared, interval_curve, panel, table, verdict
from icl_jax.descent.closed_form import ORACLES
from icl_jax.report.figures import Panel, Role, curves
from icl_jax.report.page import Section, Table, number

#: What is drawn of the losses: label and role.
LOSSES: Mapping[str, tuple[str, Role]] = {
    "implicit": ("in context", "main"),
    "descent": ("fine-tuned", "second"),
    "ridge": ("ridge regression", "reference"),
    "zero": ("zero predictor", "control"),
    "untrained_implicit": ("untrained, in context", "control"),
    "untrained_descent": ("untrained, fine-tuned", "control"),
    "shuffled": ("fine-tuned, shuffled labels", "control"),
    "random": ("random update", "control"),
    "another": ("fine-tuned on another task", "control"),
}
IN_FUNCTION_SPACE = ("prediction_difference", "sensitivity_cosine", "model_difference")
IN_WEIGHT_SPACE = ("update_cosine", "peel_off_cosine", "norm_gap", "path_angle", "path_rank_gap")
NULLS = (
    "Nulls: both sides in the untrained learner, at its own best rate; descent on shuffled labels; "
    "a random update of descent's norm; descent on another task."
)


def sections(
    config: Any, summary: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> list[Section]:
    """Losses, function space and, where the kernel descends, weight space."""
    key = jax.random.key(config.seed)
    comparisons = compared(key, arrays, (-1,))
    examples = config.learner.num_examples
    one_by_one = config.explicit.batch == "one"
    x_label = "examples seen" if one_by_one else "steps of descent"
    points = np.arange(1, len(arrays["descent_loss"]))

    def chosen(names: tuple[str, ...]) -> dict[str, Any]:
        return {name: comparisons[name] for name in names if name in comparisons}

    def section(title: str, names: tuple[str, ...], drawn: tuple[str, ...], text: str) -> Section:
        found = chosen(names)
        return Section(
            f"{title} (N = {examples})",
            verdict(found) + text,
            figure=curves([panel(key, arrays, name, points, x_label) for name in drawn]),
            tables=[table(found, f"At the last point, means over prompts. {NULLS}")],
            anchor=f"{title.split()[-1]}-{examples}",
        )

    found = [
        losses_section(config, summary, arrays, x_label),
        section("Both as functions of the query", IN_FUNCTION_SPACE, IN_FUNCTION_SPACE[1:], ""),
    ]
    if "update_cosine" in comparisons:
        low, high = summary["norm_ratio_interval"]
        ranks = summary["path_ranks"]
        text = (
            f" The implicit update is {number(summary['norm_ratio'])} times as long as descent's "
            f"({number(low)} to {number(high)}; the random update is as long as descent's by "
            f"construction). The implicit updates have an effective rank of "
            f"{number(ranks['implicit'])}, descent's of {number(ranks['descent'])}; their "
            f"{config.num_directions} leading directions are compared by their mean principal "
            "angle."
        )
        found.append(section("Both updates of weights", IN_WEIGHT_SPACE, IN_WEIGHT_SPACE[:2], text))
    return found


def losses_section(
    config: Any, summary: Mapping[str, Any], arrays: Mapping[str, np.ndarray], x_label: str
) -> Section:
    """The query's loss at every point: both sides, oracles and nulls."""
    key, examples = jax.random.key(config.seed), config.learner.num_examples
    final = {name: float(values[-1]) for name, values in summary.items() if name.endswith("_loss")}
    edge = " (at the edge of the search)" if summary["learning_rate_at_edge"] else ""
    how = "one step each" if config.explicit.batch == "one" else "all examples at every step"
    count = len(arrays["descent_loss"])

    def along(name: str) -> np.ndarray:
        """A loss (P, B) at every point. Over the steps of a full batch an oracle has one value."""
        values = arrays[f"{name}_loss"]
        if config.explicit.batch == "full" and name in ORACLES:
            return np.broadcast_to(values[-1:], (count, values.shape[1]))
        return values

    names = [name.removesuffix("_loss") for name in summary if name.endswith("_loss")]
    half = count // 2
    lines = [
        interval_curve(key, along(name), np.arange(count), label, role)
        for name, (label, role) in LOSSES.items()
    ]
    return Section(
        f"In context and by descent: the query's loss (N = {examples})",
        f"After all {examples} examples the learner predicts the query in context with a loss of "
        f"{number(final['implicit_loss'])}; fine-tuned on the same examples "
        f"({config.explicit.trains.replace('_', ' ')}, {config.explicit.optimizer.name}, {how}, "
        f"learning rate {number(summary['learning_rate'])}, the best of {config.num_rates} on "
        f"{config.num_search_prompts} held-out prompts{edge}) and without context, with "
        f"{number(final['descent_loss'])}. Predicting zero gives {number(final['zero_loss'])}, "
        f"least squares {number(final['least_squares_loss'])}, the untrained learner in context "
        f"{number(final['untrained_implicit_loss'])}, descent on shuffled labels "
        f"{number(final['shuffled_loss'])}.",
        figure=curves(
            [Panel("", lines, x_label, "squared error of the query's label", log_y=True)]
        ),
        tables=[
            Table(
                ("predictor", "loss half way", "loss at the end"),
                [
                    (name.replace("_", " "), *(float(along(name)[p].mean()) for p in (half, -1)))
                    for name in names
                ],
                f"Mean squared error of the query over {config.num_prompts} prompts; the training "
                "loss is that of the examples, before each step.",
            )
        ],
        anchor=f"descent-{examples}",
    )
