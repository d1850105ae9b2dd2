"""A sweep over learning rates and seeds: one program against a process per run; and scheduling.

    python -m benchmarks.sweeps --json=FILE

Both sides are whole commands, start of Python included. Of the processes a few are run in a pool as
wide as the machine, and their time is scaled to the number of runs. The second row is what a pool
of two costs for runs that take no time, beside the same processes started one after another.
"""

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import flags

from benchmarks.harness import as_row, launch
from launch.combinators import grid, product, seeds
from launch.configuration import Configuration, configurations, identify, load_sweep
from launch.task import Task

_RATES = flags.DEFINE_integer("rates", 8, "learning rates", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 8, "seeds per rate", lower_bound=1)
_PROCESSES = flags.DEFINE_integer("processes", 6, "runs of the pool that are timed", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 40, "training steps of a run", lower_bound=2)

ROOT = Path(__file__).parents[1]
#: Runs that take no time.
TRIVIAL = "tests.launch.trivial:twenty_four"
_MODULE = "benchmarks.sweeps"


def trainings(rates: int, count: int, steps: int) -> list[Configuration]:
    """Short trainings of one learner."""
    settings = product(
        grid({"learner.training.learning_rate": [1e-4 * 1.5**i for i in range(rates)]}),
        seeds("learner.training.seed", count),
    )
    base = {
        "quick": True,
        "num_prompts": 64,
        "learner.training.num_steps": steps,
        "learner.training.batch_size": 16,
        "learner.training.optimizer.warmup_steps": 1,
    }
    return configurations("experiments.training", settings, base=base)


def timed(folder: Path, executor: str, rates: int, count: int, steps: int) -> tuple[float, int]:
    """Seconds of a sweep as a command, and the most memory that one of its processes took."""
    # The sweep is a function without arguments: one that knows the sizes.
    (folder / "sizes.py").write_text(
        f"from {_MODULE} import trainings\n"
        f"def sweep(): return trainings({rates}, {count}, {steps})\n"
    )
    command = [sys.executable, "-m", "launch.sweep", "--sweep=sizes:sweep"]
    command += [f"--workdir={folder / executor}", f"--executor={executor}"]
    start = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{folder}:{ROOT}"},
        capture_output=True,
    )
    seconds = time.perf_counter() - start
    return seconds, 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def scheduling(folder: Path, sample: int) -> dict[str, Any]:
    """24 runs that take no time: the start-ups of their processes, and a sweep of them."""
    runs = identify(load_sweep(TRIVIAL))
    alone = runs[:sample]
    start = time.perf_counter()
    for run in alone:
        command = Task(run, str(folder / "alone")).command()
        subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    start_ups = (time.perf_counter() - start) * len(runs) / len(alone)
    command = [sys.executable, "-m", "launch.sweep", f"--sweep={TRIVIAL}", "--local.workers=2"]
    command += [f"--workdir={folder / 'pool'}", "--executor=local"]
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    seconds = {"their start-ups": [start_ups], "local, two workers": [time.perf_counter() - start]}
    # What the largest process so far took, of either side: they are the same processes.
    memory = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    sizes = {"runs": len(runs), "started alone": len(alone)}
    return as_row("24 trivial runs", seconds, dict.fromkeys(seconds, memory), sizes=sizes)


def benchmark() -> list[dict[str, Any]]:
    """Two rows."""
    runs, sample = _RATES.value * _SEEDS.value, _PROCESSES.value
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        many = timed(folder, "local", sample, 1, _STEPS.value)
        one = timed(folder, "inprocess", _RATES.value, _SEEDS.value, _STEPS.value)
        trivial = scheduling(folder, sample)
    seconds = {"one program": [one[0]], "processes": [many[0] * runs / sample]}
    row = as_row(
        f"{runs} trainings",
        seconds,
        {"one program": one[1], "processes": many[1]},
        sizes={"runs": runs, "processes timed": sample, "steps": _STEPS.value},
    )
    return [row, trivial]


if __name__ == "__main__":
    launch(benchmark)
