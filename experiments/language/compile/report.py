"""The numbers of ``experiments.compile`` as a summary, and as a page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.language.compile.arrays import (
    Arrays,
    Closed,
    Compiled,
    Descended,
    Heard,
    Lora,
    Sides,
)
from experiments.tools.shares import Share, or_none, share_of_gap
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table, number

LABELS = {
    "nothing": "no context",
    "thought": "thought vector",
    "ridge": "compiled (closed form)",
    "lora": "LoRA by descent",
}


#: What the files of patches and weights are exact for, unlike those of ``experiments.checkpoint``.
EXACT = (
    "They stand for the context at every position and for every query, and are exact for none: a "
    "least-squares fit to the calibration queries. (The files of `experiments.checkpoint` are "
    "exact for one prompt, and there for the next token alone.)"
)


def lora_label(time: float) -> str:
    """LoRA by descent, at one time in seconds of the closed form."""
    return f"{LABELS['lora']}, {time:g} times the seconds"


def labels(sides: Sides) -> dict[str, str]:
    """Run -> what tables and verdicts call it."""
    if sides.lora is None:
        return dict(LABELS)
    same, more = lora_label(1), lora_label(sides.lora.times[-1])
    return {**LABELS, "lora_same": same, "lora_more": more}


def shares(sides: Sides) -> dict[str, Share]:
    """The share of the KL divergence from the full context that each run takes away."""
    nothing = np.zeros(len(sides.nothing.kl))
    return {
        name: share_of_gap(sides.nothing.kl, nothing, run.kl) for name, run in sides.runs.items()
    }


def summarise(about: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Per run: KL divergence, agreement, share of the gap, seconds."""
    kept = shares(arrays.sides)
    sides = arrays.sides
    runs = {
        name: {
            "kl": run.kl.mean(),
            "top1": run.top1.mean(),
            "share": kept[name].value,
            "share_interval": [kept[name].low, kept[name].high],
            **_cost(sides, run),
        }
        for name, run in sides.runs.items()
    }
    told = {
        **about,
        "context_tokens": arrays.context_tokens,
        "calibration_tokens": arrays.calibration_tokens,
        "runs": runs,
    }
    if sides.lora is not None:
        path = sides.lora.path
        told["lora"] = {
            "times": sides.lora.times.tolist(),
            **{name: getattr(path, name).tolist() for name in ("seconds", "steps", "held_out")},
            "kl": path.kl.mean(axis=-1).tolist(),
        }
    told_or_none: dict[str, Any] = or_none(told)
    return told_or_none


def _cost(sides: Sides, run: Heard) -> dict[str, Any]:
    """Seconds, bytes, and what was chosen on held-out queries."""
    if isinstance(run, Closed):
        chosen = {"rank": run.rank, "weight": run.weight} if isinstance(run, Compiled) else {}
        told = {"seconds": run.seconds, "memory": run.memory, "held_out": run.held_out}
        return {**told, **chosen}
    if isinstance(run, Descended) and sides.lora is not None:
        told = {"seconds": run.seconds, "memory": sides.lora.memory, "held_out": run.held_out}
        return {**told, "rate": run.rate, "steps": run.steps}
    return {}


def sections(about: Mapping[str, Any], arrays: Arrays) -> list[Section]:
    """What is kept, at which cost, and of what it was made."""
    return [_kept(about, arrays.sides), _paid(arrays.sides), _made(arrays)]


def verdict(sides: Sides) -> str:
    """What the compiled context keeps, beside the best rival."""
    kept = shares(sides)
    mine = kept["ridge"]
    rivals = {name: one for name, one in kept.items() if name not in ("ridge", "nothing")}
    best = max(rivals, key=lambda name: rivals[name].value)
    beaten = rivals[best].value < mine.value
    clear = mine.low > rivals[best].high or rivals[best].low > mine.high
    word = "more than" if beaten else "less than"
    told = "" if clear else ", though their intervals overlap"
    return (
        f"On held-out queries the compiled weights take away {mine} of the KL divergence between "
        f"no context and the full one: {word} the best rival, {labels(sides)[best]}, with "
        f"{rivals[best]}{told}."
    )


def _kept(about: Mapping[str, Any], sides: Sides) -> Section:
    kept, called = shares(sides), labels(sides)
    rows: list[tuple[Any, ...]] = []
    for name, run in sides.runs.items():
        cost = _cost(sides, run)
        rows.append(
            (
                called[name],
                "0" if run is sides.nothing else str(kept[name]),
                float(run.kl.mean()),
                f"{run.top1.mean():.0%}",
                *(cost[key].item() if key in cost else None for key in ("seconds", "steps")),
            )
        )
    rows.append(("full context", "1", 0.0, "100%", None, None))
    columns = ("run", "share of the gap", "KL (nats)", "same top-1", "seconds", "steps")
    chosen = sides.ridge
    caption = (
        f"{len(chosen.kl)} held-out queries; rank {chosen.rank}, ridge weight "
        f"{number(float(chosen.weight))}, chosen on others. Seconds are of the processor, without "
        "compilation; times the seconds: of the compiled one. LoRA's rate is the best of those "
        "tried, on the queries that chose the weight."
    )
    text = (
        "Every run answers the same queries without the context in front; the KL divergence is "
        "from the run that has it, per token. 0 is no context, 1 the full one."
    )
    if about["written"]:
        text += f" The weights are in `{about['written']}` ({about['export']}). {EXACT}"
    return Section(
        "What is kept of the context",
        text,
        tables=[Table(columns, rows, caption)],
        verdict=verdict(sides),
    )


