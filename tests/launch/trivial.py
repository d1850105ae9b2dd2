"""An experiment that takes no time, for tests of what starts it; and sweeps over it.

What it does besides is asked for by ``--act``, so that every way to end can be seen.
"""

import json
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments.tools.flags import launch, option
from icl_jax.records import open_run
from launch.combinators import grid
from launch.configuration import configurations


@dataclass(frozen=True)
class Config:
    """A number, and how to end."""

    number: int = option(0, "what is squared")
    act: Literal["well", "error", "killed", "killed_once", "sleep", "fill", "preempted_once"] = (
        option("well", "how to end")
    )
    steps: int = option(1, "saved one by one")
    seconds: float = option(0.0, "per step")

    def __post_init__(self):
        if self.number == 13:
            raise ValueError("Config: number must not be 13.")


def run(config: Config, workdir: Path) -> None:
    """Squares a number, in steps, each saved: it goes on where it was killed."""
    record = open_run(workdir, config, experiment="trivial")
    total = 0.0
    for step in range(config.steps):
        name = f"step{step}.json"
        if not record.has(name):
            time.sleep(config.seconds)
            record.save_json(name, {"square": (config.number + step) ** 2 / config.steps})
        total += record.load_json(name)["square"]
    first = not (workdir / "again").exists()
    (workdir / "again").touch()
    if config.act == "error":
        raise RuntimeError("as asked")
    if config.act == "killed" or (config.act == "killed_once" and first):
        os.kill(os.getpid(), signal.SIGKILL)
    if config.act == "preempted_once" and first:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    if config.act == "sleep":
        time.sleep(60)
    if config.act == "fill":
        record.save_json("large.json", "x" * 10_000_000)
    record.save_json("summary.json", {"square": total, "list": [1, 2], "nested": {"half": 0.5}})
    print(f"{config.number} squared is {total}")


def three():
    """Three runs."""
    return configurations("tests.launch.trivial", grid({"number": (1, 2, 3)}))


def twelve():
    """Twelve runs of some steps."""
    base = {"steps": 4, "seconds": 0.05}
    return configurations("tests.launch.trivial", grid({"number": range(20, 32)}), base=base)


def twelve_slow():
    """Twelve that take two seconds each."""
    base = {"steps": 4, "seconds": 0.5}
    return configurations("tests.launch.trivial", grid({"number": range(20, 32)}), base=base)


def twenty_four():
    """Two dozen."""
    return configurations("tests.launch.trivial", grid({"number": range(100, 124)}))


def twenty_four_steps():
    """Two dozen that take a second each."""
    base = {"steps": 4, "seconds": 0.25}
    return configurations("tests.launch.trivial", grid({"number": range(100, 124)}), base=base)


def acts():
    """One run for every way to end."""
    names = ("well", "error", "killed", "killed_once", "preempted_once")
    return configurations("tests.launch.trivial", grid({"act": names}))


def preempted():
    """Two, one of which is preempted in the middle."""
    acts = grid({"act": ("well", "preempted_once")})
    return configurations("tests.launch.trivial", acts, base={"steps": 2})


def slow():
    """One that takes some seconds, in steps."""
    return configurations("tests.launch.trivial", [{"steps": 12, "seconds": 0.5}])


def sleeper():
    """One that has to be stopped."""
    return configurations("tests.launch.trivial", [{"act": "sleep"}])


def filler():
    """One that needs more room than there is, and one that does not."""
    return configurations("tests.launch.trivial", grid({"act": ("fill", "well")}))


def many():
    """Ten thousand."""
    return configurations("tests.launch.trivial", grid({"number": range(1000, 11_000)}))


def wrong():
    """One that its experiment refuses."""
    return configurations("tests.launch.trivial", grid({"number": (12, 13)}))


def no_list():
    """Not what a sweep returns."""
    return [json.loads("{}")]


if __name__ == "__main__":
    launch(Config, run, __doc__)
