"""The numbers of ``experiments.kept`` as a summary, and as a page."""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from experiments.language.kept.arrays import Answered, Arrays, Descended, Found, Solved
from experiments.tools.shares import Share, share_of_gap
from icl_jax.report.figures import Reference, Role, estimates
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
NOTHING = "no context"
ANOTHER = "another task"
RIVALS = ("lora_same", "lora_more", "thought")
CLOSED = ("thought", "input", "down", "at_once", "both", "full_rank")


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


def _rungs(arrays: Arrays, but: str = "") -> list[str]:
    """The closed forms of LoRA's rank or below, one of them left out."""
    return [name for name in CLOSED[:-1] if name in arrays.rungs and name != but]


def best_rung(arrays: Arrays, but: str = "") -> str:
    """Which of them keeps most."""
    return max(_rungs(arrays, but), key=lambda name: share(arrays, arrays.rungs[name]).value)


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
    """In how many tasks the best rung keeps at least what a rival does, and where it does not."""
    told = []
    for name in RIVALS:
        if not all(name in one.sides and _rungs(one, name) for one in tasks.values()):
            continue  # A rung that was not asked for, or the only one.
        losses = []
        for task, arrays in tasks.items():
            best = best_rung(arrays, name)
            mine, rival = (share(arrays, arrays.sides[side]).value for side in (best, name))
            if mine < rival:
                losses.append(f"{task} ({LABELS[best]} {mine:.2f} against {rival:.2f})")
        wins = len(tasks) - len(losses)
        words = f"at least as much as {LABELS[name]} on {wins} of {len(tasks)} tasks"
        aside = "the best of the others " if name in CLOSED else ""
        told.append(aside + words + (f", less on {'; '.join(losses)}" if losses else ""))
    values = [share(one, one.rungs[best_rung(one)]).value for one in tasks.values()]
    return (
        f"The best rung (of these questions) keeps {min(values):.2f} to {max(values):.2f} of the "
        f"gap in log-probability ({NOTHING}, the null: 0); {'; '.join(told)}."
    )


def _model(config: Asks, name: str, tasks: Mapping[str, Arrays]) -> Section:
    rows: list[tuple[Any, ...]] = []
    for task, arrays in tasks.items():
        for side, run in arrays.sides.items():
            steps = int(run.steps) if isinstance(run, Descended) else None
            kept = str(share(arrays, run))
            rows.append((task, LABELS[side], kept, _right(run), float(run.seconds), steps))
        rows.append((task, NOTHING, "0", _right(arrays.nothing), None, None))
        rows.append((task, "full context", "1", _right(arrays.context), None, None))
    columns = ("task", "run", "share of the gap", "right", "seconds", "steps")
    roles: dict[str, Role] = {"both": "main", "lora_more": "second", "lora_same": "second",
                              "thought": "control"}  # fmt: skip
    shown = [side for side in roles if side in config.rungs or side.startswith("lora")]
    shares = [[share(one, one.sides[side]) for side in shown] for one in tasks.values()]
    figure = estimates(
        list(tasks),
        [LABELS[side] for side in shown],
        *np.moveaxis(np.array(shares), -1, 0),
        x_label="share of the gap kept, with 95% intervals over questions",
        roles=[roles[side] for side in shown],
        references=[Reference(0.0, NOTHING), Reference(1.0, "full context")],
        limits=(-1.0, 1.6),
    )
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
        figure=figure,
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
    counts, same, foreign = [], 0, 0
    for model, tasks in found.items():
        for task, arrays in tasks.items():
            mine = [str(text) for text in arrays.written]
            others = {str(x) for name, one in tasks.items() if name != task for x in one.written}
            repeated, theirs = len(mine) - len(set(mine)), sum(text in others for text in mine)
            counts.append((model, task, len(mine), repeated, theirs))
            same, foreign = same + repeated, foreign + theirs
    number_of = sum(count for _, _, count, *_ in counts)
    text = "Both sides learn from the same texts: what the model wrote behind the context."
    verdict = (
        f"The ladder and LoRA have the same {number_of} texts, which the model wrote itself: "
        f"{same} are said again in the same task; {ANOTHER}, the null, says {foreign} of them."
    )
    tables = [
        Table(("model", "task", "texts", "said again", f"said by {ANOTHER}"), counts),
        Table(("model", "task", "text"), rows),
    ]
    return Section("Calibration texts", text, verdict=verdict, tables=tables)
