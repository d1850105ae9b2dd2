"""The numbers of ``experiments.composition`` as a summary, and as a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from experiments.regression.both import MODELS, Both, names_of_both
from experiments.regression.reusable.report import share
from experiments.tools.arrays import Names
from experiments.tools.margins import apart, margin
from experiments.tools.shares import Share, beside_nulls
from icl_jax.report.figures import Curve, Panel, Reference, Role, curves, dots
from icl_jax.report.page import Section, Table, number

USES: Mapping[str, str] = {
    "own": "its own context, new queries",
    "token": "that of one query, new queries",
    "layer": "each layer's in the next layer",
    "another": "another context's",
}
SUMS: Mapping[str, str] = {
    "half": "the first half's",
    "other_half": "the second half's",
    "sum": "sum of the halves'",
    "mean": "mean of the halves'",
    "own": "that of the whole",
    "stranger": "mean with another context's half",
}
ALONE = "query alone"
AGREED: Mapping[str, str] = {
    "sum": "sum of the halves' and the whole's",
    "halves": "the two halves'",
    "shuffled": "another order's and its own",
    "stranger": "mean with another context's half, and the whole's",
    "another": "another context's and its own",
}


class Asks(Protocol):
    """What the report has to know of the configuration."""

    @property
    def num_prompts(self) -> int: ...
    @property
    def calibration(self) -> int: ...
    @property
    def new(self) -> int: ...
    @property
    def stacked(self) -> tuple[int, ...]: ...


@dataclass(frozen=True)
class OwnQuery:
    """Answers (B,) to the query that a token patch is of.

    Attributes:
      alone, full: without the context and with it.
      token: with the patch.
    """

    alone: np.ndarray
    full: np.ndarray
    token: np.ndarray


@dataclass(frozen=True)
class Composed:
    """Squared errors (B,) of a learner on new queries, the mean of each context's.

    Attributes:
      alone: of the query alone.
      full: with the context.
      used: use of a patch -> (B,).
      own_query: of the token patch.
      stacked: (X, B), patches of so many contexts added, asked about the first.
      averaged: (X, B), their mean.
      missing: (B,), the largest number of patches added, and not the one that is asked about.
      read: (X, B), other contexts read by the learner with so many patches in it.
      agreed: pair of patches -> their cosine (B,).
    """

    alone: np.ndarray
    full: np.ndarray
    used: Mapping[str, np.ndarray]
    own_query: OwnQuery
    stacked: np.ndarray
    averaged: np.ndarray
    missing: np.ndarray
    read: np.ndarray
    agreed: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Arrays(Both[Composed]):
    """Both models on the same prompts."""

    trained: Composed
    untrained: Composed


def names(config: Asks) -> Names:
    """What is measured."""
    used = {*USES, *SUMS, "shuffled"}
    return names_of_both({"used": used, "agreed": AGREED})


def token_share(found: Composed) -> float:
    """The share of the change that a token patch makes of its own query's answer."""
    own = found.own_query
    off = np.mean((own.token - own.full) ** 2)
    return float(1 - off / np.mean((own.alone - own.full) ** 2))


def summarise(config: Asks, arrays: Arrays) -> dict[str, Any]:
    """Shares of the gap by use, cosines, and what stacking does."""
    summary: dict[str, Any] = {"num_prompts": config.num_prompts, "stacked": list(config.stacked)}
    for model in MODELS:
        found = arrays.of(model)
        summary[model] = {
            "alone_error": float(found.alone.mean()),
            "full_error": float(found.full.mean()),
            "token_on_its_own_query": token_share(found),
            "share": {name: share(found, error_B) for name, error_B in found.used.items()},
            "stacked": [share(found, error_B) for error_B in found.stacked],
            "averaged": [share(found, error_B) for error_B in found.averaged],
            "missing": share(found, found.missing),
            "read_error": [float(error_B.mean()) for error_B in found.read],
            "cosine": {name: margin(cosine_B) for name, cosine_B in found.agreed.items()},
        }
    return summary


