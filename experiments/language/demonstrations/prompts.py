"""Prompts of demonstrations whose tokens are known: which belong to which."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from experiments.language.kept.pairs import LINE, PAIRS
from icl_jax.interop.tokenizer import Tokenizer
from icl_jax.language.batch import bucket


@dataclass(frozen=True)
class Asked:
    """A prompt with N demonstrations in front of a question.

    Attributes:
      bos: the token in front of everything.
      demonstrations: token ids of each.
      question: token ids.
      answer: the first token of the right answer.
    """

    bos: int
    demonstrations: Sequence[np.ndarray]
    question: np.ndarray
    answer: int

    def tokens(self, chosen: Sequence[int] | None = None) -> np.ndarray:
        """The prompt with the chosen demonstrations, in their own order; all when None."""
        picked = range(len(self.demonstrations)) if chosen is None else sorted(chosen)
        parts = [self.demonstrations[int(number)] for number in picked]
        return np.concatenate([[self.bos], *parts, self.question]).astype(np.int32)

    def in_order(self, order: Sequence[int]) -> np.ndarray:
        """The prompt with some demonstrations in an order of one's own."""
        parts = [self.demonstrations[int(number)] for number in order]
        return np.concatenate([[self.bos], *parts, self.question]).astype(np.int32)

    @property
    def kept(self) -> np.ndarray:
        """The BOS and the question: what stays when all demonstrations go."""
        length = len(self.tokens())
        return np.concatenate([[0], np.arange(length - len(self.question), length)])

    @property
    def member_NT(self) -> np.ndarray:
        """(N, T), which tokens of the whole prompt belong to which demonstration."""
        lengths = [len(one) for one in self.demonstrations]
        ends = 1 + np.cumsum(lengths)
        places_T = np.arange(len(self.tokens()))
        return np.stack(
            [(places_T >= end - length) & (places_T < end)
             for end, length in zip(ends, lengths, strict=True)]
        )  # fmt: skip

    @property
    def token_groups(self) -> np.ndarray:
        """(T', T), every demonstrations' token a group of its own, T' of the whole bucket's."""
        length = len(self.tokens())
        groups_XT = np.zeros((bucket(length), length), bool)
        inside = np.flatnonzero(self.member_NT.any(axis=0))
        groups_XT[inside, inside] = True
        return groups_XT


def asked_prompts(
    tokenizer: Tokenizer, task: str, *, pool: int, asked: int, bos: int
) -> list[Asked]:
    """Questions of a task, all behind its first ``pool`` pairs."""

    def tokens(text: str) -> np.ndarray:
        return np.asarray(tokenizer.encode(text, add_special=False).tokens_T)

    pairs = PAIRS[task]
    shown = [tokens(f"{LINE.format(x)} {y}\n") for x, y in pairs[:pool]]
    prompts = []
    for x, y in pairs[pool : pool + asked]:
        question = tokens(LINE.format(x))
        answer = int(tokens(f"{LINE.format(x)} {y}")[len(question)])
        prompts.append(Asked(bos, shown, question, answer))
    return prompts