def _paid(sides: Sides) -> Section:
    """Loss against seconds and memory: the closed forms as points, LoRA as a line."""
    points = {"ridge": sides.ridge, "thought": sides.thought}
    losses = {name: float(run.kl.mean()) for name, run in points.items()}
    null = float(sides.nothing.kl.mean())
    spent = [float(run.seconds) for run in points.values()]
    rows: list[tuple[Any, ...]] = [
        (LABELS[name], *_spent(run, run.memory), losses[name]) for name, run in points.items()
    ]
    roles: dict[str, Role] = {"ridge": "main", "thought": "second"}
    lines = [
        Curve(LABELS[name], [run.seconds], [losses[name]], role=roles[name])
        for name, run in points.items()
    ]
    verdict = (
        f"In {number(spent[0])} seconds and {number(_megabytes(sides.ridge.memory))} MB the closed "
        f"form has a KL divergence of {number(losses['ridge'])}; {LABELS['nothing']} "
        f"{number(null)}, the {LABELS['thought']} {number(losses['thought'])}."
    )
    if sides.lora is not None:
        lora = sides.lora
        for point, time in enumerate(lora.times):
            run = lora.at(point)
            rows.append((lora_label(time), *_spent(run, lora.memory), float(run.kl.mean())))
        spent += lora.path.seconds.tolist()
        lines.append(
            Curve(LABELS["lora"], lora.path.seconds, lora.path.kl.mean(axis=-1), role="second")
        )
        verdict += f" {_reached(lora, losses['ridge'])}"
    ends = [min(spent), max(spent)]
    lines.append(Curve(LABELS["nothing"], ends, [null, null], role="control"))
    rows.append((LABELS["nothing"], None, None, None, null))
    panel = Panel("", lines, "seconds", "KL on the queries asked (nats)", log_x=True)
    text = (
        "Seconds are of the processor, without compilation. Memory is what the compiler says that "
        "a program needs for itself, and what it is given, beside the model's weights: the states "
        "of all calibration queries, or adapters, Adam's state of them and the texts."
    )
    columns = ("run", "seconds", "memory (MB)", "KL, held out", "KL, asked")
    return Section("Loss against seconds and memory", text, figure=curves([panel]),
                   tables=[Table(columns, rows)], verdict=verdict)  # fmt: skip


def _spent(run: Closed | Descended, memory: np.ndarray) -> tuple[float, float, float]:
    return float(run.seconds), _megabytes(memory), float(run.held_out)


def _megabytes(memory: np.ndarray) -> float:
    return float(memory) / 1e6


def _reached(lora: Lora, mine: float) -> str:
    """When descent is as good as the closed form, on the queries asked."""
    losses = lora.path.kl.mean(axis=-1)
    best, as_good = int(np.argmin(losses)), np.flatnonzero(losses <= mine)
    when = (
        f"as good after {lora.times[as_good[0]]:g} times the seconds"
        if len(as_good)
        else f"not as good in {lora.times[-1]:g} times the seconds"
    )
    return (
        f"{LABELS['lora']}, with {number(_megabytes(lora.memory))} MB, is {when}; its best is "
        f"{number(float(losses[best]))}, after {lora.times[best]:g} times."
    )


def _made(arrays: Arrays) -> Section:
    tried = arrays.sides.tried
    rows = list(
        zip(tried.rank.tolist(), tried.weight.tolist(), tried.held_out.tolist(), strict=True)
    )
    tables = [
        Table(("rank", "ridge weight", "KL on held-out queries"), rows, "What was tried."),
        Table(("calibration queries",), [(repr(str(one)),) for one in arrays.examples]),
    ]
    text = (
        f"The context has {arrays.context_tokens} tokens, the calibration queries "
        f"{arrays.calibration_tokens}."
    )
    chosen, nothing = arrays.sides.ridge, arrays.sides.nothing
    mine, null = float(chosen.kl.mean()), float(nothing.kl.mean())
    ends = [(LABELS["ridge"], mine), (LABELS["nothing"], null)]
    tables.append(Table(("run", "KL on the queries asked"), ends))
    best, *others = sorted(tried.held_out.tolist())
    if others:
        verdict = (
            f"Rank {chosen.rank} and ridge weight {number(float(chosen.weight))} are the best of "
            f"{len(rows)} that were tried on held-out queries: a KL divergence of {number(best)} "
            f"beside {number(others[0])} of the next and {number(others[-1])} of the worst."
        )
    else:
        verdict = (
            f"Rank {chosen.rank} and ridge weight {number(float(chosen.weight))} were tried, no "
            f"others beside them: a KL divergence of {number(best)} on held-out queries."
        )
    verdict += (
        f" On the queries that are asked it has {number(mine)}, {LABELS['nothing']} {number(null)}."
    )
    return Section("What it was made of", text, tables=tables, verdict=verdict)
