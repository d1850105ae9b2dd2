"""The numbers of ``experiments.kept`` as a summary, and as a page."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from experiments.language.kept.arrays import Answered, Arrays, Descended, Found, Said, Solved
from experiments.tools.shares import Share, or_none, share_of_gap, to_choose_by
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
FULL = "full context"
ANOTHER = "another task"
NO_GAP = "no gap"
RIVALS = ("lora_same", "lora_more", "thought")
CLOSED = ("thought", "input", "down", "at_once", "both", "full_rank")
#: Questions: new ones, and those that the updates are fitted on.
Part = Literal["new", "fitted"]
PARTS: tuple[Part, Part] = ("new", "fitted")


class Asks(Protocol):
    """What the report has to know of the configuration."""

    @property
    def rank(self) -> int: ...
    @property
    def rungs(self) -> tuple[str, ...]: ...


def share(arrays: Arrays, run: Said, part: Part = "new") -> Share:
    """The share of the gap in log-probability that a run keeps."""
    alone_B, full_B, reached_B = (-one.log_chance for one in _answers(arrays, run, part))
    return share_of_gap(alone_B, full_B, reached_B)


def right_share(arrays: Arrays, run: Said, part: Part = "new") -> Share | None:
    """The share of the gap in right answers; None where the context gives no more of them."""
    alone_B, full_B, reached_B = (~one.right for one in _answers(arrays, run, part))
    if alone_B.mean() <= full_B.mean():
        return None
    return share_of_gap(alone_B, full_B, reached_B)


def _answers(arrays: Arrays, run: Said, part: Part) -> list[Answered]:
    """Without the context, with it, and the run's."""
    return [getattr(one, part) for one in (arrays.nothing, arrays.context, run)]


def _rungs(arrays: Arrays, but: str = "") -> list[str]:
    """The closed forms of LoRA's rank or below, one of them left out."""
    return [name for name in CLOSED[:-1] if name in arrays.rungs and name != but]


def best_rung(arrays: Arrays, but: str = "") -> str:
    """Which of them is best on the held-out questions, as LoRA's rate is chosen."""
    return min(_rungs(arrays, but), key=lambda name: to_choose_by(arrays.rungs[name].held_out))


