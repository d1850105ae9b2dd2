"""What a static patch of a stack is to be: which solution, which weights, which rank."""

from dataclasses import dataclass
from typing import Literal

from icl_jax import checks

Rung = Literal["thought", "cheap", "exact", "ridge", "covariance"]
RUNGS = ("thought", "cheap", "exact", "ridge", "covariance")
Order = Literal["in_order", "at_once"]
ORDERS = ("in_order", "at_once")


Side = Literal["input", "down", "both"]
SIDES = ("input", "down", "both")


@dataclass(frozen=True)
class Fit:
    """What a static patch is to be; hashable.

    Attributes:
      rung: the solution: ``thought`` (a bias per layer, ``side`` does not matter), ``cheap``,
        ``exact`` (up to D rows), ``ridge``, ``covariance`` (spares ordinary inputs).
      side: which weights change: those that read ``z``, the down kernel, or both. A parallel
        block's MLP does not read the context: there ``both`` is the down kernel.
      rank: of each update; None for what the solution has, which for sums is a whole matrix.
      order: ``in_order`` or ``at_once``; see the top of the file.
      chunk: how many queries are run side by side.

    Examples:
      >>> Fit("ridge", side="down", rank=4).order
      'in_order'
    """

    rung: Rung = "ridge"
    side: Side = "both"
    rank: int | None = None
    order: Order = "in_order"
    chunk: int = 8

    def __post_init__(self) -> None:
        checks.one_of("Fit", "rung", self.rung, RUNGS)
        checks.one_of("Fit", "side", self.side, SIDES)
        checks.one_of("Fit", "order", self.order, ORDERS)
        checks.positive_int("Fit", "chunk", self.chunk)
        if self.rank is not None:
            checks.positive_int("Fit", "rank", self.rank)
