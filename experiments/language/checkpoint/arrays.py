"""The numbers of one prompt in one precision, for a model of L layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Answered:
    """A run on the kept tokens beside the run on everything.

    Attributes:
      relative_error: (), of the logits, or of the last states of a model without a head.
      kl: (), nats, mean over the kept positions; None without a head.
      top1: (), the share of them with the same most probable token; None without a head.
    """

    relative_error: np.ndarray
    kl: np.ndarray | None
    top1: np.ndarray | None


@dataclass(frozen=True)
class Patched(Answered):
    """A run with patches; of every layer the hardest of them, NaN where there is no such number.

    Attributes:
      relative_change: (L,), how far the MLP's input moves, of its length.
      max_scale_change: (L,), the largest change of an entry of a norm's scale.
      min_normalised: (L,), the smallest entry of a normed output, which a scale patch divides by.
    """

    relative_change: np.ndarray
    max_scale_change: np.ndarray
    min_normalised: np.ndarray


@dataclass(frozen=True)
class Compared:
    """The runs of one prompt; ``scale`` is None where no norm follows the MLP."""

    patched: Patched
    scale: Patched | None
    unpatched: Answered
    shuffled: Answered


@dataclass(frozen=True)
class Generation:
    """N tokens that are written after the kept ones.

    Attributes:
      expected_tokens, patched_tokens, unpatched_tokens: (N,), by each run.
      agreement, unpatched_agreement: (), the share that is as expected.
      relative_error, kl, top1: (N,), of the patched logits, over the expected tokens.
    """

    expected_tokens: np.ndarray
    patched_tokens: np.ndarray
    unpatched_tokens: np.ndarray
    agreement: np.ndarray
    unpatched_agreement: np.ndarray
    relative_error: np.ndarray
    kl: np.ndarray
    top1: np.ndarray


@dataclass(frozen=True)
class Written:
    """What is saved of a generation."""

    generation: Generation


@dataclass(frozen=True)
class Arrays:
    """All of one prompt; ``generation`` is None where nothing was written."""

    compared: Compared
    generation: Generation | None

    @property
    def runs(self) -> dict[str, Answered]:
        """Those that there are, by name."""
        found = vars(self.compared)
        return {name: run for name, run in found.items() if run is not None}


#: dtype -> every prompt.
Measured = Mapping[str, Sequence[Arrays]]