def sections(config: Asks, arrays: Arrays) -> list[Section]:
    """Used elsewhere, added up, in another order, stacked, and what is forgotten."""
    return [
        _transfer(config, arrays),
        _sums(config, arrays),
        _order(arrays),
        _stack(config, arrays),
        _forgetting(config, arrays),
    ]


def _dots(found: Composed, names: Mapping[str, str]) -> str:
    """Squared errors by use, between those of the query alone and of the full context."""
    values = [[float(found.used[name].mean())] for name in names]
    ends = [Reference(float(found.alone.mean()), ALONE),
            Reference(float(found.full.mean()), "full context")]  # fmt: skip
    return dots(list(names.values()), ("patched",), values, x_label="squared error",
                references=ends)  # fmt: skip


def _transfer(config: Asks, arrays: Arrays) -> Section:
    found = arrays.trained
    shares = {name: share(found, found.used[name]) for name in USES}
    rows = [(USES[name], str(one), float(found.used[name].mean())) for name, one in shares.items()]
    verdict = (
        f"A context's patch closes {shares['own']} of the gap on new queries. "
        f"{beside_nulls({USES['another']: shares['another'], ALONE: 0.0})} A patch of one query, "
        f"which closes {number(token_share(found))} on that query, closes {shares['token']} on "
        f"others, and in the next layer a patch closes {shares['layer']}."
    )
    text = (
        f"{config.num_prompts} contexts, each compiled on {config.calibration} queries and asked "
        f"about {config.new} new ones. A share of 0 is the query alone "
        f"({number(float(found.alone.mean()))}), 1 the full context "
        f"({number(float(found.full.mean()))}); below 0 is worse than nothing."
    )
    columns = ("patch", "share of the gap", "squared error")
    return Section(
        "A patch used elsewhere",
        text,
        figure=_dots(found, USES),
        tables=[Table(columns, rows)],
        verdict=verdict,
        anchor="transfer",
    )


def _sums(config: Asks, arrays: Arrays) -> Section:
    found = arrays.trained
    shares = {name: share(found, found.used[name]) for name in SUMS}
    cosines = {name: margin(found.agreed[name]) for name in AGREED}
    untrained = {name: margin(arrays.untrained.agreed[name]) for name in AGREED}
    best = max(("sum", "mean"), key=lambda name: shares[name].value)
    half = max(("half", "other_half"), key=lambda name: shares[name].value)
    apart = shares[best].high < shares["own"].low
    nulls: dict[str, Any] = {
        SUMS["stranger"]: shares["stranger"],
        USES["another"]: share(found, found.used["another"]),
        ALONE: 0.0,
    }
    verdict = (
        f"Patches of two halves of a context {'do not simply add up' if apart else 'compose'}: "
        f"their {best} closes {shares[best]}, the whole's patch {shares['own']}, the better half "
        f"alone {shares[half]}. {beside_nulls(nulls)}"
    )
    rows = [(SUMS[name], str(one), float(found.used[name].mean())) for name, one in shares.items()]
    angles = [(label, str(cosines[name]), str(untrained[name])) for name, label in AGREED.items()]
    text = (
        "Both halves are of the same function: their sum says it twice, their mean once. The "
        "cosines are of the patches themselves, the mean over layers and sides."
    )
    tables = [
        Table(("patch", "share of the gap", "squared error"), rows),
        Table(("pair of patches", "cosine", "the same, untrained"), angles),
    ]
    return Section("patch(A) + patch(B) and patch(A + B)", text, figure=_dots(found, SUMS),
                   tables=tables, verdict=verdict, anchor="sums")  # fmt: skip


