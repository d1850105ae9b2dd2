"""What experiments.descent shows: losses, functions of the query, weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.tools.arrays import Names
from experiments.tools.comparisons import (
    Measured,
    against_best,
    compared,
    interval_curve,
    names_of,
    panel,
    table,
    verdict,
)
from icl_jax.descent.explicit import MOVES_KERNEL
from icl_jax.oracles.closed_form import ORACLES
from icl_jax.report.figures import Panel, Role, curves
from icl_jax.report.page import Section, Table, number

#: What the losses are called; those without a role are in the table alone.
LOSSES: Mapping[str, tuple[str, Role | None]] = {
    "implicit": ("in context", "main"),
    "descent": ("fine-tuned", "second"),
    "training": ("fine-tuning's own examples", None),
    "ridge": ("ridge regression", "reference"),
    "least_squares": ("least squares", None),
    "averaging": ("averaging", None),
    "nearest_neighbours": ("3 nearest neighbours", None),
    "zero": ("zero predictor", "control"),
    "untrained_implicit": ("untrained, in context", "control"),
    "untrained_descent": ("untrained, fine-tuned", "control"),
    "shuffled": ("fine-tuned, shuffled labels", "control"),
    "random": ("random update", "control"),
    "another": ("fine-tuned on another task", "control"),
}
NULL_LOSSES = ("untrained_implicit", "untrained_descent", "shuffled", "random", "another")
IN_FUNCTION_SPACE = ("prediction_difference", "sensitivity_cosine", "model_difference")
IN_WEIGHT_SPACE = ("update_cosine", "peel_off_cosine", "norm_gap", "path_angle", "path_rank_gap")
THE_NULLS = (
    "Nulls: both sides in the untrained learner, at its own best rate; descent on shuffled labels; "
    "a random update of descent's norm; descent on another task."
)


@dataclass(frozen=True)
class Searched:
    """The learning rate of a descent, and how it was found.

    Attributes:
      rate: (), the best.
      at_edge: (), whether it lies at an end of the grid.
      scores_X: (X,), the mean query loss at every rate.
    """

    rate: np.ndarray
    at_edge: np.ndarray
    scores_X: np.ndarray


@dataclass(frozen=True)
class Moved:
    """How far both sides move a kernel.

    Attributes:
      norm_ratio: (P - 1, B), of the updates.
      implicit_rank, descent_rank: (1, B), the effective ranks of both paths.
    """

    norm_ratio: np.ndarray
    implicit_rank: np.ndarray
    descent_rank: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """What is measured, at P points of a descent, on B prompts.

    Attributes:
      losses: (P, B), of both sides, the nulls and (along the examples) the oracles.
      measures: (P - 1, B) each, or (1, B) of whole paths.
      rates_X: (X,), of the search.
      trained: the learner's own search.
      untrained: that of the untrained learner.
      moved: None where no kernel descends.
    """

    losses: Mapping[str, np.ndarray]
    measures: Mapping[str, Measured]
    rates_X: np.ndarray
    trained: Searched
    untrained: Searched
    moved: Moved | None


def names(config: Any) -> Names:
    """What is measured, as the configuration asks for it."""
    moves = config.explicit.trains in MOVES_KERNEL
    return {
        "losses": LOSSES,
        **names_of((*IN_FUNCTION_SPACE, *(IN_WEIGHT_SPACE if moves else ()))),
        "moved": ("norm_ratio", "implicit_rank", "descent_rank") if moves else (),
    }


def sections(config: Any, summary: Mapping[str, Any], arrays: Arrays) -> list[Section]:
    """Losses, function space and, where the kernel descends, weight space."""
    key = jax.random.key(config.seed)
    comparisons = compared(key, arrays.measures, (-1,))
    examples = config.learner.num_examples
    one_by_one = config.explicit.batch == "one"
    x_label = "examples seen" if one_by_one else "steps of descent"
    points = np.arange(1, len(arrays.losses["descent"]))

    def section(title: str, names: tuple[str, ...], drawn: tuple[str, ...], text: str) -> Section:
        found = {name: comparisons[name] for name in names}
        return Section(
            f"{title} (N = {examples})",
            text,
            verdict=verdict(found),
            figure=curves([panel(key, arrays.measures, name, points, x_label) for name in drawn]),
            tables=[table(found, f"At the last point, means over prompts. {THE_NULLS}")],
            anchor=f"{title.split()[-1]}-{examples}",
        )

    found = [
        losses_section(config, summary, arrays, x_label),
        section("Both as functions of the query", IN_FUNCTION_SPACE, IN_FUNCTION_SPACE[1:], ""),
    ]
    if arrays.moved is not None:
        low, high = summary["norm_ratio_interval"]
        ranks = summary["path_ranks"]
        text = (
            f"The implicit update is {number(summary['norm_ratio'])} times as long as descent's "
            f"({number(low)} to {number(high)}; the random update is as long as descent's by "
            f"construction). The implicit updates have an effective rank of "
            f"{number(ranks['implicit'])}, descent's of {number(ranks['descent'])}; their "
            f"{config.num_directions} leading directions are compared by their mean principal "
            "angle."
        )
        found.append(section("Both updates of weights", IN_WEIGHT_SPACE, IN_WEIGHT_SPACE[:2], text))
    return found


def losses_section(
    config: Any, summary: Mapping[str, Any], arrays: Arrays, x_label: str
) -> Section:
    """The query's loss at every point: both sides, oracles and nulls."""
    key, examples = jax.random.key(config.seed), config.learner.num_examples
    final = {name: float(values[-1]) for name, values in summary.items() if name.endswith("_loss")}
    edge = " (at the edge of the search)" if summary["learning_rate_at_edge"] else ""
    how = "one step each" if config.explicit.batch == "one" else "all examples at every step"
    count = len(arrays.losses["descent"])

    def along(name: str) -> np.ndarray:
        """A loss (P, B) at every point. Over the steps of a full batch an oracle has one value."""
        values = arrays.losses[name]
        if config.explicit.batch == "full" and name in ORACLES:
            return np.broadcast_to(values[-1:], (count, values.shape[1]))
        return values

    half = count // 2
    last = {label: float(along(name)[-1].mean()) for name, (label, _) in LOSSES.items()}
    sides = {LOSSES[name][0]: last[LOSSES[name][0]] for name in ("implicit", "descent")}
    oracles = {LOSSES[name][0]: last[LOSSES[name][0]] for name in ORACLES}
    nulls = {LOSSES[name][0]: last[LOSSES[name][0]] for name in NULL_LOSSES}
    lines = [
        interval_curve(key, along(name), np.arange(count), label, role)
        for name, (label, role) in LOSSES.items()
        if role is not None
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
                    (label, *(float(along(name)[point].mean()) for point in (half, -1)))
                    for name, (label, _) in LOSSES.items()
                ],
                f"Mean squared error of the query over {config.num_prompts} prompts; "
                f"{LOSSES['training'][0]}: the loss that descent makes smaller, before each step.",
            )
        ],
        anchor=f"descent-{examples}",
        verdict=" ".join(
            against_best(
                f"{mine.capitalize()}, the loss",
                loss,
                {**oracles, **{side: its for side, its in sides.items() if side != mine}},
                nulls,
            )
            for mine, loss in sides.items()
        ),
    )