def summarise(found: Found) -> dict[str, Any]:
    """``models.NAME.TASK.RUN``: shares with intervals, right answers, seconds."""
    models = {
        model: {
            task: {
                "best": best_rung(arrays),
                "lost": {name: one._asdict() for name, one in lost(arrays).items()},
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
    found_or_none: dict[str, Any] = or_none({"models": models})
    return found_or_none


def _told(arrays: Arrays, run: Said) -> dict[str, Any]:
    new, fitted = (
        {
            "share": share(arrays, run, part),
            "right_share": right_share(arrays, run, part),
            "accuracy": getattr(run, part).right.mean(),
            "log_chance": getattr(run, part).log_chance.mean(),
        }
        for part in PARTS
    )
    return {**new, "fitted": fitted}


def _cost(run: Solved | Descended) -> dict[str, Any]:
    cost = {"seconds": run.seconds, "held_out": run.held_out}
    if isinstance(run, Solved):
        return {**cost, "weight": run.weight}
    return {**cost, "steps": run.steps, "rate": run.rate}


def sections(config: Asks, found: Found) -> list[Section]:
    """A section for each model, and what the model wrote for itself."""
    return [*(_model(config, name, tasks) for name, tasks in found.items()), _written(found)]


class Lost(NamedTuple):
    """A rival keeps more of a task than the best rung.

    Attributes:
      best: the rung.
      new, fitted: shares of the best rung and of the rival, on either kind of questions.
    """

    best: str
    new: tuple[float, float]
    fitted: tuple[float, float]

    @property
    def where(self) -> str:
        """In generalising, where the rung keeps as much of what was fitted; else in capacity."""
        return "generalising" if self.fitted[0] >= self.fitted[1] else "capacity"

    def __str__(self) -> str:
        new, fitted = (f"{mine:.2f} against {rival:.2f}" for mine, rival in (self.new, self.fitted))
        return f"{LABELS[self.best]} {new}, of fitted questions {fitted}: lost in {self.where}"


def lost(arrays: Arrays) -> dict[str, Lost]:
    """The rivals that keep more of a task than the best of the other rungs."""
    found = {}
    for name in RIVALS:
        if name not in arrays.sides or not _rungs(arrays, name):
            continue  # A rung that was not asked for, or the only one.
        best = best_rung(arrays, name)
        mine, rival = (
            [share(arrays, arrays.sides[side], part).value for part in PARTS]
            for side in (best, name)
        )
        if not mine[0] >= rival[0]:  # What is not a number keeps nothing.
            found[name] = Lost(best, *zip(mine, rival, strict=True))
    return found


def verdict(tasks: Mapping[str, Arrays]) -> str:
    """In how many tasks the best rung keeps at least what a rival does; where it does not, why."""
    losses = {task: lost(arrays) for task, arrays in tasks.items()}
    told = []
    for name in RIVALS:
        if not all(name in one.sides and _rungs(one, name) for one in tasks.values()):
            continue
        less = [f"{task} ({one[name]})" for task, one in losses.items() if name in one]
        right = sum(
            one.rungs[best_rung(one, name)].new.right.sum() >= one.sides[name].new.right.sum()
            for one in tasks.values()
        )
        aside = "the best of the others " if name in CLOSED else ""
        told.append(
            f"{aside}at least as much as {LABELS[name]} on {len(tasks) - len(less)} of "
            f"{len(tasks)} tasks (as many right answers on {right})"
            + (f", less on {', '.join(less)}" if less else "")
        )
    best = {task: one.rungs[best_rung(one)] for task, one in tasks.items()}
    values = [share(one, best[task]).value for task, one in tasks.items()]
    rights = {task: right_share(one, best[task]) for task, one in tasks.items()}
    there = [one.value for one in rights.values() if one is not None]
    no_gap = [task for task, one in rights.items() if one is None]
    of_right = f" and {_range(there)} of that in right answers" if there else ""
    if no_gap:
        of_right += f" (no gap in right answers on {', '.join(no_gap)})"
    return (
        f"The rung that is best on held-out questions keeps {_range(values)} of the gap in "
        f"log-probability{of_right} ({NOTHING}, the null: 0); {'; '.join(told)}."
    )


def _range(values: Sequence[float]) -> str:
    return f"{min(values):.2f} to {max(values):.2f}"


def _model(config: Asks, name: str, tasks: Mapping[str, Arrays]) -> Section:
    rows: list[tuple[Any, ...]] = []
    whys: list[tuple[Any, ...]] = []
    for task, arrays in tasks.items():
        for side, run in arrays.sides.items():
            steps = int(run.steps) if isinstance(run, Descended) else None
            kept, right = (_said(one(arrays, run)) for one in (share, right_share))
            label, seconds = LABELS[side], float(run.seconds)
            rows.append((task, label, kept, right, _right(run.new), seconds, steps))
            new, fitted = (f"{share(arrays, run, part).value:.2f}" for part in PARTS)
            whys.append((task, label, float(run.held_out), fitted, new, _right(run.fitted)))
        for label, end, value in ((NOTHING, arrays.nothing, "0"), (FULL, arrays.context, "1")):
            right = NO_GAP if right_share(arrays, end) is None else value
            rows.append((task, label, value, right, _right(end.new), None, None))
            whys.append((task, label, None, value, value, _right(end.fitted)))
    columns = ("task", "run", "share of the gap", "of right answers", "right", "seconds", "steps")
    why = ("task", "run", "held-out loss", "share, fitted", "share, new", "right, fitted")
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
        references=[Reference(0.0, NOTHING), Reference(1.0, FULL)],
        limits=(-1.0, 1.6),
    )
    first = next(iter(tasks.values())).nothing
    text = (
        f"Updates of rank {config.rank}, except at full rank. Share of the gap: of the mean "
        "log-probability of the right answer's first token, and of the number of right answers, "
        f"over {len(first.new.right)} new questions, with 95% intervals over questions: 0 is "
        f"{NOTHING}, 1 the {FULL}. Ridge weights, learning rates and the best rung are chosen on "
        "held-out questions, seconds are of the processor, without compilation."
    )
    fitted = (
        f"The same on the {len(first.fitted.right)} questions that are fitted. A task is lost in "
        "generalising where the best rung keeps as much of these as its rival and less of the new "
        "ones, in capacity where it keeps less of either. Held-out loss: nats."
    )
    return Section(
        f"{name}: what is kept of each task",
        text,
        figure=figure,
        tables=[Table(columns, rows, "Each task compiled by itself."), Table(why, whys, fitted)],
        verdict=verdict(tasks),
    )


def _said(one: Share | None) -> str:
    return NO_GAP if one is None else str(one)


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
