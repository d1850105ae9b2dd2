"""What is measured of a compiled context."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Heard:
    """A run's answers to B queries, in comparison with the run that has the context.

    Attributes:
      kl: (B,), nats per token, from the run with the context to this one.
      top1: (B,), the share of tokens with the same most probable next one.
    """

    kl: np.ndarray
    top1: np.ndarray


@dataclass(frozen=True)
class Closed(Heard):
    """Patches in closed form.

    Attributes:
      seconds: ().
      memory: (), bytes beside the model's weights: the program's temporaries, and what it is given.
      held_out: (), the KL divergence on held-out queries.
    """

    seconds: np.ndarray
    memory: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Compiled(Closed):
    """The patches that are kept: ``rank`` of the update and ``weight`` of the ridge, (), chosen on
    held-out queries."""

    rank: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Descended(Heard):
    """LoRA by descent at one time, with the rate that is best on held-out queries.

    Attributes:
      seconds, steps, rate: ().
      held_out: (), its KL divergence there.
    """

    seconds: np.ndarray
    steps: np.ndarray
    rate: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Lora:
    """LoRA by descent at P times.

    Attributes:
      times: (P,), increasing, in seconds of the closed form; 1 is among them.
      path: of all times, the arrays of ``Descended`` with P in front.
      memory: (), as the closed form's.
    """

    times: np.ndarray
    path: Descended
    memory: np.ndarray

    def at(self, point: int) -> Descended:
        """One of the times."""
        return Descended(**{name: array[point] for name, array in vars(self.path).items()})

    @property
    def same(self) -> Descended:
        """In the same seconds as the closed form."""
        return self.at(int(np.flatnonzero(self.times == 1)[0]))

    @property
    def more(self) -> Descended:
        """In the most seconds."""
        return self.at(-1)


@dataclass(frozen=True)
class Tried:
    """T closed forms on held-out queries: rank, ridge weight, KL divergence; (T,)."""

    rank: np.ndarray
    weight: np.ndarray
    held_out: np.ndarray


@dataclass(frozen=True)
class Sides:
    """Every side on the asked queries.

    Attributes:
      nothing: the queries alone.
      thought, ridge: closed forms.
      lora: by descent; None where it was not asked for.
      tried: what ``ridge`` was chosen from.
    """

    nothing: Heard
    thought: Closed
    ridge: Compiled
    lora: Lora | None
    tried: Tried

    @property
    def runs(self) -> dict[str, Heard]:
        """All that there are, by name."""
        found: dict[str, Heard] = {
            "nothing": self.nothing,
            "thought": self.thought,
            "ridge": self.ridge,
        }
        if self.lora is not None:
            found |= {"lora_same": self.lora.same, "lora_more": self.lora.more}
        return found


@dataclass(frozen=True)
class Arrays:
    """What is kept, and of what it was made.

    Attributes:
      sides: of the comparison.
      examples: (E,), text: of the calibration queries.
      context_tokens, calibration_tokens: (), how many.
    """

    sides: Sides
    examples: np.ndarray
    context_tokens: np.ndarray
    calibration_tokens: np.ndarray
