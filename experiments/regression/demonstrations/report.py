"""The numbers of ``experiments.demonstrations`` as a summary, and as a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from experiments.regression.both import MODELS, Both, names_of_both
from experiments.tools.arrays import Names
from experiments.tools.margins import Margin, margin
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table, number

#: Ways to choose, and what tables call them; the first is what is asked about.
LABELS: Mapping[str, str] = {
    "update": "nearest to the update, greedily",
    "share": "largest shares of the update",
    "size": "largest parts of the update",
    "answer": "leave one out",
    "greedy_answer": "nearest to the answer, greedily",
    "attention": "attention",
    "gradient": "gradient times embedding",
}
WAYS = tuple(LABELS)
#: Those that give every example a score.
SCORED = ("share", "size", "answer", "attention", "gradient")
RIVALS = ("answer", "greedy_answer", "attention", "gradient")


class Asks(Protocol):
    """What the report has to know of the configuration."""

    @property
    def num_prompts(self) -> int: ...
    @property
    def chosen(self) -> int: ...
    @property
    def counts(self) -> tuple[int, ...]: ...
    @property
    def draws(self) -> int: ...
    @property
    def orders(self) -> int: ...
    @property
    def players(self) -> int: ...
    @property
    def valued(self) -> int: ...
    @property
    def first(self) -> int: ...


@dataclass(frozen=True)
class Asked:
    """Squared errors of a learner in B prompts, and what else was seen.

    Attributes:
      none: (B,), without examples.
      full: (B,), with all.
      chosen: way -> (X, B), with as many as it keeps.
      random: (X, B, S), with random ones.
      cosine: (B,), of the chosen parts of the update with the whole.
      alike: (B,), mean cosine between two examples' parts.
      one_pass: (B,), leave-one-out in one pass against reruns, relative.
      taus: way -> (V,), Kendall's tau of its scores with the Shapley values.
      covered: (V, n), whether a sampled interval holds the exact value.
      sizes: (B, N), of the steps of the weights.
      exponents: (B,), of their fall.
      ranks: (B,), how many of the steps differ.
    """

    none: np.ndarray
    full: np.ndarray
    chosen: Mapping[str, np.ndarray]
    random: np.ndarray
    cosine: np.ndarray
    alike: np.ndarray
    one_pass: np.ndarray
    taus: Mapping[str, np.ndarray]
    covered: np.ndarray
    sizes: np.ndarray
    exponents: np.ndarray
    ranks: np.ndarray


@dataclass(frozen=True)
class Arrays(Both[Asked]):
    """Both models on the same prompts."""

    trained: Asked
    untrained: Asked


def names(config: Asks) -> Names:
    """What is measured."""
    return names_of_both({"chosen": WAYS, "taus": SCORED})


def over_random(found: Asked, way: str, at: int) -> Margin:
    """By how much a way's squared error is below the mean of the random choices', over prompts."""
    return margin(found.random[at].mean(axis=1), found.chosen[way][at])


def summarise(config: Asks, arrays: Arrays) -> dict[str, Any]:
    """``MODEL.WAY``: squared error and margin; taus, coverage, exponents."""
    at = config.counts.index(config.chosen)
    summary: dict[str, Any] = {"num_prompts": config.num_prompts, "chosen": config.chosen}
    for model in MODELS:
        found = arrays.of(model)
        one_pass = found.one_pass[np.isfinite(found.one_pass)]
        summary[model] = {
            "none": float(found.none.mean()),
            "full": float(found.full.mean()),
            "random": float(found.random[at].mean()),
            **{
                way: {
                    "error": float(found.chosen[way][at].mean()),
                    "over_random": over_random(found, way, at),
                    "by_count": found.chosen[way].mean(axis=1).tolist(),
                }
                for way in WAYS
            },
            "one_pass": float(one_pass.max()) if len(one_pass) else None,
            "tau": {way: margin(values) for way, values in found.taus.items()},
            "covered": float(found.covered.mean()),
            "exponent": margin(found.exponents),
            "alike": float(found.alike.mean()),
            "rank": float(found.ranks.mean()),
        }
    return summary


def sections(config: Asks, arrays: Arrays) -> list[Section]:
    """Choosing, valuing, and how much is learned."""
    return [_choosing(config, arrays), _valuing(config, arrays), _learning(config, arrays)]


def verdict(found: Asked, at: int) -> str:
    """Whether the choice by the update beats chance, and what does best."""
    mine = over_random(found, "update", at)
    word = "beats" if mine.low > 0 else "is worse than" if mine.high < 0 else "cannot be told from"
    best = min(RIVALS, key=lambda way: found.chosen[way][at].mean())
    return (
        f"Choosing nearest to the update {word} random choice: its squared error is "
        f"{number(float(found.chosen['update'][at].mean()))} against "
        f"{number(float(found.random[at].mean()))}, less by {mine}. The best rival is "
        f"{LABELS[best]} with {number(float(found.chosen[best][at].mean()))}; all examples have "
        f"{number(float(found.full.mean()))}."
    )


def _choosing(config: Asks, arrays: Arrays) -> Section:
    found, untrained = arrays.trained, arrays.untrained
    at = config.counts.index(config.chosen)
    rows = [
        ("none", float(found.none.mean()), "", float(untrained.none.mean())),
        ("all", float(found.full.mean()), "", float(untrained.full.mean())),
        ("random", float(found.random[at].mean()), "", float(untrained.random[at].mean())),
        *(
            (LABELS[way], float(found.chosen[way][at].mean()), str(over_random(found, way, at)),
             float(untrained.chosen[way][at].mean()))
            for way in WAYS
        ),
    ]  # fmt: skip
    roles: dict[str, Role] = {"update": "main", "greedy_answer": "second", "answer": "second",
                              "attention": "reference", "gradient": "reference"}  # fmt: skip
    lines = [
        Curve(LABELS[way], config.counts, found.chosen[way].mean(axis=1), role=role)
        for way, role in roles.items()
    ]
    means_X = found.random.mean(axis=-1)
    ends = [margin(row) for row in means_X]
    low, high = (np.array([getattr(one, end) for one in ends]) for end in ("low", "high"))
    lines.append(Curve("random", config.counts, means_X.mean(axis=1), low, high, role="control"))
    panel = Panel("", lines, "examples that are kept", "squared error", log_x=True, log_y=True)
    figure = curves([panel], band="95% interval over prompts")
    one_pass = found.one_pass[np.isfinite(found.one_pass)]
    exact = (
        f"Leave-one-out from one run differs from really leaving out by {one_pass.max():.1e} at "
        "most, relative."
        if len(one_pass)
        else "In this deep learner leave-one-out is a rerun for each example."
    )
    text = (
        f"{config.chosen} examples are kept, for each of {config.num_prompts} prompts anew; nobody "
        f"sees the query's label. Margins are over the mean of {config.draws} random choices, with "
        f"95% intervals over prompts. The chosen parts' sum has a cosine of "
        f"{number(float(found.cosine.mean()))} with the whole update. {exact}"
    )
    columns = ("examples", "squared error", "below random by", "the same, untrained")
    return Section(f"Choosing {config.chosen} examples", text, figure=figure,
                   tables=[Table(columns, rows)], verdict=verdict(found, at),
                   anchor="choosing")  # fmt: skip


def _valuing(config: Asks, arrays: Arrays) -> Section:
    found, untrained = arrays.trained, arrays.untrained
    taus = {way: margin(values) for way, values in found.taus.items()}
    rivals = [way for way in taus if way not in ("share", "size")]
    best = max(rivals, key=lambda way: np.nan_to_num(taus[way].value, nan=-2.0))
    rows = [(LABELS[way], str(tau), str(margin(untrained.taus[way]))) for way, tau in taus.items()]
    text = (
        f"Values of all examples in {config.valued} prompts, from {config.orders} drawn orders, "
        "each one prefix pass; the worth is minus the squared distance from the answer with all. "
        f"Of the first {config.players} examples alone all orders are run, too: the sampled 95% "
        f"intervals hold {found.covered.mean():.0%} of these exact values."
    )
    verdict = (
        f"Shares of the update rank examples as Shapley values do with a Kendall's tau of "
        f"{taus['share']}; the best rival is {LABELS[best]} with {taus[best]}, chance 0."
    )
    columns = ("way", "Kendall's tau with the Shapley values", "the same, untrained")
    return Section("What each example is worth", text, tables=[Table(columns, rows)],
                   verdict=verdict, anchor="shapley")  # fmt: skip


def _learning(config: Asks, arrays: Arrays) -> Section:
    roles: dict[str, Role] = {"trained": "main", "untrained": "control"}
    exponents = {model: margin(arrays.of(model).exponents) for model in MODELS}
    lines = []
    for model in MODELS:
        mean_N = arrays.of(model).sizes.mean(axis=0)
        steps = np.arange(1, len(mean_N) + 1)
        lines.append(Curve(model, steps, mean_N, role=roles[model]))
    start = float(arrays.trained.sizes.mean(axis=0)[config.first - 1])
    tail = np.arange(config.first, len(steps) + 1)
    lines.append(Curve("1/i", tail, start * config.first / tail, role="reference"))
    panel = Panel("", lines, "examples so far, i", "size of a step of the weights", log_x=True,
                  log_y=True)  # fmt: skip
    mine = exponents["trained"]
    word = "falls like 1/i" if mine.low <= -1 <= mine.high else "does not fall like 1/i"
    verdict = (
        f"The size of a step {word}: its exponent is {mine}; untrained, the null, it is "
        f"{exponents['untrained']}."
    )
    rows = [
        (model, str(exponents[model]), float(arrays.of(model).alike.mean()),
         float(arrays.of(model).ranks.mean()))
        for model in MODELS
    ]  # fmt: skip
    text = (
        "The query stands after each prefix of the examples. A step is `|W_{i+1} - W_i|` of the "
        f"first block's input factor; the exponent is its slope on logarithmic axes from step "
        f"{config.first} on. Cosine: between what two examples add to the whole update. Rank: how "
        "many of the steps differ (effective rank)."
    )
    columns = ("learner", "exponent", "cosine of examples", "rank of the steps")
    return Section("How much one more example still teaches", text, figure=curves([panel]),
                   tables=[Table(columns, rows)], verdict=verdict, anchor="learned")  # fmt: skip
