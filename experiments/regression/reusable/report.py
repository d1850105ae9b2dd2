"""The numbers of ``experiments.reusable`` as a summary, and as a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from experiments.regression.both import MODELS, Both, names_of_both
from experiments.tools.arrays import Names
from experiments.tools.shares import Share, beside_nulls, share_of_gap
from icl_jax.patches.fit import Rung
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table, number


class Asks(Protocol):
    """What the report has to know of the configuration."""

    @property
    def num_prompts(self) -> int: ...
    @property
    def counts(self) -> tuple[int, ...]: ...
    @property
    def shown(self) -> int: ...
    @property
    def ranks(self) -> tuple[int, ...]: ...
    @property
    def new(self) -> int: ...


LADDER: tuple[Rung, ...] = ("thought", "cheap", "exact", "ridge")
NAMES: Mapping[str, str] = {
    "thought": "thought vector",
    "cheap": "cheap sum",
    "exact": "exact",
    "ridge": "ridge",
    "another": "another context's ridge",
}
NO_CONTEXT = "no context"


@dataclass(frozen=True)
class Asked:
    """Squared errors of a learner on new queries, the mean of each prompt's.

    Attributes:
      alone: (B,), of the query alone.
      full: (B,), with the context.
      by_count: rung -> (X, B), over the numbers of calibration queries; NaN where there are more
        than ``exact`` can serve.
      by_rank: (Y, B), ridge at the shown count, over the ranks.
      weight: (X, B), the ridge weight that was chosen.
      distance: rung -> (X, B), the squared distance from the full context's predictions, in units
        of that of the query alone.
    """

    alone: np.ndarray
    full: np.ndarray
    by_count: Mapping[str, np.ndarray]
    by_rank: np.ndarray
    weight: np.ndarray
    distance: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Arrays(Both[Asked]):
    """Both models on the same prompts."""

    trained: Asked
    untrained: Asked


def names(config: Asks) -> Names:
    """What is measured."""
    return names_of_both({"by_count": NAMES, "distance": NAMES})


class Ends(Protocol):
    """Squared errors (B,) on new queries without the context and with it."""

    @property
    def alone(self) -> np.ndarray: ...
    @property
    def full(self) -> np.ndarray: ...


def share(found: Ends, error_B: np.ndarray) -> Share:
    """The share of the gap in squared error that is closed on new queries."""
    return share_of_gap(found.alone, found.full, error_B)


def _shares(found: Asked, at: int) -> dict[str, Share]:
    """Of every rung, but for the exact one where it cannot serve so many queries."""
    rows = {name: by_count[at] for name, by_count in found.by_count.items()}
    return {name: share(found, row) for name, row in rows.items() if not np.isnan(row).any()}


def summarise(config: Asks, arrays: Arrays) -> dict[str, Any]:
    """Shares of the gap at the shown count, and the curves."""
    at = config.counts.index(config.shown)
    summary: dict[str, Any] = {"num_prompts": config.num_prompts, "queries": config.shown}
    for model in MODELS:
        found = arrays.of(model)
        summary[model] = {
            # Of an untrained learner the gap has no sign; what counts of it is ``distance``.
            "alone_error": float(found.alone.mean()),
            "full_error": float(found.full.mean()),
            "share": _shares(found, at),
            "share_by_count": {
                name: [_known(share(found, row).value) for row in rows]
                for name, rows in found.by_count.items()
            },
            "share_by_rank": [share(found, row).value for row in found.by_rank],
            "distance": {
                name: float(np.mean(found.distance[name][at])) for name in _shares(found, at)
            },
            "median_weight": float(np.median(found.weight[at])),
        }
    return summary


def _known(value: float) -> float | None:
    """None for what was not measured: more queries than the exact rung can serve."""
    return None if np.isnan(value) else value


def sections(config: Asks, arrays: Arrays) -> list[Section]:
    """What is kept, over the number of queries and over the rank."""
    return [_ladder(config, arrays), _ranks(config, arrays)]


def _curve(found: Asked, label: str, x: Any, rows: np.ndarray, role: Role) -> Curve:
    shares = [share(found, row) for row in rows]
    value, low, high = (np.array([getattr(one, name) for one in shares]) for name in Share._fields)
    return Curve(label, x, value, low, high, role=role)


def _ladder(config: Asks, arrays: Arrays) -> Section:
    found, untrained = arrays.trained, arrays.untrained
    at = config.counts.index(config.shown)
    shares = _shares(found, at)
    roles: dict[str, Role] = {
        "ridge": "main",
        "exact": "second",
        "cheap": "reference",
        "thought": "reference",
        "another": "control",
    }
    lines = [
        _curve(found, NAMES[name], config.counts, found.by_count[name], roles[name])
        for name in ("ridge", "exact", "cheap", "thought", "another")
    ]
    rivals = {name: one for name, one in shares.items() if name not in ("ridge", "another")}
    best = max(rivals, key=lambda name: rivals[name].value)
    word = "at least" if shares["ridge"].value >= 0.8 else "less than"
    verdict = (
        f"From {config.shown} calibration queries, ridge closes {shares['ridge']} of the gap in "
        f"squared error between no context ({number(float(found.alone.mean()))}) and the full one "
        f"({number(float(found.full.mean()))}) on new queries, {word} 80%; the best other rung is "
        f"{NAMES[best]} with {rivals[best]}. {_nulls(shares['another'])}"
    )
    rows = [
        (
            NAMES[name],
            str(shares[name]),
            float(np.mean(found.by_count[name][at])),
            float(np.mean(found.distance[name][at])),
            float(np.mean(untrained.distance[name][at])),
        )
        for name in NAMES
        if name in shares
    ]
    rows += [
        (NO_CONTEXT, "0", float(found.alone.mean()), 1.0, 1.0),
        ("full context", "1", float(found.full.mean()), 0.0, 0.0),
    ]
    columns = (
        "patch", "share of the gap", "squared error", "distance from full context",
        "the same, untrained",
    )  # fmt: skip
    caption = (
        f"{config.num_prompts} contexts, {config.shown} calibration and {config.new} new queries "
        "each. Distance: squared, of predictions, in units of that of the query alone. An "
        "untrained learner's predictions are no answers, so only their distance is shown."
    )
    text = (
        "Each context is compiled by itself. A share of 0 is the query alone, 1 is the full "
        "context; below 0 is worse than nothing, and far below it is not drawn: the cheap sum "
        "presumes inputs spread evenly over all directions, and these lie in a few. The median "
        f"ridge weight that held-out queries chose is {number(float(np.median(found.weight[at])))}."
    )
    panel = Panel("", lines, "calibration queries", "share of the gap closed", log_x=True,
                  y_limits=(-0.5, 1.05))  # fmt: skip
    figure = curves([panel], band="95% interval over contexts")
    return Section(
        "What a context teaches, kept as weights",
        text,
        figure=figure,
        tables=[Table(columns, rows, caption)],
        verdict=verdict,
        anchor="ladder",
    )


def _nulls(another: Share) -> str:
    """Both nulls in words; no context closes nothing by definition."""
    return beside_nulls({NAMES["another"]: another, NO_CONTEXT: 0.0})


def _ranks(config: Asks, arrays: Arrays) -> Section:
    found = arrays.trained
    shares = [share(found, row) for row in found.by_rank]
    at = config.counts.index(config.shown)
    full, another = (share(found, found.by_count[name][at]) for name in ("ridge", "another"))
    enough = [
        rank
        for rank, one in zip(config.ranks, shares, strict=True)
        if one.value > full.value - 0.02
    ]
    reached = (
        f"Rank {enough[0]} has all of it but 0.02"
        if enough
        else f"None of the ranks up to {max(config.ranks)} has all of it but 0.02"
    )
    verdict = (
        f"{reached}: {full} at full rank, {shares[0]} at rank {config.ranks[0]}. {_nulls(another)}"
    )
    panel = Panel("", [_curve(found, "ridge", config.ranks, found.by_rank, "main")],
                  "rank of the update", "share of the gap closed", log_x=True)  # fmt: skip
    rows = [
        *((f"rank {rank}", str(one)) for rank, one in zip(config.ranks, shares, strict=True)),
        ("full rank", str(full)),
        (NAMES["another"], str(another)),
        (NO_CONTEXT, "0"),
    ]
    text = (
        f"The ridge solution from {config.shown} queries at lower ranks, each the one of its rank "
        "that serves the calibration queries best."
    )
    figure = curves([panel], band="95% interval over contexts")
    return Section("How many directions it takes", text, figure=figure, verdict=verdict,
                   tables=[Table(("ridge", "share of the gap"), rows)])  # fmt: skip
