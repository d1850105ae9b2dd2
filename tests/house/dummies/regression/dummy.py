"""Is a mean nearer to the truth than one draw?

Draws numbers around one that is asked for, and compares their mean with the first of them.

    python -m experiments.dummy --workdir=runs/dummy

A second. Expected: the mean of 100 draws is off by 0.1, one draw by 0.8.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.tools.arrays import Names
from experiments.tools.comparisons import against_best
from experiments.tools.conduct import Outcome, finish, measured, start
from experiments.tools.flags import launch, option
from icl_jax import checks
from icl_jax.report.figures import Curve, Panel, curves
from icl_jax.report.page import Section, Table

NAMES: Names = {"errors": ("mean", "one")}


@dataclass(frozen=True)
class Config:
    """The number, and how often it is drawn."""

    number: float = option(2.0, "that is drawn around")
    num_draws: int = option(100, "of a try")
    num_tries: int = option(50, "of everything")
    seed: int = option(0, "of the draws")

    def __post_init__(self) -> None:
        for name in ("num_draws", "num_tries"):
            checks.positive_int("dummy", name, getattr(self, name))

    @classmethod
    def quick(cls) -> "Config":
        """Few tries."""
        return cls(num_tries=5)


@dataclass(frozen=True)
class Arrays:
    """Absolute errors (B,) of the mean and of one draw, in B tries."""

    errors: Mapping[str, np.ndarray]


def measure(config: Config) -> Arrays:
    """All tries."""
    rng = np.random.default_rng(config.seed)
    drawn_BN = config.number + rng.standard_normal((config.num_tries, config.num_draws))
    off = {"mean": drawn_BN.mean(axis=1), "one": drawn_BN[:, 0]}
    return Arrays({name: np.abs(found_B - config.number) for name, found_B in off.items()})


def summarise(config: Config, arrays: Arrays) -> dict[str, Any]:
    """Mean errors."""
    errors = {name: float(error_B.mean()) for name, error_B in arrays.errors.items()}
    return {"num_draws": config.num_draws, "errors": errors}


def sections(config: Config, arrays: Arrays) -> list[Section]:
    """Both errors, try by try."""
    errors = summarise(config, arrays)["errors"]
    tries = np.arange(config.num_tries)
    lines = [
        Curve("mean", tries, arrays.errors["mean"], role="main"),
        Curve("one draw", tries, arrays.errors["one"], role="control"),
    ]
    return [
        Section(
            "A mean and a draw",
            f"Of {config.num_draws} draws each.",
            verdict=against_best("The mean, off by", errors["mean"], {"one draw": errors["one"]}),
            figure=curves([Panel("", lines, "try", "absolute error")]),
            tables=[Table(("what", "absolute error"), list(errors.items()))],
        )
    ]


def run(config: Config, workdir: Path) -> Outcome:
    """Measures and reports."""
    record = start(workdir, "dummy", config)
    arrays = measured(record, Arrays, lambda: measure(config), names=NAMES)
    outcome = Outcome(summarise(config, arrays), sections(config, arrays))
    return finish(record, "A mean and a draw", __doc__, outcome)


if __name__ == "__main__":
    launch(Config, run, __doc__)
