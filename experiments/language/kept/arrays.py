"""What is measured of one task in one model."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Answered:
    """What a run says to B questions.

    Attributes:
      log_chance: (B,), nats, of the right answer's first token.
      right: (B,), whether that is the most probable one.
    """

    log_chance: np.ndarray
    right: np.ndarray


@dataclass(frozen=True)
class Said:
    """A run's answers to new questions, and to those that the updates are fitted on."""

    new: Answered
    fitted: Answered


@dataclass(frozen=True)
class Kept(Said):
    """What keeps something of the context.

    Attributes:
      seconds: ().
      held_out: (), minus the mean log-probability on the held-out questions, by which the ridge's
        weight, LoRA's rate and the best rung are chosen.
    """

    seconds: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Solved(Kept):
    """A rung of the ladder; ``weight``: (), of the ridge."""

    weight: np.ndarray


@dataclass(frozen=True)
class Descended(Kept):
    """LoRA by descent; ``steps``, ``rate``: ()."""

    steps: np.ndarray
    rate: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """Every side of one task.

    Attributes:
      nothing, context: without the context, and with it.
      rungs: of the ladder, by name.
      lora_same, lora_more: in the seconds of the rung in order, and in more.
      written: (W,), text: of what the model wrote for itself.
    """

    nothing: Said
    context: Said
    rungs: Mapping[str, Solved]
    lora_same: Descended
    lora_more: Descended
    written: np.ndarray

    @property
    def lora(self) -> dict[str, Descended]:
        """Both descents, by name."""
        return {"lora_same": self.lora_same, "lora_more": self.lora_more}

    @property
    def sides(self) -> dict[str, Solved | Descended]:
        """All that keep something of the context, by name."""
        return {**self.rungs, **self.lora}


#: Model -> task -> what was measured.
Found = Mapping[str, Mapping[str, Arrays]]
