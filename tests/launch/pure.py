"""An experiment that is one program of a number, for tests of what runs many as one; and sweeps."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tools.arrays import NO_NAMES
from experiments.tools.flags import option
from experiments.tools.one_program import OneProgram
from launch.combinators import grid, product
from launch.configuration import configurations


@dataclass(frozen=True)
class Config:
    """A number, and how long it takes."""

    number: float = option(0.0, "whose cosine is taken")
    turns: int = option(10, "how often, squared; another number of them is another program")


@dataclass(frozen=True)
class Arrays:
    """What came out."""

    cosine: np.ndarray


def names(config):
    """Nothing may be missing."""
    return NO_NAMES


def summarise(config, arrays):
    """The number itself."""
    return {"cosine": float(arrays.cosine)}


def measure(config, values):
    """Cosines of cosines."""
    count = config.turns**2
    return {"cosine": jax.lax.fori_loop(0, count, lambda _, x: jnp.cos(x), values["number"])}


ONE_PROGRAM = OneProgram(("number",), measure)


def two_by_two():
    """Two programs of two runs."""
    return configurations(
        "tests.launch.pure", product(grid({"turns": (10, 20)}), grid({"number": (0.5, 1.5)}))
    )


def eight():
    """Eight runs that take a while."""
    numbers = [0.1 * count for count in range(8)]
    return configurations("tests.launch.pure", grid({"number": numbers}), base={"turns": 550})


def endless():
    """One that is done at once, and one that never is."""
    return configurations("tests.launch.pure", grid({"turns": (10, 10_000_000)}))
