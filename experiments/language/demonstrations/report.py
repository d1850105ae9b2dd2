"""The numbers of ``experiments.real_demonstrations`` as a summary, and as a page."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from experiments.language.demonstrations.learned import Learned
from experiments.tools.arrays import Names
from experiments.tools.margins import Margin, margin
from icl_jax.measures.representation import kendall_tau
from icl_jax.report.figures import Curve, Panel, Reference, Role, curves, estimates
from icl_jax.report.page import Section, Table, number

#: Ways to choose, and what tables call them; the first is what is asked about.
LABELS: Mapping[str, str] = {
    "update": "nearest to the update, greedily",
    "share": "largest shares of the update",
    "size": "largest parts of the update",
    "answer": "leave one out",
    "attention": "attention",
    "gradient": "gradient times embedding",
}
WAYS = tuple(LABELS)
BY_UPDATE = ("update", "share", "size")
RIVALS = ("answer", "attention", "gradient")
TOKEN_WAYS = ("size", "attention", "gradient")
#: What is said of the demonstrations that get Shapley values.
SAID = ("share", "size", "answer", "attention", "gradient")
ROLES: Mapping[str, Role] = {
    "update": "main", "share": "second", "size": "second", "answer": "reference",
    "attention": "reference", "gradient": "reference", "random": "control",
}  # fmt: skip


class Asks(Protocol):
    """What the report has to know of the configuration."""

    @property
    def pool(self) -> int: ...
    @property
    def chosen(self) -> int: ...
    @property
    def asked(self) -> int: ...
    @property
    def draws(self) -> int: ...
    @property
    def shares(self) -> tuple[float, ...]: ...
    @property
    def players(self) -> int: ...
    @property
    def orders(self) -> int: ...
    @property
    def length(self) -> int: ...
    @property
    def first(self) -> int: ...


@dataclass(frozen=True)
class Valued:
    """Shapley values of N demonstrations in V prompts, and what W ways say of them.

    Attributes:
      values, low, high: (V, N), nats of the model's own answer, with intervals over orders.
      said: (V, W, N), by the ways of ``SAID``.
    """

    values: np.ndarray
    low: np.ndarray
    high: np.ndarray
    said: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """One task: log-probabilities (nats) of the right answer to Q questions.

    Attributes:
      none: (Q,), without demonstrations.
      full: (Q,), with all.
      chosen: way -> (Q,), with those that it chooses.
      random: (Q, S), with random ones.
      right: way (and none, full, random) -> whether the right answer is the most probable one.
      picked: way -> (Q, k), which.
      cosine: (Q,), of the chosen parts of the update with the whole.
      alike: (Q,), mean cosine between two demonstrations' parts.
      tokens: way -> (Q, shares), with a share of the demonstrations' tokens.
      valued: Shapley values; None where none were asked for.
    """

    none: np.ndarray
    full: np.ndarray
    chosen: Mapping[str, np.ndarray]
    random: np.ndarray
    right: Mapping[str, np.ndarray]
    picked: Mapping[str, np.ndarray]
    cosine: np.ndarray
    alike: np.ndarray
    tokens: Mapping[str, np.ndarray]
    valued: Valued | None


Found = Mapping[str, Arrays]


def names(config: Any) -> Names:
    """What is measured of a task."""
    return {
        "chosen": WAYS,
        "right": (*WAYS, "none", "full", "random"),
        "picked": WAYS,
        "tokens": (*TOKEN_WAYS, "random"),
        "valued": ("values", "low", "high", "said") if config.valued else (),
    }


def over_random(arrays: Arrays, way: str) -> Margin:
    """By how much a way's choice is better than the mean of the random ones, over questions."""
    return margin(arrays.chosen[way], arrays.random.mean(axis=1))


def summarise(config: Asks, found: Found, text: Mapping[str, Learned]) -> dict[str, Any]:
    """``tasks.TASK.WAY``: log-probability, right answers and margin; ``learned.TEXT``."""
    tasks = {}
    for task, arrays in found.items():
        tasks[task] = {
            "none": float(arrays.none.mean()),
            "full": float(arrays.full.mean()),
            "random": float(arrays.random.mean()),
            "random_right": float(arrays.right["random"].mean()),
            "cosine_of_the_choice": float(arrays.cosine.mean()),
            "alike": float(arrays.alike.mean()),
            "tokens": {way: rows.mean(axis=0).tolist() for way, rows in arrays.tokens.items()},
            **{
                way: {
                    "log_chance": float(arrays.chosen[way].mean()),
                    "right": float(arrays.right[way].mean()),
                    "over_random": over_random(arrays, way),
                }
                for way in WAYS
            },
        }
    learned = {
        name: {
            "exponent": margin(one.exponents.mean(axis=1)),
            "alike": float(one.alike.mean()),
            "rank_of_tokens": float(one.rank_of_tokens.mean()),
            "rank_of_layers": float(one.rank_of_layers.mean()),
        }
        for name, one in text.items()
    }
    return {"tasks": tasks, "learned": learned, "shapley": _taus(found)}