def _order(arrays: Arrays) -> Section:
    found = arrays.trained
    own, other = share(found, found.used["own"]), share(found, found.used["shuffled"])
    another = share(found, found.used["another"])
    cosine, stranger = margin(found.agreed["shuffled"]), margin(found.agreed["another"])
    untrained = margin(arrays.untrained.agreed["shuffled"])
    nulls: dict[str, Any] = {USES["another"]: stranger, "another order's, untrained": untrained}
    verdict = (
        f"The examples in another order compile to a patch with a cosine of {cosine}. "
        f"{beside_nulls(nulls)} It closes {other} of the gap, the first order {own}."
    )
    rows = [
        ("its own", "1", str(own)),
        ("another order's", str(cosine), str(other)),
        ("another order's, untrained", str(untrained), None),
        (USES["another"], str(stranger), str(another)),
    ]
    text = (
        "The layers are causal, so a deeper learner's context depends on its order; the learner "
        "knows no positions otherwise."
    )
    pairs = ("shuffled", "another")
    values = [
        [apart(margin(arrays.of(model).agreed[pair]).value) for model in MODELS] for pair in pairs
    ]
    figure = dots([AGREED[pair] for pair in pairs], MODELS, values,
                  x_label="1 minus the cosine of the two patches")  # fmt: skip
    return Section("The order of the examples", text, figure=figure, verdict=verdict,
                   anchor="order",
                   tables=[Table(("patch", "cosine with its own", "share of the gap"), rows)],
                   )  # fmt: skip


def _stack(config: Asks, arrays: Arrays) -> Section:
    found = arrays.trained
    roles: dict[str, Role] = {"sum": "main", "mean": "second"}
    rows_by_name = {"sum": found.stacked, "mean": found.averaged}
    lines = []
    for name, rows_XB in rows_by_name.items():
        shares = [share(found, error_B) for error_B in rows_XB]
        value, low, high = (
            np.array([getattr(one, end) for one in shares]) for end in Share._fields
        )
        lines.append(Curve(name, config.stacked, value, low, high, role=roles[name]))
    lines.append(Curve("nothing", config.stacked, np.zeros(len(config.stacked)), role="control"))
    panel = Panel("", lines, "contexts in the weights", "share of the gap of one of them",
                  y_limits=(-1.5, 1.1))  # fmt: skip
    last = config.stacked[-1]
    others = f"{last} others', not its own"
    rows = {
        "its own alone": share(found, found.stacked[0]),
        f"sum of {last}": share(found, found.stacked[-1]),
        f"mean of {last}": share(found, found.averaged[-1]),
        others: share(found, found.missing),
    }
    alone, added, mean, missing = rows.values()
    verdict = (
        f"One context's patch closes {alone}; with those of {last - 1} other functions added, "
        f"{added}, and their mean {mean}. {beside_nulls({others: missing, 'nothing': 0.0})}"
    )
    text = (
        "Patches of different functions are added, and the queries of the first are asked. What "
        "they answer to the same queries contradicts each other, so there is no place to keep "
        "both: the worst case of interference. Far below 0 is not drawn."
    )
    figure = curves([panel], band="95% interval over contexts")
    told = [*((label, str(one)) for label, one in rows.items()), ("nothing", "0")]
    return Section("Contexts stacked", text, figure=figure, verdict=verdict, anchor="stacked",
                   tables=[Table(("patches in the weights", "share of the gap"), told)],
                   )  # fmt: skip


def _forgetting(config: Asks, arrays: Arrays) -> Section:
    found = arrays.trained
    plain = float(found.full.mean())
    rows = [
        (count, float(error_B.mean()), str(margin(error_B, found.full)))
        for count, error_B in zip(config.stacked, found.read, strict=True)
    ]
    one = margin(found.read[0], found.full)
    word = "costs" if one.low > 0 else "does not measurably cost"
    verdict = (
        f"One patch {word} the learner its learning in context: other contexts are read with a "
        f"squared error of {number(float(found.read[0].mean()))}, without a patch "
        f"{number(plain)} (more by {one}); without a context, the null, it is "
        f"{number(float(found.alone.mean()))}."
    )
    x = config.stacked
    lines = [
        Curve("other contexts, read", x, found.read.mean(axis=1), role="main"),
        Curve("without a patch", x, np.full(len(x), plain), role="reference"),
        Curve("without a context", x, np.full(len(x), float(found.alone.mean())), role="control"),
    ]
    panel = Panel("", lines, "patches in the weights", "squared error", log_y=True)
    text = "The patched learner reads other prompts, with all of their examples in the context."
    columns = ("patches in the weights", "squared error", "more than the plain learner by")
    return Section(
        "What is forgotten",
        text,
        figure=curves([panel]),
        tables=[Table(columns, rows)],
        verdict=verdict,
        anchor="forgetting",
    )
