"""The numbers of ``experiments.kept`` as a summary, and as a page."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments.tools.shares import Share, share_of_gap
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table

Found = Mapping[str, Mapping[str, Mapping[str, Any]]]

LABELS = {
    "thought": "thought vector",
    "input": "input side",
    "down": "down kernel",
    "at_once": "both, at once",
    "both": "both, in order",
    "full_rank": "both, full rank",
    "lora_same": "LoRA, same seconds",
    "lora_more": "LoRA, more seconds",
}
CLOSED = ("thought", "input", "down", "at_once", "both", "full_rank")


def share(runs: Mapping[str, Any], name: str) -> Share:
    """The share of the gap in log-probability."""
    ends = (runs["nothing"]["log_chance"], runs["context"]["log_chance"])
    alone_B, full_B, reached_B = (-np.asarray(one) for one in (*ends, runs[name]["log_chance"]))
    return share_of_gap(alone_B, full_B, reached_B)


def accuracy(runs: Mapping[str, Any], name: str) -> float:
    """The share of right answers."""
    return float(np.mean(runs[name]["right"]))


def best_rung(runs: Mapping[str, Any]) -> str:
    """The closed form of LoRA's rank or below that keeps most."""
    there = [name for name in CLOSED[:-1] if name in runs]
    return max(there, key=lambda name: share(runs, name).value)


def summarise(found: Found) -> dict[str, Any]:
    """``models.NAME.TASK.RUN``: share with interval, right answers, seconds."""
    models = {}
    for model, tasks in found.items():
        models[model] = {
            task: {
                "best": best_rung(told["runs"]),
                **{
                    name: {
                        "share": share(told["runs"], name),
                        "accuracy": accuracy(told["runs"], name),
                        "log_chance": float(np.mean(run["log_chance"])),
                        **{key: run[key] for key in ("seconds", "weight", "steps", "rate")
                           if key in run},
                    }
                    for name, run in told["runs"].items()
                },
            }
            for task, told in tasks.items()
        }  # fmt: skip
    return {"models": models}


def sections(found: Found, rank: int) -> list[Section]:
    """A section for each model, and what the model wrote for itself."""
    return [*(_model(name, tasks, rank) for name, tasks in found.items()), _written(found)]


def verdict(tasks: Mapping[str, Any]) -> str:
    """In how many tasks the best rung keeps at least what LoRA does, and where it does not."""
    told = []
    for name in ("lora_same", "lora_more"):
        wins: list[str] = []
        losses: list[str] = []
        for task, numbers in tasks.items():
            runs = numbers["runs"]
            rung = best_rung(runs)
            mine, rival = share(runs, rung), share(runs, name)
            side = wins if mine.value >= rival.value else losses
            side.append(f"{task} ({LABELS[rung]} {mine.value:.2f}, LoRA {rival.value:.2f})")
        words = f"at least as much as {LABELS[name]} on {len(wins)} of {len(tasks)} tasks"
        told.append(words + (f", less on {'; '.join(losses)}" if losses else ""))
    whole = [share(numbers["runs"], best_rung(numbers["runs"])).value for numbers in tasks.values()]
    kept = f"{min(whole):.2f} to {max(whole):.2f} of the gap in log-probability"
    return f"The best rung (of these questions) keeps {kept}; {'; '.join(told)}."


def _model(name: str, tasks: Mapping[str, Any], rank: int) -> Section:
    rows = []
    for task, numbers in tasks.items():
        runs = numbers["runs"]
        for run in (name for name in LABELS if name in runs):
            rows.append(
                (
                    task,
                    LABELS[run],
                    str(share(runs, run)),
                    f"{accuracy(runs, run):.0%}",
                    runs[run]["seconds"],
                    runs[run].get("steps"),
                )
            )
        for end, label in (("nothing", "no context"), ("context", "full context")):
            rows.append(
                (task, label, "0" if end == "nothing" else "1", f"{accuracy(runs, end):.0%}",
                 None, None)
            )  # fmt: skip
    columns = ("task", "run", "share of the gap", "right", "seconds", "steps")
    roles: dict[str, Role] = {"both": "main", "lora_more": "second", "lora_same": "reference",
                              "thought": "control"}  # fmt: skip
    lines = []
    first = next(iter(tasks.values()))["runs"]
    for run, role in roles.items():
        if run not in first:
            continue
        shares = [share(numbers["runs"], run) for numbers in tasks.values()]
        value, low, high = (
            np.array([getattr(one, end) for one in shares]) for end in Share._fields
        )
        places = np.arange(1, len(shares) + 1)
        lines.append(Curve(LABELS[run], places, value, low, high, role=role))
    panel = Panel("", lines, "task, in the order of the table", "share of the gap kept",
                  y_limits=(-1.0, 1.6))  # fmt: skip
    count = len(first["both"]["right"])
    text = (
        f"Updates of rank {rank}, except at full rank. Share of the gap: of the mean "
        f"log-probability of the right answer's first token, over {count} new questions, with 95% "
        "intervals over questions: 0 is no context, 1 the full one. Ridge weights and learning "
        "rates are chosen on held-out questions, seconds are of the processor, without compilation."
    )
    return Section(
        f"{name}: what is kept of each task",
        text,
        figure=curves([panel], band="95% interval over questions"),
        tables=[Table(columns, rows, "Each task compiled by itself.")],
        verdict=verdict(tasks),
    )


def _written(found: Found) -> Section:
    rows = [
        (model, task, repr(text))
        for model, tasks in found.items()
        for task, numbers in tasks.items()
        for text in numbers["written"][:2]
    ]
    text = "Both sides learn from the same texts: what the model wrote behind the context."
    verdict = "Both sides have the same texts, and the model wrote what is to be learnt itself."
    tables = [Table(("model", "task", "text"), rows)]
    return Section("Calibration texts", text, verdict=verdict, tables=tables)
