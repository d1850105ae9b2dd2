"""The host's side of writing: how far to go before the device is looked at, and where to stop."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.language.ends import check_finite, check_vocabulary
from icl_jax.language.text import Text
from icl_jax.sharding import on_host

#: Tokens between two looks of the host, where it was asked to report progress.
CHUNK = 16


class Loop:
    """How far to go next, and what to tell."""

    def __init__(
        self,
        where: str,
        num_tokens: int,
        stop_S: np.ndarray,
        progress: Callable[[], None] | None,
    ) -> None:
        self.where, self.stop_S = where, stop_S
        self.num_tokens, self.progress, self.told, self.done = num_tokens, progress, 0, False

    def limits(self, text: Text) -> Iterator[int]:
        """How many tokens there are to be after each chunk; the first one is there."""
        self.report(text)
        step = self.num_tokens if self.progress is None else CHUNK
        for limit in range(step, self.num_tokens + step, step):
            if self.done or limit == 1 == self.num_tokens:
                return
            yield min(limit, self.num_tokens)

    def report(self, text: Text) -> None:
        """Calls ``progress`` for what is new; without it, nothing is read back."""
        if self.progress is None:
            return
        step, finished_B = on_host((text.step, text.finished_B))
        self.done = bool(np.all(finished_B))
        for _ in range(int(step) - self.told):
            self.progress()
        self.told = int(step)

    def last(self, text: Text, *more: Any) -> tuple[Any, ...]:
        """The written tokens (B, N), how many there are of each (B,), which are of numbers (B,).

        And ``more``: everything is read back at once.
        """
        return on_host((text.tokens_BN, text.count_B, text.finite_B, *more))

    def check(self, tokens_BN: np.ndarray, count_B: np.ndarray, finite_B: np.ndarray) -> None:
        """Raises NumericalError where a text's last token was drawn from what are no numbers."""
        finite_BN = np.ones(tokens_BN.shape, bool)
        finite_BN[np.arange(len(count_B)), count_B - 1] = finite_B
        check_finite(self.where, finite_BN)


def stop_ids(where: str, model: LanguageModel, stop: Any) -> np.ndarray:
    """Stop tokens (S,), in one shape for the usual numbers of them; no token is -1.

    Raises:
      ValueError: an id that is none of the model's.
      TypeError: no collection, or not of integers.
    """
    if not isinstance(stop, Iterable):
        raise TypeError(
            f"{where}: stop must be a collection of token ids, got {stop!r}. Write stop=[{stop!r}]."
        )
    ids = checks.integers(where, "stop", list(stop))
    check_vocabulary(where, "stop", model, np.asarray(ids))
    ids_S = np.sort(np.asarray(ids).astype(np.int32))
    return np.pad(ids_S, (0, -len(ids_S) % 8 or 8), constant_values=-1)
