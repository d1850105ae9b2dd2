"""What does a context do to real trained models, and do its patches keep all of it?

SmolLM2 135M (Llama family) and Gemma 3 270M, in float32 and bfloat16: parity with ``transformers``;
patched runs beside full ones for every output policy, loop and length, through 1 to all layers;
texts written with the context and without it from patched weights; which tokens wrote an update,
and how it grows with the context; and the share of in-context tasks (translation, antonyms,
capitals, labels) that the context, its patches, and nothing get right.

    python -m experiments.real_models --workdir=runs/models
    python -m experiments.real --models=runs/models --workdir=runs/real

Half an hour on 2 cores (``--quick``: five minutes). Expected, in closed loop:
patched runs off by 0 to 2e-8 in float32 and by nothing in bfloat16, where the kept tokens
alone are off by 0.3 to 1.3; the same right answers with the context and from patched weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from experiments.language.real import measure
from experiments.language.real.arrays import (
    Arrays,
    ByLayer,
    Exactness,
    Generation,
    Growth,
    Parity,
    Tasks,
    Writers,
)
from experiments.language.real.prompts import QUESTIONS, TASKS
from experiments.language.real.report import sections, summarise
from experiments.language.real_models import SOURCES, real_model
from experiments.tools.arrays import NO_NAMES, Names, OneOf
from experiments.tools.conduct import Outcome, each, finish, measured, start
from experiments.tools.flags import launch, option
from experiments.tools.machine import forget_programs
from icl_jax import checks
from icl_jax.interop.huggingface import load
from icl_jax.interop.tokenizer import load_tokenizer
from icl_jax.records import Run

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Config:
    """Which models, and how much of everything."""

    models: str = option("", "folder of experiments.real_models; made in the workdir if left out")
    names: tuple[str, ...] = option(tuple(SOURCES), "of the models")
    dtype: tuple[str, ...] = option(DTYPES, "to run in, of float32 and bfloat16")
    lengths: tuple[int, ...] = option((29, 339), "tokens of the prompts whose patches are exact")
    num_prompts: int = option(10, "texts to write")
    num_tokens: int = option(100, "tokens of each")
    shown: int = option(6, "demonstrations of a task")
    asked: int = option(16, "questions of a task")
    contexts: tuple[int, ...] = option((8, 16, 32, 64, 128, 256), "tokens, for the growth")

    def __post_init__(self) -> None:
        for name in self.names:
            checks.one_of("real", "names", name, tuple(SOURCES))
        for dtype in self.dtype:
            checks.one_of("real", "dtype", dtype, DTYPES)
        for name in ("num_prompts", "num_tokens", "shown", "asked"):
            checks.positive_int("real", name, getattr(self, name))
        if self.num_prompts > len(QUESTIONS):
            raise ValueError(
                f"real: there are {len(QUESTIONS)} texts to write, got num_prompts="
                f"{self.num_prompts}."
            )
        fewest = min(map(len, TASKS.values()))
        if self.shown + self.asked > fewest:
            raise ValueError(
                f"real: a task has {fewest} pairs to show and to ask for, got shown={self.shown} "
                f"and asked={self.asked}."
            )
        for name in ("lengths", "contexts"):
            for length in getattr(self, name):
                checks.at_least_two("real", name, length, "one token stays, and one is removed")

    @classmethod
    def quick(cls) -> "Config":
        """Short prompts and texts, few questions."""
        return cls(lengths=(29,), num_prompts=2, num_tokens=12, asked=4, contexts=(8, 32))


def measure_all(config: Config, run: Run, name: str, folder: Path, dtype: str) -> Arrays:
    """Everything of one model in one precision, each part saved as soon as it is there."""
    loaded: list[Any] = []

    def model() -> tuple[Any, Any]:
        if not loaded:
            loaded.extend([load(folder, dtype=jnp.dtype(dtype)), load_tokenizer(folder)])
        return loaded[0], loaded[1]

    longest = max(config.lengths)
    parts: dict[str, tuple[type[Any], Callable[[], Any]]] = {
        "exactness": (Exactness, lambda: measure.exactness(*model(), config.lengths)),
        "layers": (ByLayer, lambda: measure.by_layer(*model(), longest)),
        "tasks": (Tasks, lambda: measure.tasks(*model(), config.shown, config.asked)),
        "generation": (
            Generation,
            lambda: measure.generation(*model(), config.num_prompts, config.num_tokens),
        ),
    }
    once: dict[str, tuple[type[Any], Callable[[], Any]]] = {
        "parity": (Parity, lambda: measure.parity(model()[0], folder, model()[1])),
        "growth": (Growth, lambda: measure.growth(*model(), config.contexts)),
        "attribution": (Writers, lambda: measure.attribution(*model())),
    }
    names: dict[str, Names] = {
        "layers": {"policies": OneOf((measure.PLAIN, measure.NORMED))},
        "tasks": {"tasks": TASKS},
        "generation": {"policies": OneOf((measure.PLAIN, measure.WRITES))},
    }
    found: dict[str, Any] = dict.fromkeys(once)
    asked = parts | once if dtype == "float32" else parts
    for part, (kind, measuring) in each(list(asked.items()), f"{name} in {dtype}"):
        file = f"{name}/{dtype}/{part}.npz"
        found[part] = measured(run, kind, measuring, names=names.get(part, NO_NAMES), file=file)
        forget_programs()
    return Arrays(**found)


def run(config: Config, workdir: Path) -> Outcome:
    """Measures both models and writes the report."""
    records = start(workdir, "real", config)
    found = {}
    for name in config.names:
        folder = real_model(name, Path(config.models) if config.models else workdir / "models")
        found[name] = {
            dtype: measure_all(config, records, name, folder, dtype) for dtype in config.dtype
        }
    return finish(
        records,
        "Two real models without their contexts",
        __doc__,
        Outcome(summarise(found), sections(found)),
    )


if __name__ == "__main__":
    launch(Config, run, __doc__)
