"""The numbers of ``experiments.kept`` as a summary, and as a page."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from experiments.language.kept.arrays import Answered, Arrays, Descended, Found, Solved
from experiments.tools.shares import Share, share_of_gap
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table

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


class Asks(Protocol):
    """What the report has to know of the configuration."""

    @property
    def rank(self) -> int: ...
    @property
    def rungs(self) -> tuple[str, ...]: ...


def share(arrays: Arrays, run: Answered) -> Share:
    """The share of the gap in log-probability that a run keeps."""
    alone_B, full_B, reached_B = (-one.log_chance for one in (arrays.nothing, arrays.context, run))
    return share_of_gap(alone_B, full_B, reached_B)


def best_rung(arrays: Arrays) -> str:
    """The closed form of LoRA's rank or below that keeps most."""
    there = [name for name in arrays.rungs if name != "full_rank"]
    return max(there, key=lambda name: share(arrays, arrays.rungs[name]).value)


def summarise(found: Found) -> dict[str, Any]:
    """``models.NAME.TASK.RUN``: share with interval, right answers, seconds."""
    models = {
        model: {
            task: {
                "best": best_rung(arrays),
                "nothing": _told(arrays, arrays.nothing),
                "context": _told(arrays, arrays.context),
                **{
                    name: {**_told(arrays, run), **_cost(run)} for name, run in arrays.sides.items()
                },
            }
            for task, arrays in tasks.items()
        }
        for model, tasks in found.items()
    }
    return {"models": models}


def _told(arrays: Arrays, run: Answered) -> dict[str, Any]:
    return {
        "share": share(arrays, run),
        "accuracy": run.right.mean(),
        "log_chance": run.log_chance.mean(),
    }


def _cost(run: Solved | Descended) -> dict[str, Any]:
    if isinstance(run, Solved):
        return {"seconds": run.seconds, "weight": run.weight}
    return {"seconds": run.seconds, "steps": run.steps, "rate": run.rate}


def sections(config: Asks, found: Found) -> list[Section]:
    """A section for each model, and what the model wrote for itself."""
    return [*(_model(config, name, tasks) for name, tasks in found.items()), _written(found)]


def verdict(tasks: Mapping[str, Arrays]) -> str:
    """In how many tasks the best rung keeps at least what LoRA does, and where it does not."""
    best = {task: best_rung(arrays) for task, arrays in tasks.items()}
    mine = {task: share(arrays, arrays.rungs[best[task]]).value for task, arrays in tasks.items()}
    told = []
    for name in ("lora_same", "lora_more"):
        losses = []
        for task, arrays in tasks.items():
            rival = share(arrays, arrays.lora[name]).value
            if mine[task] < rival:
                losses.append(f"{task} ({LABELS[best[task]]} {mine[task]:.2f}, LoRA {rival:.2f})")
        wins = len(tasks) - len(losses)
        words = f"at least as much as {LABELS[name]} on {wins} of {len(tasks)} tasks"
        told.append(words + (f", less on {'; '.join(losses)}" if losses else ""))
    kept = f"{min(mine.values()):.2f} to {max(mine.values()):.2f} of the gap in log-probability"
    return f"The best rung (of these questions) keeps {kept}; {'; '.join(told)}."


def _model(config: Asks, name: str, tasks: Mapping[str, Arrays]) -> Section:
    rows: list[tuple[Any, ...]] = []
    for task, arrays in tasks.items():
        for side, run in arrays.sides.items():
            steps = int(run.steps) if isinstance(run, Descended) else None
            kept = str(share(arrays, run))
            rows.append((task, LABELS[side], kept, _right(run), float(run.seconds), steps))
        rows.append((task, "no context", "0", _right(arrays.nothing), None, None))
        rows.append((task, "full context", "1", _right(arrays.context), None, None))
    columns = ("task", "run", "share of the gap", "right", "seconds", "steps")
    roles: dict[str, Role] = {"both": "main", "lora_more": "second", "lora_same": "reference",
                              "thought": "control"}  # fmt: skip
    lines = []
    if "thought" not in config.rungs:
        del roles["thought"]
    for side, role in roles.items():
        shares = [share(arrays, arrays.sides[side]) for arrays in tasks.values()]
        value, low, high = np.array(shares).T
        places = np.arange(1, len(shares) + 1)
        lines.append(Curve(LABELS[side], places, value, low, high, role=role))
    panel = Panel("", lines, "task, in the order of the table", "share of the gap kept",
                  y_limits=(-1.0, 1.6))  # fmt: skip
    count = len(next(iter(tasks.values())).nothing.right)
    text = (
        f"Updates of rank {config.rank}, except at full rank. Share of the gap: of the mean "
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


def _right(run: Answered) -> str:
    return f"{run.right.mean():.0%}"


def _written(found: Found) -> Section:
    rows = [
        (model, task, repr(str(text)))
        for model, tasks in found.items()
        for task, arrays in tasks.items()
        for text in arrays.written[:2]
    ]
    texts = [
        str(text) for tasks in found.values() for one in tasks.values() for text in one.written
    ]
    text = "Both sides learn from the same texts: what the model wrote behind the context."
    verdict = (
        f"Both sides have the same {len(texts)} texts, of which {len(set(texts))} are different "
        "ones, and the model wrote what is to be learnt itself."
    )
    tables = [Table(("model", "task", "text"), rows)]
    return Section("Calibration texts", text, verdict=verdict, tables=tables)
