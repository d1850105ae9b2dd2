"""The numbers of ``experiments.compile`` as a summary, and as a page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.tools.shares import Share, share_of_gap
from icl_jax.report.page import Section, Table, number

#: What the summary says of a run beside what it keeps.
KEPT = ("seconds", "rank", "weight", "rate", "steps")

LABELS = {
    "nothing": "no context",
    "thought": "thought vector",
    "ridge": "compiled (closed form)",
    "lora_same": "LoRA by descent, the same seconds",
    "lora_more": "LoRA by descent, more seconds",
}


def told_runs(numbers: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every run of the table; of the descents the one whose rate is best on held-out queries."""
    runs = dict(numbers["runs"])
    rows = numbers["lora"]
    if rows:
        for name, part in (("lora_same", rows[0::2]), ("lora_more", rows[1::2])):
            runs[name] = min(part, key=lambda row: row["held_out"])
    return runs


def shares(numbers: Mapping[str, Any]) -> dict[str, Share]:
    """The share of the KL divergence from the full context that each run takes away."""
    runs = told_runs(numbers)
    alone = runs["nothing"]["kl"]
    nothing = np.zeros(len(alone))
    return {name: share_of_gap(alone, nothing, run["kl"]) for name, run in runs.items()}


def summarise(about: Mapping[str, Any], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Per run: KL divergence, agreement, share of the gap, seconds."""
    kept = shares(numbers)
    runs = {
        name: {
            "kl": float(np.mean(run["kl"])),
            "top1": float(np.mean(run["top1"])),
            "share": kept[name].value,
            "share_interval": [kept[name].low, kept[name].high],
            **{
                key: run[key]
                for key in ("seconds", "rank", "weight", "rate", "steps")
                if key in run
            },
        }
        for name, run in told_runs(numbers).items()
    }
    return {
        **about,
        "written": numbers.get("written"),
        "context_tokens": numbers["context_tokens"],
        "calibration_tokens": numbers["calibration_tokens"],
        "runs": runs,
    }


def sections(about: Mapping[str, Any], numbers: Mapping[str, Any]) -> list[Section]:
    """What is kept, and of what it was made."""
    return [_kept(about, numbers), _made(numbers)]


def verdict(numbers: Mapping[str, Any]) -> str:
    """What the compiled context keeps, beside the best rival."""
    kept = shares(numbers)
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


def _kept(about: Mapping[str, Any], numbers: Mapping[str, Any]) -> Section:
    kept = shares(numbers)
    rows = [
        (
            LABELS[name],
            str(kept[name]) if name != "nothing" else "0",
            float(np.mean(run["kl"])),
            f"{np.mean(run['top1']):.0%}",
            run.get("seconds"),
            run.get("steps"),
        )
        for name, run in told_runs(numbers).items()
    ]
    rows.append(("full context", "1", 0.0, "100%", None, None))
    columns = ("run", "share of the gap", "KL (nats)", "same top-1", "seconds", "steps")
    chosen = numbers["runs"]["ridge"]
    caption = (
        f"{len(chosen['kl'])} held-out queries; rank {chosen['rank']}, ridge weight "
        f"{number(chosen['weight'])}, chosen on others. Seconds are of the processor, without "
        "compilation. LoRA's rate is the best of those tried, on the queries that chose the weight."
    )
    text = (
        "Every run answers the same queries without the context in front; the KL divergence is "
        "from the run that has it, per token. 0 is no context, 1 the full one."
    )
    if numbers.get("written"):
        text += f" The weights are in `{numbers['written']}` ({about['export']})."
    return Section(
        "What is kept of the context",
        text,
        tables=[Table(columns, rows, caption)],
        verdict=verdict(numbers),
    )


def _made(numbers: Mapping[str, Any]) -> Section:
    tried = [(row["rank"], row["weight"], row["held_out"]) for row in numbers["tried"]]
    tables = [
        Table(("rank", "ridge weight", "KL on held-out queries"), tried, "What was tried."),
        Table(("calibration queries",), [(repr(one),) for one in numbers["examples"]]),
    ]
    text = (
        f"The context has {numbers['context_tokens']} tokens, the calibration queries "
        f"{numbers['calibration_tokens']}."
    )
    best = min(numbers["tried"], key=lambda row: row["held_out"])
    verdict = (
        f"Rank {best['rank']} and ridge weight {number(best['weight'])} are the best of "
        f"{len(tried)} that were tried on held-out queries."
    )
    return Section("What it was made of", text, tables=tables, verdict=verdict)
