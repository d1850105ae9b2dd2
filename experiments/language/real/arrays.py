"""What is measured of one real model in one precision; each record is a file of its own."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Parity:
    """Logits here and in ``transformers``.

    Attributes:
      relative_error: (P,), of P prompts; of none where ``transformers`` is not installed.
    """

    relative_error: np.ndarray


@dataclass(frozen=True)
class Exactness:
    """R patched runs beside the full ones, each with its nulls.

    Attributes:
      tokens: (R,), of the prompt.
      bos_kept: (R,), whether the first token stays.
      loop: (R,), closed or open.
      policy: (R,), the output patch.
      relative_error, same_top1: (R,), of the patched logits at the kept positions.
      unpatched, shuffled: (R,), relative errors of the nulls.
      growth: (R,), of a rounding in open loop; NaN where it has no bound to tell.
      refused: (R,), whether the library refuses this open loop.
    """

    tokens: np.ndarray
    bos_kept: np.ndarray
    loop: np.ndarray
    policy: np.ndarray
    relative_error: np.ndarray
    same_top1: np.ndarray
    unpatched: np.ndarray
    shuffled: np.ndarray
    growth: np.ndarray
    refused: np.ndarray


@dataclass(frozen=True)
class ByLayer:
    """The same through the first layers only, at D depths.

    Attributes:
      layers: (D,), how many.
      unpatched: (D,), relative error of the null.
      policies: policy -> (D,), relative error in closed loop.
    """

    layers: np.ndarray
    unpatched: np.ndarray
    policies: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Texts:
    """Q texts that patched weights wrote, beside those that were written with the context.

    Attributes:
      agreement: (Q,), the share of the same tokens.
      same_until: (Q,), the first other token. After it two texts are two texts: what the patches
        answer for are the logits of every step over the same tokens.
      twice_agreement: (Q,), the share of the same tokens as in the text that is written without a
        patch beside itself (``Generation.twice_agreement``).
      same_top1, largest_relative_error: (Q,), of these logits.

    A text that the policy has no patches for agrees with nothing, and its error is NaN.
    """

    agreement: np.ndarray
    same_until: np.ndarray
    twice_agreement: np.ndarray
    same_top1: np.ndarray
    largest_relative_error: np.ndarray


@dataclass(frozen=True)
class Generation:
    """Q questions behind their contexts.

    Attributes:
      question, expected: (Q,), text: what was asked, and what was written with the context.
      unpatched_agreement: (Q,), of the text that was written without it.
      twice_agreement, twice_until: (Q,), of the text that is written with everything and without a
        patch, but for each prompt twice in one batch: what the rounding of more rows changes alone.
        A patched run has two of each, too, that with everything and that of the kept tokens.
      policies: policy -> the texts of patched weights.
    """

    question: np.ndarray
    expected: np.ndarray
    unpatched_agreement: np.ndarray
    twice_agreement: np.ndarray
    twice_until: np.ndarray
    policies: Mapping[str, Texts]


@dataclass(frozen=True)
class Right:
    """Which of Q answers are right: with the context, from patched weights, with neither; (Q,)."""

    context: np.ndarray
    patched: np.ndarray
    nothing: np.ndarray


@dataclass(frozen=True)
class Tasks:
    """The answers to the questions of every task."""

    tasks: Mapping[str, Right]


@dataclass(frozen=True)
class Growth:
    """How far C contexts move the last token's MLP inputs.

    Attributes:
      context: (C,), removed tokens.
      relative_change: (C,), mean over the layers.
      shuffled_change: (C,), of the same tokens in another order, the null.
    """

    context: np.ndarray
    relative_change: np.ndarray
    shuffled_change: np.ndarray


@dataclass(frozen=True)
class Writers:
    """Who wrote the update of a question's last token.

    Attributes:
      layer: (), from 0.
      question: (), text.
      tokens: (K,), text of those with the largest shares.
      shares: (K,), of the update.
      even: (), what every context token would have if all wrote the same.
      remainder: (), what no token wrote alone.
      total: (), of all shares and the remainder.
    """

    layer: np.ndarray
    question: np.ndarray
    tokens: np.ndarray
    shares: np.ndarray
    even: np.ndarray
    remainder: np.ndarray
    total: np.ndarray


@dataclass(frozen=True)
class Arrays:
    """All of one model in one precision; the last three are asked in float32 only, else None."""

    exactness: Exactness
    layers: ByLayer
    tasks: Tasks
    generation: Generation
    parity: Parity | None
    growth: Growth | None
    attribution: Writers | None


#: Model -> dtype -> what was measured.
Found = Mapping[str, Mapping[str, Arrays]]