def sections(config: Asks, found: Found, text: Mapping[str, Learned]) -> list[Section]:
    """Choosing, compressing, valuing, and how much is learned."""
    made = [_choosing(config, found), _compressing(config, found)]
    if any(arrays.valued is not None for arrays in found.values()):
        made.append(_valuing(config, found))
    return [*made, _learning(config, found, text)]


def verdict(found: Found) -> str:
    """On how many tasks the choice by the update beats chance, and what does best."""
    margins = {task: over_random(arrays, "update") for task, arrays in found.items()}
    wins = [task for task, one in margins.items() if one.low > 0]
    losses = [task for task, one in margins.items() if one.high < 0]
    shown = "; ".join(f"{task} {one}" for task, one in margins.items())
    word = "does" if len(wins) >= 2 else "does not"
    means = {way: np.mean([over_random(one, way).value for one in found.values()]) for way in WAYS}
    best = max(RIVALS, key=lambda way: means[way])
    told = (
        f"Choosing nearest to the update {word} beat random choice on two tasks or more: the "
        f"interval of its margin (nats) lies above zero on {len(wins)} of {len(found)}"
        f"{', below on ' + str(len(losses)) if losses else ''} ({shown}). "
    )
    return told + (
        f"Over all tasks it is {number(float(means['update']))} better than random; the best rival "
        f"is {LABELS[best]} with {number(float(means[best]))}."
    )


def _choosing(config: Asks, found: Found) -> Section:
    rows = []
    for task, arrays in found.items():
        ends = (("no demonstrations", "none", arrays.none),
                (f"all {config.pool}", "full", arrays.full),
                ("random", "random", arrays.random))  # fmt: skip
        for label, end, values in ends:
            rows.append((task, label, float(values.mean()), f"{arrays.right[end].mean():.0%}", ""))
        for way in WAYS:
            rows.append(
                (task, LABELS[way], float(arrays.chosen[way].mean()),
                 f"{arrays.right[way].mean():.0%}", str(over_random(arrays, way)))
            )  # fmt: skip
    ways = ("update", "answer", "attention", "gradient")
    margins = [[over_random(arrays, way) for way in ways] for arrays in found.values()]
    figure = estimates(
        list(found),
        [LABELS[way] for way in ways],
        *np.moveaxis(np.array(margins), -1, 0),
        x_label="margin over random (nats), with 95% intervals over questions",
        roles=["main", "second", "second", "second"],
        references=[Reference(0.0, "random")],
    )
    text = (
        f"Of {config.pool} demonstrations {config.chosen} are kept, in their order, chosen for "
        f"each of {config.asked} questions anew; nobody sees the right answer. The update is that "
        "of the question's last token, every layer counting the same; its parts by demonstration "
        "are exact up to a norm's remainder, which is part of the whole. Margins are of the right "
        f"answer's log-probability over the mean of {config.draws} random choices, with 95% "
        "intervals over questions."
    )
    columns = ("task", "demonstrations", "log-probability", "right", "margin over random")
    return Section(
        f"Choosing {config.chosen} of {config.pool} demonstrations",
        text,
        figure=figure,
        tables=[Table(columns, rows, "Log-probability (nats) of the right answer's first token.")],
        verdict=verdict(found),
        anchor="choosing",
    )


def _compressing(config: Asks, found: Found) -> Section:
    names = {**{way: LABELS[way] for way in TOKEN_WAYS}, "random": "random tokens"}
    rows: list[tuple[Any, ...]] = []
    for task, arrays in found.items():
        for way, label in names.items():
            means = arrays.tokens[way].mean(axis=0)
            rows.append((task, label, *map(float, means)))
        rows.append((task, "all tokens", *(float(arrays.full.mean()),) * len(config.shares)))
    whole = [
        np.concatenate([arrays.tokens[way][:, 0] for arrays in found.values()]) for way in names
    ]
    by_name = dict(zip(names, whole, strict=True))
    mine = margin(by_name["size"], by_name["random"])
    best = max(TOKEN_WAYS[1:], key=lambda way: by_name[way].mean())
    other = margin(by_name[best], by_name["random"])
    verdict = (
        f"With {config.shares[0]:.0%} of the tokens, those with the {names['size']} are "
        f"{mine} nats better than random tokens; the best rival, {names[best]}, is {other} better."
    )
    columns = ("task", "tokens kept", *(f"{share:.0%}" for share in config.shares))
    text = (
        "Only a share of the demonstrations' tokens stays, each at its place (the BOS and the "
        "question always do). Columns: log-probability of the right answer."
    )
    return Section("Which tokens carry the update", text, tables=[Table(columns, rows)],
                   verdict=verdict, anchor="tokens")  # fmt: skip


