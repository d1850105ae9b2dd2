"""How much of an in-context task does a real model keep as weights, and would descent keep more?

Seven tasks (translation, antonyms, capitals, sentiment, past tense, languages, currencies), all
asked in the same words, so that only the examples in the context say what is asked for; and three
with a context of their own: an instruction, a list of who likes what, a page of text, of which
the same facts are asked in other words. Each context is compiled in closed form from what the model
itself answers to some questions behind it; then new questions are asked without it. The ladder
(thought vector; input side, down kernel, both; at once, in order; low rank, full rank) beside LoRA
trained by Adam on the same texts at the same rank, in the same seconds and in ten times as many:
the share of the gap in log-probability of the right answer between no context and the full one, and
of that in right answers. Weights, rates and the best rung are chosen on held-out questions. The
questions that are fitted are asked again, too: what is lost there was too much for the update.

    python -m experiments.real_models --workdir=runs/models
    python -m experiments.kept --models=runs/models --workdir=runs/kept

Hours on 2 cores (``--quick``: some minutes). A killed run goes on behind the last task, and more
tasks can be asked for later. The whole has not been run yet, so what to expect of it is not known.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.language.compile.sides import choose, descend_for
from experiments.language.kept.arrays import Arrays, Descended, Said, Solved
from experiments.language.kept.report import sections, summarise
from experiments.language.kept.sides import Sizes, answer, material
from experiments.language.kept.tasks import TASKS
from experiments.language.real_models import SOURCES, real_model
from experiments.tools.conduct import Outcome, each, finish, measured, start
from experiments.tools.flags import launch, option
from experiments.tools.machine import forget_programs
from experiments.tools.shares import to_choose_by
from icl_jax import checks
from icl_jax.interop.huggingface import Checkpoint, load
from icl_jax.interop.tokenizer import Tokenizer, load_tokenizer
from icl_jax.patches.fit import Fit

#: What stands in front of every text: the token that begins one, or between two in training.
BOS = {"smollm2": 0, "gemma3-270m": 2}


@dataclass(frozen=True)
class Config:
    """Which models and tasks, and how much of everything."""

    models: str = option("", "folder of experiments.real_models; made in the workdir if left out")
    names: tuple[str, ...] = option(tuple(SOURCES), "of the models")
    tasks: tuple[str, ...] = option(tuple(TASKS), "to compile")
    shown: int = option(6, "examples in the context, where it is made of them")
    calibration: int = option(16, "questions that are fitted")
    held_out: int = option(6, "questions on which weight, rate and the best rung are chosen")
    asked: int = option(16, "new questions")
    written: int = option(4, "tokens that the model writes behind a calibration question")
    rungs: tuple[str, ...] = option(
        ("thought", "input", "down", "at_once", "both", "full_rank"),
        "of the ladder; both is needed",
    )
    rank: int = option(16, "of the updates, and of LoRA")
    weights: tuple[float, ...] = option((0.01, 0.1, 1.0), "of the ridge, to choose from")
    rates: tuple[float, ...] = option((1e-3, 3e-3, 1e-2), "of LoRA's Adam, to choose from")
    more_seconds: float = option(10.0, "LoRA also gets so many times the seconds")
    seed: int = option(0, "of the draws")

    def __post_init__(self) -> None:
        for name in self.names:
            checks.one_of("kept", "names", name, tuple(SOURCES))
        for task in self.tasks:
            checks.one_of("kept", "tasks", task, tuple(TASKS))
        for rung in self.rungs:
            checks.one_of("kept", "rungs", rung, tuple(rungs(1)))
        if "both" not in self.rungs:
            raise ValueError("kept: rungs must have 'both', whose seconds LoRA is given.")
        for name in ("shown", "calibration", "held_out", "written", "rank"):
            checks.positive_int("kept", name, getattr(self, name))
        checks.at_least_two("kept", "asked", self.asked, "one question has no interval")
        needed = self.calibration + self.held_out + self.asked
        for task in self.tasks:
            _, pairs = TASKS[task].behind(self.shown)
            if needed > len(pairs):
                raise ValueError(
                    f"kept: calibration, held_out and asked are {needed} pairs together, and "
                    f"{task} has {len(pairs)} that are not shown. Ask for fewer."
                )
        for name in ("weights", "rates"):
            for value in getattr(self, name):
                checks.positive("kept", name, value)
        if self.more_seconds < 1:
            raise ValueError(f"kept: more_seconds must be at least 1, got {self.more_seconds}.")

    @classmethod
    def quick(cls) -> "Config":
        """One model, two tasks, one weight and rate."""
        return cls(
            names=("smollm2",),
            tasks=("translation", "past tense"),
            rungs=("thought", "both"),
            weights=(0.1,),
            rates=(3e-3,),
            more_seconds=2.0,
        )

    @property
    def sizes(self) -> Sizes:
        """How pairs are used."""
        return Sizes(self.shown, self.calibration, self.held_out, self.asked, self.written)


def rungs(rank: int) -> dict[str, Fit]:
    """The ladder, by the names of the report."""
    return {
        "thought": Fit("thought"),
        "input": Fit(side="input", rank=rank),
        "down": Fit(side="down", rank=rank),
        "at_once": Fit(rank=rank, order="at_once"),
        "both": Fit(rank=rank),
        "full_rank": Fit(),
    }


def measure(
    config: Config, checkpoint: Checkpoint, tokenizer: Tokenizer, name: str, task: str
) -> Arrays:
    """One task in one model: every side's answers."""
    made = material(checkpoint, tokenizer, TASKS[task], config.sizes, BOS[name], config.seed)
    lessons = made.lessons

    def said(**run: Any) -> Said:
        return Said(*(answer(checkpoint, lessons, one, **run) for one in (made.asked, made.fitted)))

    def loss(**run: Any) -> float:
        return -float(answer(checkpoint, lessons, made.held_out, **run).log_chance.mean())

    ladder = {}
    for rung, fit in rungs(config.rank).items():
        if rung not in config.rungs:
            continue
        weights = (1.0,) if rung == "thought" else config.weights
        best, tried = choose(
            checkpoint, lessons, [fit], weights, lambda patches: loss(patches=patches)
        )
        ladder[rung] = Solved(
            **vars(said(patches=best.patches)),
            seconds=np.array(best.seconds),
            held_out=np.array(min((one for *_, one in tried), key=to_choose_by)),
            weight=np.array(best.weight),
        )

    seconds = float(ladder["both"].seconds)
    budgets = [seconds, seconds * config.more_seconds]
    same: list[Descended] = []
    more: list[Descended] = []
    for rate in config.rates:
        descended = descend_for(
            checkpoint,
            lessons,
            config.rank,
            rate,
            budgets,
            jax.random.key(config.seed),
            lambda params: loss(params=params),
        )
        at_each = zip((same, more), descended.at, descended.path, strict=True)
        for found_at, params, point in at_each:
            found_at.append(
                Descended(
                    **vars(said(params=params)),
                    seconds=np.array(point.seconds),
                    held_out=np.array(point.held_out),
                    steps=np.array(point.steps),
                    rate=np.array(rate),
                )
            )

    def best_rate(descents: list[Descended]) -> Descended:
        return min(descents, key=lambda one: to_choose_by(one.held_out))

    return Arrays(
        nothing=said(),
        context=said(in_context=True),
        rungs=ladder,
        lora_same=best_rate(same),
        lora_more=best_rate(more),
        written=np.array([tokenizer.decode(one) for one in lessons.texts[:4]]),
    )


