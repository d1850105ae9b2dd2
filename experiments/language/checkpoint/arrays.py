"""The numbers of one prompt in one precision, for a model of L layers."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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


@dataclass(frozen=True)
class Exported:
    """Weights on disk: errors of logits, relative, beside the run with everything.

    Attributes:
      format, folder, prompt: what was written, where, and of which prompt.
      logit_error, unpatched_logit_error: of the last position's, on the kept tokens alone, of what
        was written and of the original weights, as this library computes them.
      other_logit_error: the same of what was written, as ``program`` does; None where it was not
        asked (not installed, or a model without a head).
      earlier_logit_error, unpatched_earlier_logit_error: at the other kept positions; None where
        there are none.
      following_agreement, unpatched_following_agreement: the share of ``FOLLOWING`` greedy tokens
        that are written as by the run with everything; None where nothing can be written.
    """

    format: Literal["peft", "checkpoint"]
    folder: str
    prompt: str
    logit_error: float
    unpatched_logit_error: float
    other_logit_error: float | None
    earlier_logit_error: float | None
    unpatched_earlier_logit_error: float | None
    following_agreement: float | None
    unpatched_following_agreement: float | None

    @property
    def program(self) -> str:
        """Who else reads such a file."""
        return "peft" if self.format == "peft" else "transformers"

    def told(self) -> dict[str, Any]:
        """As it is saved, and in the summary: the other error under the program's name."""
        found = dict(vars(self))
        found[f"{self.program}_logit_error"] = found.pop("other_logit_error")
        return found

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> "Exported":
        """From what was saved.

        Raises:
          ValueError: a number is missing, or one is there that nobody knows.
        """
        fields = dict(found)
        for name in ("peft_logit_error", "transformers_logit_error"):
            if name in fields:
                fields["other_logit_error"] = fields.pop(name)
        names = {field.name for field in dataclasses.fields(cls)}
        wrong = {"missing": names - fields.keys(), "unknown": fields.keys() - names}
        if any(wrong.values()):
            said = "; ".join(f"{', '.join(sorted(w))}: {kind}" for kind, w in wrong.items() if w)
            raise ValueError(
                f"export: {said}. Was it measured by another version? Choose another --workdir."
            )
        return cls(**fields)


#: dtype -> every prompt.
Measured = Mapping[str, Sequence[Arrays]]