def _taus(found: Found) -> dict[str, Any]:
    """Kendall's tau of each way's scores with the Shapley values, over prompts."""
    valued = [arrays.valued for arrays in found.values() if arrays.valued is not None]
    taus = {}
    for index, way in enumerate(SAID):
        pairs = [
            (said[index], value)
            for one in valued
            for said, value in zip(one.said, one.values, strict=True)
        ]
        if len(pairs) > 1:
            taus[way] = margin([float(kendall_tau(jnp.asarray(a), jnp.asarray(b)))
                                for a, b in pairs])  # fmt: skip
    return taus


def _valuing(config: Asks, found: Found) -> Section:
    taus = _taus(found)
    rows: list[tuple[str, ...]] = []
    for task, arrays in found.items():
        if arrays.valued is None:
            continue
        for prompt, (value_N, low_N, high_N) in enumerate(
            zip(arrays.valued.values, arrays.valued.low, arrays.valued.high, strict=True)
        ):
            cells = (
                str(Margin(*map(float, one))) for one in zip(value_N, low_N, high_N, strict=True)
            )
            rows.append((f"{task}, question {prompt + 1}", *cells))
    text = (
        f"The first {config.players} demonstrations alone, in {config.orders} drawn orders (each "
        "with its reverse): a demonstration's value is what it adds, on average over orders, to "
        "the log-probability of the model's own answer. Intervals are over orders."
    )
    verdict = "Too few prompts have Shapley values for an interval."
    if taus:
        rivals = [way for way in taus if way not in BY_UPDATE]
        best = max(rivals, key=lambda way: np.nan_to_num(taus[way].value, nan=-2.0))
        verdict = (
            f"Shares of the update rank demonstrations as Shapley values do with a Kendall's tau "
            f"of {taus['share']}; the best rival is {LABELS[best]} with {taus[best]}, chance 0."
        )
    tables = [Table(("prompt", *(f"demonstration {n + 1}" for n in range(config.players))), rows)]
    if taus:
        told = [(LABELS[way], str(tau)) for way, tau in taus.items()]
        tables.append(Table(("way", "Kendall's tau with the Shapley values"), told))
    return Section("What each demonstration is worth", text, tables=tables, verdict=verdict,
                   anchor="shapley")  # fmt: skip


def _learning(config: Asks, found: Found, text: Mapping[str, Learned]) -> Section:
    names = {"text": "running text", "shuffled": "its tokens shuffled"}
    roles: dict[str, Role] = {"text": "main", "shuffled": "control"}
    exponents = {name: margin(one.exponents.mean(axis=1)) for name, one in text.items()}
    lines = []
    for name, one in text.items():
        steps = np.arange(config.first, one.sizes.shape[-1] + 1)
        mean_SN = one.sizes.mean(axis=1)[:, config.first - 1 :]
        smooth = np.stack([_smooth(row) for row in mean_SN])
        keep = np.unique(np.geomspace(1, len(steps), 40).astype(int)) - 1
        lines.append(Curve(names[name], steps[keep], smooth.mean(axis=0)[keep], role=roles[name]))
    x, y = np.asarray(lines[0].x, np.float64), np.asarray(lines[0].y, np.float64)
    lines.append(Curve("1/i", x, y[0] * x[0] / x, role="reference"))
    panel = Panel("", lines, "tokens so far, i", "size of a step of the weights", log_x=True,
                  log_y=True)  # fmt: skip
    rows = [
        (names[name], str(exponents[name]), float(np.min(one.exponents)),
         float(np.max(one.exponents)), float(one.alike.mean()), float(one.rank_of_tokens.mean()),
         float(one.rank_of_layers.mean()))
        for name, one in text.items()
    ]  # fmt: skip
    mine = exponents["text"]
    word = "falls like 1/i" if mine.low <= -1 <= mine.high else "does not fall like 1/i"
    alike = float(np.mean([arrays.alike.mean() for arrays in found.values()]))
    groups = config.length // 8
    verdict = (
        f"The size of a step {word} on running text: its exponent is {mine} (mean over layers), "
        f"and with the same tokens shuffled, the nearest null, {exponents['shuffled']}."
    )
    columns = ("context", "exponent", "least of a layer", "most", "cosine of groups",
               "rank over groups", "rank over layers")  # fmt: skip
    words = (
        "The last token of a text stands after each of its prefixes, in one pass. A step is "
        "`|W_{i+1} - W_i|` of the input factor, in units of a kernel; the exponent is its slope on "
        f"logarithmic axes from step {config.first} on. Groups are of 8 tokens ({groups} of them): "
        "the mean cosine between what two of them add, and how many of them differ (effective "
        "rank); over layers, of what the whole text adds. Between two demonstrations of a task the "
        f"mean cosine is {number(alike)}."
    )
    return Section("How much one more token still teaches", words,
                   figure=curves([panel]), tables=[Table(columns, rows)], verdict=verdict,
                   anchor="learned")  # fmt: skip


def _smooth(sizes_N: np.ndarray) -> np.ndarray:
    """Means over a window that grows with i, so that a logarithmic axis shows no noise."""
    ends = np.arange(len(sizes_N))
    return np.array([sizes_N[max(0, end - end // 4) : end + end // 4 + 1].mean() for end in ends])
