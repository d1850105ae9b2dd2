"""What an experiment offers so that many of its configurations can run as one program.

An experiment can, when it is a pure function of some numbers in its configuration: seeds, learning
rates, whatever changes no shape and decides nothing in Python. It says so by ``ONE_PROGRAM`` in its
module, beside ``Config``, ``Arrays``, their ``names(config)`` and ``summarise(config, arrays)``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from icl_jax.dims import Array


@dataclass(frozen=True)
class OneProgram:
    """A measurement as a pure function.

    Attributes:
      varies: flags of the numbers that it takes; all other settings are the same for all runs.
      measure: ``measure(config, values) -> arrays``, what the experiment's own ``measure`` gives,
        by the paths of ``arrays.flatten``.
        ``values`` has a scalar for each of ``varies``, traced: integers as int64, others as
        float64, which Python's are, too. ``config`` has the values of one of the runs there: do not
        read them.
    """

    varies: tuple[str, ...]
    measure: Callable[[Any, Mapping[str, Array]], Mapping[str, Any]]
