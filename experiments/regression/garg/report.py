"""What experiments.garg finds, in numbers, words and pictures, from its saved arrays only."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from experiments.tools.baselines import OWN
from experiments.tools.comparisons import compared, interval_curve, summaries, table, verdict
from experiments.tools.predictors import NULLS
from icl_jax.report.figures import Panel, Role, curves
from icl_jax.report.page import Section, Table, number

#: What is drawn beside the learner: label and role.
BASELINES: Mapping[str, tuple[str, Role]] = {
    "least_squares": ("least squares", "second"),
    "ridge": ("ridge regression", "reference"),
    "nearest_neighbours": ("3 nearest neighbours", "control"),
    "averaging": ("averaging", "control"),
    "zero": ("zero predictor", "control"),
}


def summarise(config: Any, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Losses over shots, their ratio to least squares from 2d examples on, and the measures."""
    enough = 2 * config.learner.input_width

    def of(name: str) -> dict[str, Any]:
        losses = {
            full.removeprefix(f"{name}/").removesuffix("_loss"): values.mean(axis=0)
            for full, values in arrays.items()
            if full.startswith(f"{name}/")
        }
        with np.errstate(divide="ignore"):
            ratios = losses["trained"] / losses["least_squares"]
        return {**losses, "ratio_to_least_squares": ratios}

    classes = {name: of(name) for name in config.classes}
    ratios = classes["linear"]["ratio_to_least_squares"][enough:]
    return {
        "num_prompts": config.num_prompts,
        "shots": np.arange(config.learner.num_examples + 1),
        "classes": classes,
        "shifts": {name: of(name) for name in config.shifts},
        "worst_ratio_from_2d": float(np.max(ratios)),
        "measures": summaries(compared(jax.random.key(config.seed), arrays)),
    }


def sections(config: Any, arrays: Mapping[str, np.ndarray]) -> list[Section]:
    """Losses over shots of every class and shift, and the difference from ridge regression."""
    summary = summarise(config, arrays)
    comparisons = compared(jax.random.key(config.seed), arrays)
    worst, enough = summary["worst_ratio_from_2d"], 2 * config.learner.input_width
    word = "within" if worst <= 1.5 else "not within"
    return [
        Section(
            "Loss against the number of examples",
            f"On linear functions with noise the learner is {word} 1.5 times the loss of least "
            f"squares from {enough} examples on (at most {worst:.2f} times). "
            + " ".join(_class_verdict(name, summary["classes"][name]) for name in config.classes),
            figure=curves([_panel(config, arrays, name) for name in config.classes]),
            tables=[_table(config, summary["classes"], "function class")],
            anchor="classes",
        ),
        Section(
            "Inputs that it was not trained on",
            "The learner of linear functions, as it is. "
            + " ".join(_shift_verdict(name, summary["shifts"][name]) for name in config.shifts),
            figure=curves([_panel(config, arrays, name) for name in config.shifts]),
            tables=[_table(config, summary["shifts"], "shift")],
            anchor="shifts",
        ),
        Section(
            "How far it is from ridge regression",
            verdict(comparisons),
            tables=[
                table(
                    comparisons,
                    f"After all {config.learner.num_examples} examples; the reference is "
                    f"Bayes-optimal ridge regression. {NULLS}",
                )
            ],
            anchor="measures",
        ),
    ]


def _panel(config: Any, arrays: Mapping[str, np.ndarray], name: str) -> Panel:
    key = jax.random.key(config.seed)
    roles: dict[str, tuple[str, Role]] = {
        "trained": ("trained learner", "main"),
        **_baselines(name),
        "untrained": ("untrained learner", "control"),
    }
    lines = [
        interval_curve(
            key,
            arrays[f"{name}/{which}_loss"].T,
            np.arange(len(arrays[f"{name}/{which}_loss"].T)),
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
    return {"own": (own[0], "reference"), **others}


def _table(config: Any, found: Mapping[str, Any], what: str) -> Table:
    enough = 2 * config.learner.input_width
    shots = (enough, config.learner.num_examples)
    everything = ("trained", "least_squares", "ridge", "own", "nearest_neighbours", "zero")
    there = [key for key in everything if any(key in losses for losses in found.values())]
    which = (*there, "untrained")
    headings = ["baseline of the class" if key == "own" else key.replace("_", " ") for key in which]
    rows: list[tuple[Any, ...]] = [
        (
            name.replace("_", " "),
            shot,
            *(float(losses[key][shot]) if key in losses else None for key in which),
        )
        for name, losses in found.items()
        for shot in shots
    ]
    return Table(
        (what, "examples", *headings),
        rows,
        f"Mean squared error of the query over {config.num_prompts} prompts.",
    )


def _class_verdict(name: str, losses: Mapping[str, np.ndarray]) -> str:
    baselines = _baselines(name)
    found = {which: float(losses[which][-1]) for which in ("trained", *baselines)}
    trained = found.pop("trained")
    best = min(found, key=lambda which: found[which])
    return (
        f"{name.capitalize()}: {number(trained)} with all examples, {trained / found[best]:.2f} "
        f"times the best of the baselines ({baselines[best][0]})."
    )


def _shift_verdict(name: str, losses: Mapping[str, np.ndarray]) -> str:
    trained, best, zero = (float(losses[key][-1]) for key in ("trained", "ridge", "zero"))
    title = name.replace("_", " ").capitalize()
    if name == "orthogonal_query":
        return f"{title}: {number(trained)}, where saying nothing gives {number(zero)}."
    return f"{title}: {trained / best:.2f} times the loss of ridge regression."