def run(config: Config, workdir: Path) -> Outcome:
    """Measures every task in every model, each saved as soon as it is there, and reports."""
    # More tasks may be asked for later; those that are there stay.
    records = start(workdir, "kept", config, free=("tasks",))
    models = Path(config.models) if config.models else workdir / "models"
    found: dict[str, dict[str, Arrays]] = {name: {} for name in config.names}
    for name in config.names:
        made = functools.cache(functools.partial(_model, name, models))
        for task in each(list(config.tasks), name):
            file = f"{name}/{task.replace(' ', '_')}.npz"
            measuring = functools.partial(_task, config, made, name, task)
            names = {"rungs": config.rungs}
            found[name][task] = measured(records, Arrays, measuring, names=names, file=file)
            forget_programs()
    outcome = Outcome(summarise(found), sections(config, found))
    return finish(records, "In-context tasks, kept as weights", __doc__, outcome)


def _model(name: str, models: Path) -> tuple[Checkpoint, Tokenizer]:
    folder = real_model(name, models)
    return load(folder, dtype=jnp.float32), load_tokenizer(folder)


def _task(
    config: Config, model: Callable[[], tuple[Checkpoint, Tokenizer]], name: str, task: str
) -> Arrays:
    return measure(config, *model(), name, task)


if __name__ == "__main__":
    launch(Config, run, __doc__)
