"""The numbers of ``experiments.real_composition`` as a summary, and as a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from experiments.tools.arrays import Names
from experiments.tools.margins import Margin, apart, margin
from experiments.tools.shares import Share, beside_nulls, share_of_gap
from icl_jax.report.figures import Curve, Panel, Role, curves, dots
from icl_jax.report.page import Section, Table, number

USES: Mapping[str, str] = {
    "none": "no context",
    "another": "another fact's patch",
    "layer": "its own, in the next layer",
    "own": "its own",
    "own_context": "its own fact in the context",
    "together": "one patch of all facts",
    "backwards": "the same, facts in reverse",
    "context": "all facts in the context",
    "position_none": "behind other text: none",
    "position": "behind other text: its own",
}
#: Runs with all facts; the others have one.
OF_ALL = ("together", "backwards", "context")
ABSENT = "facts that are not in it"
AGREED: Mapping[str, str] = {
    "sum": "sum of all facts', and one of all",
    "order": "one of all in reverse, and one of all",
    "one": "the first fact's, and one of all",
    "another": "two facts'",
}


class Asks(Protocol):
    """What the report has to know of the configuration."""

    @property
    def facts(self) -> int: ...
    @property
    def stacked(self) -> tuple[int, ...]: ...
    @property
    def rank(self) -> int: ...


@dataclass(frozen=True)
class Arrays:
    """Log-probabilities (nats) of the right answer's first token, of F facts.

    Attributes:
      log_chance: run -> (F,); NaN where the model cannot: no patch moves to the next layer where
        layers differ.
      right: run -> (F,), whether it is the most probable token.
      stacked: (X,), mean over the facts whose patches are added.
      lone: (X,), of the same facts, each by its own patch alone.
      averaged: (X,), by the mean of the patches.
      missing: (X,), mean over the other facts; NaN where there are none.
      disturbed: (X, texts), KL divergence from the plain model on other text, nats per token.
      disturbed_together: (texts,), the same of one patch of all facts.
      agreed: pair of patches -> (L, 2) cosines: input side, down kernel.
    """

    log_chance: Mapping[str, np.ndarray]
    right: Mapping[str, np.ndarray]
    stacked: np.ndarray
    lone: np.ndarray
    averaged: np.ndarray
    missing: np.ndarray
    disturbed: np.ndarray
    disturbed_together: np.ndarray
    agreed: Mapping[str, np.ndarray]


#: What is measured.
NAMES: Names = {"log_chance": USES, "right": USES, "agreed": AGREED}


def could(arrays: Arrays) -> list[str]:
    """The runs that the model can do: a layer's patch moves only where another has its shape."""
    moves = not np.isnan(arrays.log_chance["layer"]).any()
    return [name for name in USES if name != "layer" or moves]


def over(arrays: Arrays, first: str, second: str) -> Margin:
    """By how much one run's log-probability is above another's, over facts."""
    return margin(arrays.log_chance[first], arrays.log_chance[second])


def share(arrays: Arrays, run: str) -> Share:
    """The share of the gap between no context and the one that the patches were compiled from."""
    whole = arrays.log_chance["context" if run in OF_ALL else "own_context"]
    return share_of_gap(-arrays.log_chance["none"], -whole, -arrays.log_chance[run])


def summarise(config: Asks, arrays: Arrays) -> dict[str, Any]:
    """By run: log-probability and right answers; by the number of stacked facts; cosines."""
    return {
        "runs": {
            name: {
                "log_chance": float(arrays.log_chance[name].mean()),
                "right": float(arrays.right[name].mean()),
                "share": share(arrays, name),
            }
            for name in could(arrays)
        },
        "facts_in_weights": list(config.stacked),
        "stacked": arrays.stacked.tolist(),
        "lone": arrays.lone.tolist(),
        "averaged": arrays.averaged.tolist(),
        "missing": [None if np.isnan(one) else float(one) for one in arrays.missing],
        "kl": arrays.disturbed.mean(axis=1).tolist(),
        "kl_together": float(arrays.disturbed_together.mean()),
        "cosine": {name: rows.mean(axis=0).tolist() for name, rows in arrays.agreed.items()},
    }


def sections(config: Asks, arrays: Arrays, asks: int) -> list[Section]:
    """Used elsewhere, stacked, added up, and what is forgotten."""
    return [_transfer(config, arrays, asks), _stack(config, arrays), _sums(arrays),
            _forgetting(config, arrays)]  # fmt: skip


