"""Reports of what takes too long here, from records that are as wide as the real ones but made up.

What was measured stands in docs/real.json and is used where it is of that experiment; the rest is
drawn. The experiments themselves read the records back and report, as behind a killed run.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.language.composition import run as real_composition
from experiments.language.composition.facts import FACTS
from experiments.language.composition.report import AGREED, USES
from experiments.language.composition.report import Arrays as Facts
from experiments.language.demonstrations import run as real_demonstrations
from experiments.language.demonstrations.learned import Learned
from experiments.language.demonstrations.report import SAID, TOKEN_WAYS, WAYS, Valued
from experiments.language.demonstrations.report import Arrays as Chosen
from experiments.language.kept import run as kept
from experiments.language.kept.arrays import Answered, Descended, Said, Solved
from experiments.language.kept.arrays import Arrays as Kept
from experiments.language.real import arrays as parts
from experiments.language.real import run as real
from experiments.language.real.prompts import QUESTIONS, TASKS
from experiments.language.real_models import CHECKSUMS
from experiments.tools import conduct
from experiments.tools.arrays import flatten
from experiments.tools.conduct import MEASUREMENT, note_measurement, start
from icl_jax.records import plain
from launch import collect
from launch.combinators import grid, product
from launch.configuration import configurations, identify
from launch.layout import Layout

MEASURED = json.loads((Path(__file__).parents[2] / "docs" / "real.json").read_text())["models"]
#: Of either model.
LAYERS = {"smollm2": 30, "gemma3-270m": 18}


def of_real(folder: Path) -> None:
    """``real``: two models in two precisions."""
    config = real.Config(models=str(_models(folder)))
    records: dict[str, Any] = {}
    for name in config.names:
        for dtype in config.dtype:
            found = MEASURED[name]
            one = {
                "exactness": _exactness(found["exactness"][dtype], config.lengths),
                "layers": _by_layer(LAYERS[name], found["exactness"][dtype]),
                "tasks": parts.Tasks({t: _right(found["tasks"][dtype][t]) for t in TASKS}),
                "generation": _generation(found["generation"][dtype], config.num_prompts),
            }
            if dtype == "float32":
                written = {k: np.array(v) for k, v in found["attribution"].items()}
                error = found["parity"]["largest_relative_error"]
                one["parity"] = parts.Parity(np.full(4, error))
                one["growth"] = parts.Growth(*map(np.array, found["growth"].values()))
                one["attribution"] = parts.Writers(**written)
            records |= {f"{name}/{dtype}/{part}.npz": record for part, record in one.items()}
    _report(real, "real", config, folder, records)


def _exactness(worst: Mapping[str, Any], lengths: tuple[int, ...]) -> parts.Exactness:
    rows = [
        (length, bos, loop, policy, error, 1.0, worst["unpatched"], worst["shuffled"])
        + (np.nan if loop == "closed" else 1234.5, loop == "open" and worst["refused"][policy] > 0)
        for length in lengths
        for bos in (True, False)
        for loop in ("closed", "open")
        for policy, error in worst[loop].items()
    ]
    return parts.Exactness(*map(np.array, zip(*rows, strict=True)))


def _by_layer(layers: int, worst: Mapping[str, Any]) -> parts.ByLayer:
    depths = np.array([max(1, round(layers * part / 6)) for part in range(1, 7)])
    errors = {policy: np.full(6, error) for policy, error in worst["closed"].items()}
    return parts.ByLayer(depths, np.linspace(0.5, 1, 6) * worst["unpatched"], errors)


def _right(shares: Mapping[str, Any]) -> parts.Right:
    count = shares["questions"]
    return parts.Right(
        *(np.arange(count) < shares[run] * count for run in ("context", "patched", "nothing"))
    )


def _generation(found: Mapping[str, Any], count: int) -> parts.Generation:
    policies = {
        policy: parts.Texts(
            *(np.full(count, one["agreement"]), np.full(count, 61)),
            *(np.full(count, one["twice_agreement"]), np.full(count, one["same_top1"])),
            np.full(count, one["largest_relative_error"]),
        )
        for policy, one in found.items()
        if isinstance(one, dict)
    }
    questions = np.array([question for _, question in QUESTIONS[:count]])
    shares = (np.full(count, found["unpatched"]), np.full(count, found["twice"]))
    return parts.Generation(questions, questions, *shares, np.full(count, 61), policies)


def of_kept(folder: Path) -> None:
    """``kept``: two models, all tasks and rungs."""
    config = kept.Config(models=str(_models(folder)))
    rng = np.random.default_rng(0)

    def answered(chance: float, count: int) -> Answered:
        chances = chance + rng.normal(0, 0.4, count)
        return Answered(chances, rng.random(count) < np.exp(chance))

    def said(chance: float) -> dict[str, Answered]:
        new, fitted = answered(chance, config.asked), answered(chance, config.calibration)
        return {"new": new, "fitted": fitted}

    def cost(**values: float) -> dict[str, Any]:
        return {name: np.array(value) for name, value in values.items()}

    def descended(seconds: float, chance: float) -> Descended:
        told = cost(seconds=seconds, held_out=-chance, steps=40 * seconds, rate=0.003)
        return Descended(**said(chance), **told)

    def task() -> Kept:
        rungs = {
            rung: Solved(**said(-2.0), **cost(seconds=61.234, held_out=2.0, weight=0.1))
            for rung in config.rungs
        }
        texts = np.array(['Q: brother\nA: frère"s frère et sœur'] * 4)
        ends = Said(**said(-5.5)), Said(**said(-0.7))
        return Kept(*ends, rungs, descended(61.234, -4.0), descended(612.34, -2.2), texts)

    records = {
        f"{name}/{one.replace(' ', '_')}.npz": task()
        for name in config.names
        for one in config.tasks
    }
    _report(kept, "kept", config, folder, records)


def of_composition(folder: Path) -> None:
    """``real_composition``: eight facts."""
    config = real_composition.Config(models=str(_models(folder)))
    rng = np.random.default_rng(0)
    count, sizes = len(FACTS), len(config.stacked)
    chances = {run: rng.normal(-4.0, 1.0, count) for run in USES}
    curves = (rng.normal(-4.0, 1.0, sizes) for _ in range(4))
    stacked, lone, averaged, missing = curves
    missing[-1] = np.nan  # With all facts in the weights there are no others.
    record = Facts(
        log_chance=chances,
        right={run: rng.random(count) < 0.4 for run in chances},
        stacked=stacked,
        lone=lone,
        averaged=averaged,
        missing=missing,
        disturbed=10.0 ** rng.uniform(-4, -1, (sizes, config.texts)),
        disturbed_together=10.0 ** rng.uniform(-4, -1, config.texts),
        agreed={pair: rng.uniform(0, 1, (LAYERS[config.name], 2)) for pair in AGREED},
    )
    _report(real_composition, "real_composition", config, folder, {"arrays.npz": record})


def of_demonstrations(folder: Path) -> None:
    """``real_demonstrations``: three tasks and running text."""
    config = real_demonstrations.Config(models=str(_models(folder)))
    rng = np.random.default_rng(0)
    asked, layers = config.asked, LAYERS[config.name]

    def chances(*shape: int) -> np.ndarray:
        return rng.normal(-2.0, 0.8, (asked, *shape))

    def task() -> Chosen:
        values = rng.normal(0, 0.5, (config.valued, config.players))
        said = rng.normal(0, 0.5, (config.valued, len(SAID), config.players))
        return Chosen(
            none=chances() - 4,
            full=chances() + 1,
            chosen={way: chances() for way in WAYS},
            random=chances(config.draws),
            right={
                **{way: rng.random(asked) < 0.5 for way in (*WAYS, "none", "full")},
                "random": rng.random((asked, config.draws)) < 0.4,
            },
            picked={way: np.tile(np.arange(config.chosen), (asked, 1)) for way in WAYS},
            cosine=rng.uniform(0.8, 1, asked),
            alike=rng.uniform(0, 0.3, asked),
            tokens={way: chances(len(config.shares)) for way in (*TOKEN_WAYS, "random")},
            valued=Valued(values, values - 0.12, values + 0.12, said),
        )

    def text(exponent: float) -> Learned:
        falls = exponent + rng.normal(0, 0.1, (config.texts, layers))
        steps = np.arange(1, config.length + 1) ** falls[..., None]
        alike, ranks = rng.uniform(0, 0.2, falls.shape), rng.uniform(8, 30, falls.shape)
        return Learned(steps, falls, alike, ranks, rng.uniform(10, layers, config.texts))

    records: dict[str, Any] = {f"{one.replace(' ', '_')}.npz": task() for one in config.tasks}
    records |= {"learned_text.npz": text(-0.7), "learned_shuffled.npz": text(-0.6)}
    _report(real_demonstrations, "real_demonstrations", config, folder, records)


def _models(folder: Path) -> Path:
    """Folders that pass for those of the models, which nobody reads: all is measured."""
    models = folder.parent / "no_models"
    for name in LAYERS:
        (models / name).mkdir(parents=True, exist_ok=True)
        (models / name / CHECKSUMS).write_text("{}\n")
    return models


def _report(
    experiment: Any, name: str, config: Any, folder: Path, records: Mapping[str, Any]
) -> None:
    """Saves what was measured, and lets the experiment report it."""
    run = start(folder, name, config)
    for file, record in records.items():
        run.save_arrays(file, flatten(record))
        note_measurement(run)
    experiment.run(config, folder)


#: As ``descent`` has them in its summary, each beside its nulls.
MEASURES = ("model_difference", "path_rank_gap", "peel_off_cosine", "prediction_difference")
BESIDE = ("value", "margin", "another", "random", "shuffled", "untrained")


def of_sweep(folder: Path) -> None:
    """A sweep of ``descent`` over rates' searches, examples and seeds, of two commits."""
    settings = product(
        grid({"learner.num_examples": (5, 10, 20), "explicit.optimizer.name": ("sgd", "adam")}),
        grid({"lowest_rate": (1e-4, 1e-3), "learner.training.seed": (0, 1)}),
    )
    layout, rng = Layout(str(folder)), np.random.default_rng(0)
    runs = identify(configurations("experiments.descent", settings, base={"quick": True}))
    for number, run in enumerate(runs):
        config = run.configuration.resolve()
        note_measurement(start(Path(layout.run(run.id)), "descent", config))
        if number % 2:
            noted = Path(layout.run(run.id) / MEASUREMENT)
            noted.write_text(noted.read_text().replace(conduct.commit(), "0123456789ab"))
        names = [f"measures.{measure}.{side}" for measure in MEASURES for side in BESIDE]
        drawn = dict(zip(names, map(float, 10.0 ** rng.uniform(-7, 3, len(names))), strict=True))
        summary = {"num_prompts": 20, "learning_rate": 0.0215443469, "at_edge": False, **drawn}
        result = {"id": run.id, "experiment": run.configuration.experiment}
        layout.save_result(run.id, {**result, "config": plain(config), "summary": summary})
    asked = {run.id: [] for run in runs}
    listed = {"sweep": "my_sweeps.rates_and_seeds:examples_by_optimizer", "runs": asked}
    (layout.root / "sweep.json").write_text(json.dumps(listed))
    assert collect.main(["collect", f"--workdir={folder}"]) == 0
