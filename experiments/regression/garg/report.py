"""What experiments.garg finds, in numbers, words and pictures, from its saved arrays only."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments.tools.arrays import Names
from experiments.tools.baselines import OWN
from experiments.tools.comparisons import (
    Measured,
    against_best,
    compared,
    interval_curve,
    names_of,
    summaries,
    table,
    verdict,
)
from experiments.tools.predictors import AGAINST, OVER_QUERIES, THE_NULLS
from icl_jax.report.figures import Panel, Role, curves
from icl_jax.report.page import Section, Table

TRAINED, UNTRAINED = "trained learner", "untrained learner"

#: What is drawn beside the learner: label and role.
BASELINES: Mapping[str, tuple[str, Role]] = {
    "least_squares": ("least squares", "second"),
    "ridge": ("ridge regression", "reference"),
    "nearest_neighbours": ("3 nearest neighbours", "control"),
    "averaging": ("averaging", "control"),
    "zero": ("zero predictor", "control"),
}


@dataclass(frozen=True)
class Arrays:
    """What is measured on B prompts, after every number of examples M.

    Attributes:
      classes: function class -> predictor -> squared errors of the query (B, M).
      shifts: the same of shifted inputs; None without shifts.
      measures: the learner of linear functions beside ridge regression, (B,).
    """

    classes: Mapping[str, Mapping[str, np.ndarray]]
    shifts: Mapping[str, Mapping[str, np.ndarray]] | None
    measures: Mapping[str, Measured]


def names(config: Any) -> Names:
    """What is measured, as the configuration asks for it."""
    predictors = ("trained", "untrained", *BASELINES)
    own = {f"classes.{name}": (*predictors, "own") for name in config.classes if name in OWN}
    return {
        "classes": config.classes,
        "classes.*": predictors,
        **own,
        "shifts": config.shifts,
        "shifts.*": predictors,
        **names_of((*AGAINST, *OVER_QUERIES)),
    }


def summarise(config: Any, arrays: Arrays) -> dict[str, Any]:
    """Losses over shots, their ratio to least squares from 2d examples on, and the measures."""
    enough = 2 * config.learner.input_width

    def of(found: Mapping[str, np.ndarray]) -> dict[str, Any]:
        losses = {name: values.mean(axis=0) for name, values in found.items()}
        with np.errstate(divide="ignore"):
            ratios = losses["trained"] / losses["least_squares"]
        return {**losses, "ratio_to_least_squares": ratios}

    classes = {name: of(arrays.classes[name]) for name in config.classes}
    shifts = arrays.shifts or {}
    ratios = classes["linear"]["ratio_to_least_squares"][enough:]
    return {
        "num_prompts": config.num_prompts,
        "shots": np.arange(config.learner.num_examples + 1),
        "classes": classes,
        "shifts": {name: of(shifts[name]) for name in config.shifts},
        "worst_ratio_from_2d": float(np.max(ratios)),
        "measures": summaries(compared(jax.random.key(config.seed), arrays.measures)),
    }


def sections(config: Any, arrays: Arrays) -> list[Section]:
    """Losses over shots of every class and shift, and the difference from ridge regression."""
    summary = summarise(config, arrays)
    comparisons = compared(jax.random.key(config.seed), arrays.measures)
    worst, enough = summary["worst_ratio_from_2d"], 2 * config.learner.input_width
    word = "within" if worst <= 1.5 else "not within"
    found = [
        Section(
            "Loss against the number of examples",
            f"On linear functions with noise the learner is {word} 1.5 times the loss of least "
            f"squares from {enough} examples on (at most {worst:.2f} times).",
            verdict=" ".join(_words(name, summary["classes"][name]) for name in config.classes),
            figure=curves([_panel(config, arrays.classes[name], name) for name in config.classes]),
            tables=[_table(config, summary["classes"], "function class")],
            anchor="classes",
        )
    ]
    if arrays.shifts is not None:
        shifts = arrays.shifts
        found.append(
            Section(
                "Inputs that it was not trained on",
                "The learner of linear functions, as it is.",
                verdict=" ".join(_words(name, summary["shifts"][name]) for name in config.shifts),
                figure=curves([_panel(config, shifts[name], name) for name in config.shifts]),
                tables=[_table(config, summary["shifts"], "shift")],
                anchor="shifts",
            )
        )
    return [
        *found,
        Section(
            "How far it is from ridge regression",
            "Smaller differences and larger cosines are closer.",
            verdict=verdict(comparisons),
            tables=[
                table(
                    comparisons,
                    f"After all {config.learner.num_examples} examples; the reference is "
                    f"Bayes-optimal ridge regression. {THE_NULLS}",
                )
            ],
            anchor="measures",
        ),
    ]


def _panel(config: Any, losses: Mapping[str, np.ndarray], name: str) -> Panel:
    key = jax.random.key(config.seed)
    roles: dict[str, tuple[str, Role]] = {
        "trained": (TRAINED, "main"),
        **_baselines(name),
        "untrained": (UNTRAINED, "control"),
    }
    lines = [
        interval_curve(
            key,
            losses[which].T,
            np.arange(losses[which].shape[1]),
            label,
            role,
        )
        for which, (label, role) in roles.items()
    ]
    title = name.replace("_", " ")
    return Panel(title, lines, "examples in the context", "squared error of the query", log_y=True)


def _baselines(name: str) -> dict[str, tuple[str, Role]]:
    """Those of every class and, in the place of ridge regression, the one that suits this class."""
    own = OWN.get(name)  # type: ignore[call-overload]
    if own is None:
        return dict(BASELINES)
    others = {key: value for key, value in BASELINES.items() if key != "ridge"}
    return {"own": (own[0], "second"), **others}


def _table(config: Any, found: Mapping[str, Any], what: str) -> Table:
    enough = 2 * config.learner.input_width
    shots = (enough, config.learner.num_examples)
    labels = {name: _labels(name) for name in found}
    columns = list(dict.fromkeys(label for each in labels.values() for label in each.values()))
    rows: list[tuple[Any, ...]] = []
    for name, losses in found.items():
        told = {label: losses[which] for which, label in labels[name].items()}
        for shot in shots:
            cells = (float(told[c][shot]) if c in told else None for c in columns)
            rows.append((name.replace("_", " "), shot, *cells))
    return Table(
        (what, "examples", *columns),
        rows,
        f"Mean squared error of the query over {config.num_prompts} prompts.",
    )


def _labels(name: str) -> dict[str, str]:
    """Predictor -> what it is called, the learner first."""
    baselines = {which: label for which, (label, _) in _baselines(name).items()}
    return {"trained": TRAINED, **baselines, "untrained": UNTRAINED}


def _words(name: str, losses: Mapping[str, np.ndarray]) -> str:
    """The learner with all examples beside its baselines and the untrained one."""
    last = {label: float(losses[which][-1]) for which, label in _labels(name).items()}
    trained, untrained = last.pop(TRAINED), last.pop(UNTRAINED)
    what = f"{name.replace('_', ' ').capitalize()}:"
    return against_best(what, trained, last, {UNTRAINED: untrained})