def _transfer(config: Asks, arrays: Arrays, asks: int) -> Section:
    there = {name: USES[name] for name in could(arrays)}
    rows = [
        (label, float(arrays.log_chance[name].mean()),
         "" if name == "position_none" else f"{arrays.right[name].mean():.0%}")
        for name, label in there.items()
    ]  # fmt: skip
    means = {name: float(arrays.log_chance[name].mean()) for name in there}
    nearest, other = sorted(("none", "another"), key=lambda name: -means[name])
    ahead = [
        f"{USES[name]} ({number(means[name])})"
        for name in ("together", "backwards", "layer")
        if means.get(name, -np.inf) > means["own"]
    ]
    own = number(means["own"])
    best = f" More than its own ({own} nats) has {', '.join(ahead)}." if ahead else ""
    moved = (
        f"; in the next layer it gains {over(arrays, 'layer', 'none')}" if "layer" in there else ""
    )
    verdict = (
        f"In new words, a fact's own patch gains {over(arrays, 'own', nearest)} nats over the "
        f"nearest null, {USES[nearest]}, and {over(arrays, 'own', other)} over {USES[other]}; "
        f"{USES['own_context']} gains {over(arrays, 'own_context', 'none')} over {USES['none']}, "
        f"all facts in it {over(arrays, 'context', 'none')}. Of the answers the model has "
        f"{arrays.right['own_context'].mean():.0%} right behind their own fact, "
        f"{arrays.right['own'].mean():.0%} with the patch, {arrays.right['none'].mean():.0%} with "
        f"nothing.{best} "
        f"Behind other text its own gains {over(arrays, 'position', 'position_none')}{moved}."
    )
    text = (
        f"{config.facts} made-up facts, each compiled at rank {config.rank} from what the model "
        f"says behind it to {asks} questions, and asked for in new words without it. "
        "Log-probability (nats) of the right answer's first token, with 95% intervals over facts."
    )
    columns = ("patch", "log-probability", "right")
    losses = [[-float(arrays.log_chance[name].mean())] for name in there]
    figure = dots(list(there.values()), ("facts",), losses,
                  x_label="minus the log-probability of the answer (nats)")  # fmt: skip
    return Section(
        "A fact's patch used elsewhere",
        text,
        figure=figure,
        tables=[Table(columns, rows)],
        verdict=verdict,
        anchor="transfer",
    )


def _stack(config: Asks, arrays: Arrays) -> Section:
    x = config.stacked
    none, absent = float(arrays.log_chance["none"].mean()), float(arrays.missing[-1])
    # Where all facts are in the weights there is no other to ask about.
    nulls = {USES["none"]: none} | ({} if np.isnan(absent) else {ABSENT: absent})
    lines = [
        Curve("sum of the patches", x, arrays.stacked, role="main"),
        Curve("their mean", x, arrays.averaged, role="second"),
        Curve("each patch alone", x, arrays.lone, role="reference"),
        Curve(ABSENT, x, arrays.missing, role="control"),
        Curve(USES["none"], x, np.full(len(x), none), role="control"),
    ]
    panel = Panel("", lines, "facts in the weights", "log-probability of the answers (nats)")
    lost = float(arrays.lone[-1] - arrays.stacked[-1])
    together = float(arrays.log_chance["together"].mean())
    verdict = (
        f"With {x[-1]} facts stacked their answers have {number(float(arrays.stacked[-1]))} nats, "
        f"{number(lost)} {'less' if lost >= 0 else 'more'} than by each patch alone; compiled "
        f"together, in one patch, {number(together)}. {beside_nulls(nulls)}"
    )
    text = "Patches of facts are added as they are, without a fit of the sum."
    return Section("Facts stacked", text, figure=curves([panel]), verdict=verdict,
                   anchor="stacked")  # fmt: skip


def _sums(arrays: Arrays) -> Section:
    rows: list[tuple[Any, ...]] = []
    for name, label in AGREED.items():
        means = arrays.agreed[name].mean(axis=0)
        rows.append((label, *map(float, means)))
    columns = ("pair of patches", "cosine, input side", "cosine, down kernel")[: len(rows[0])]
    sums, order, null = (float(arrays.agreed[name].mean()) for name in ("sum", "order", "another"))
    verdict = (
        f"The sum of all facts' patches and the patch of all have a cosine of {number(sums)}; the "
        f"facts in another order, {number(order)}; {AGREED['another']}, the null, {number(null)}."
    )
    text = "Cosines are the means over layers, each of the normalised Frobenius product."
    sides = ("input side", "down kernel")[: len(columns) - 1]
    roles: tuple[Role, Role] = ("main", "second")
    values = [[apart(cosine) for cosine in cosines] for _, *cosines in rows]
    figure = dots(list(AGREED.values()), sides, values, roles=roles[: len(sides)],
                  x_label="1 minus the cosine of the two patches")  # fmt: skip
    return Section("patch(A) + patch(B), patch(A + B), and their order", text, figure=figure,
                   tables=[Table(columns, rows)], verdict=verdict, anchor="sums")  # fmt: skip


def _forgetting(config: Asks, arrays: Arrays) -> Section:
    means = arrays.disturbed.mean(axis=1)
    rows: list[tuple[Any, ...]] = [
        ("0, the plain model", 0.0, 0.0),
        *(
            (str(count), float(mean), float(kl.max()))
            for count, mean, kl in zip(config.stacked, means, arrays.disturbed, strict=True)
        ),
    ]
    together = arrays.disturbed_together
    rows.append((f"{config.facts}, one patch", float(together.mean()), float(together.max())))
    verdict = (
        f"On text about something else one fact's patch moves the model by "
        f"{number(float(means[0]))} nats per token, {config.stacked[-1]} stacked by "
        f"{number(float(means[-1]))}, and one patch of all facts by "
        f"{number(float(together.mean()))}; the plain model, the baseline, by 0."
    )
    lines = [
        Curve("sum of the patches", config.stacked, means, role="main"),
        Curve("one patch of all facts", config.stacked,
              np.full(len(means), float(together.mean())), role="reference"),
    ]  # fmt: skip
    panel = Panel("", lines, "facts in the weights", "KL (nats per token)", log_y=True)
    text = "KL divergence from the plain model to the patched one, the mean over tokens of a text."
    columns = ("facts in the weights", "KL (nats per token)", "worst text")
    return Section(
        "What is disturbed",
        text,
        figure=curves([panel]),
        tables=[Table(columns, rows)],
        verdict=verdict,
        anchor="forgetting",
    )
