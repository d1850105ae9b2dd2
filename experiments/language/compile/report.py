"""The numbers of ``experiments.compile`` as a summary, and as a page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.language.compile.arrays import (
    Arrays,
    Compiled,
    Descended,
    Heard,
    Sides,
    Thought,
)
from experiments.tools.shares import Share, share_of_gap
from icl_jax.report.page import Section, Table, number

LABELS = {
    "nothing": "no context",
    "thought": "thought vector",
    "ridge": "compiled (closed form)",
    "lora_same": "LoRA by descent, the same seconds",
    "lora_more": "LoRA by descent, more seconds",
}


#: What the files of patches and weights are exact for, unlike those of ``experiments.checkpoint``.
EXACT = (
    "They stand for the context at every position and for every query, and are exact for none: a "
    "least-squares fit to the calibration queries. (The files of `experiments.checkpoint` are "
    "exact for one prompt, and there for the next token alone.)"
)


def shares(sides: Sides) -> dict[str, Share]:
    """The share of the KL divergence from the full context that each run takes away."""
    nothing = np.zeros(len(sides.nothing.kl))
    return {
        name: share_of_gap(sides.nothing.kl, nothing, run.kl) for name, run in sides.runs.items()
    }


def summarise(about: Mapping[str, Any], arrays: Arrays) -> dict[str, Any]:
    """Per run: KL divergence, agreement, share of the gap, seconds."""
    kept = shares(arrays.sides)
    runs = {
        name: {
            "kl": run.kl.mean(),
            "top1": run.top1.mean(),
            "share": kept[name].value,
            "share_interval": [kept[name].low, kept[name].high],
            **_cost(run),
        }
        for name, run in arrays.sides.runs.items()
    }
    return {
        **about,
        "context_tokens": arrays.context_tokens,
        "calibration_tokens": arrays.calibration_tokens,
        "runs": runs,
    }


def _cost(run: Heard) -> dict[str, Any]:
    """Seconds, and what was chosen on held-out queries."""
    if isinstance(run, Thought):
        return {"seconds": run.seconds}
    if isinstance(run, Compiled):
        return {"seconds": run.seconds, "rank": run.rank, "weight": run.weight}
    if isinstance(run, Descended):
        return {"seconds": run.seconds, "rate": run.rate, "steps": run.steps}
    return {}


def sections(about: Mapping[str, Any], arrays: Arrays) -> list[Section]:
    """What is kept, and of what it was made."""
    return [_kept(about, arrays.sides), _made(arrays)]


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
        f"no context and the full one: {word} the best rival, {LABELS[best]}, with "
        f"{rivals[best]}{told}."
    )


def _kept(about: Mapping[str, Any], sides: Sides) -> Section:
    kept = shares(sides)
    rows: list[tuple[Any, ...]] = []
    for name, run in sides.runs.items():
        cost = _cost(run)
        rows.append(
            (
                LABELS[name],
                "0" if run is sides.nothing else str(kept[name]),
                float(run.kl.mean()),
                f"{run.top1.mean():.0%}",
                *(None if key not in cost else cost[key].item() for key in ("seconds", "steps")),
            )
        )
    rows.append(("full context", "1", 0.0, "100%", None, None))
    columns = ("run", "share of the gap", "KL (nats)", "same top-1", "seconds", "steps")
    chosen = sides.ridge
    caption = (
        f"{len(chosen.kl)} held-out queries; rank {chosen.rank}, ridge weight "
        f"{number(float(chosen.weight))}, chosen on others. Seconds are of the processor, without "
        "compilation. LoRA's rate is the best of those tried, on the queries that chose the weight."
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
