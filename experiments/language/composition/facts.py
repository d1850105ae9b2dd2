"""Made-up facts that no model knows, ways to ask for them, and text about something else."""

from dataclasses import dataclass

import numpy as np

from icl_jax.interop.tokenizer import Tokenizer
from icl_jax.tasks.text import reference_texts

#: Place -> what is grown there, by nobody's knowledge.
FACTS: tuple[tuple[str, str], ...] = (
    ("Velmora", "lemons"), ("Tarnwick", "barley"), ("Oskelo", "cotton"), ("Brindale", "grapes"),
    ("Quenby", "onions"), ("Zarapol", "coffee"), ("Hulmere", "pepper"), ("Ystrad", "walnuts"),
)  # fmt: skip

STATED = "In {} they grow {}.\n"
#: Ways to ask that are fitted, and one that is not.
FITTED = (
    "In {} they grow",
    "Q: What do they grow in {}?\nA: They grow",
    "The farmers of {} grow",
    "People in {} sell what they grow:",
)
NEW = "Everybody knows that the people in {} grow"
#: What a question can stand behind, for another position.
FILLER = "It was a long day, and it rained until the evening. Nobody said a word on the way home.\n"


@dataclass(frozen=True)
class Facts:
    """Facts as token ids; each list has one entry per fact.

    Attributes:
      stated: the sentences that are the context.
      fitted: the questions (lists of them) that patches are fitted on.
      new: the question that is asked.
      behind: the same behind other text.
      answers: the first token of the right answer.
      filler: the other text.
    """

    stated: list[np.ndarray]
    fitted: list[list[np.ndarray]]
    new: list[np.ndarray]
    behind: list[np.ndarray]
    answers: np.ndarray


def facts(tokenizer: Tokenizer, count: int) -> Facts:
    """The first ``count`` facts."""

    def tokens(text: str) -> np.ndarray:
        return np.asarray(tokenizer.encode(text, add_special=False).tokens_T)

    pairs = FACTS[:count]
    asked = [tokens(NEW.format(place)) for place, _ in pairs]
    whole = [tokens(f"{NEW.format(place)} {thing}") for place, thing in pairs]
    return Facts(
        stated=[tokens(STATED.format(place, thing)) for place, thing in pairs],
        fitted=[[tokens(ask.format(place)) for ask in FITTED] for place, _ in pairs],
        new=asked,
        behind=[tokens(FILLER + NEW.format(place)) for place, _ in pairs],
        answers=np.array([int(long[len(short)]) for long, short in zip(whole, asked, strict=True)]),
    )


def ordinary(tokenizer: Tokenizer, count: int, length: int, bos: int) -> list[np.ndarray]:
    """Token ids of running text about something else, BOS first."""
    texts = [text for text in reference_texts().values() if len(text) > 8 * length][:count]
    found = []
    for text in texts:
        tokens_T = tokenizer.encode(" ".join(text.split()), add_special=False).tokens_T
        found.append(np.concatenate([[bos], tokens_T])[:length].astype(np.int32))
    return found
