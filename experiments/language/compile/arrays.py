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
class Thought(Heard):
    """A thought vector, and the seconds () that it took."""

    seconds: np.ndarray


@dataclass(frozen=True)
class Compiled(Heard):
    """The patches in closed form that are kept.

    Attributes:
      seconds: ().
      rank, weight: (), of the update and of the ridge, chosen on held-out queries.
    """

    seconds: np.ndarray
    rank: np.ndarray
    weight: np.ndarray


@dataclass(frozen=True)
class Descended(Heard):
    """LoRA by descent, with the rate that is best on held-out queries.

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
    """The same seconds as the closed form has, and more of them."""

    same: Descended
    more: Descended


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
    thought: Thought
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
