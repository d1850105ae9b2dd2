"""A record of both models on the same prompts: the trained learner and its null."""

from dataclasses import dataclass
from typing import Generic, TypeVar

from experiments.tools.arrays import Names, under

One = TypeVar("One")

MODELS = ("trained", "untrained")


def names_of_both(names: Names) -> Names:
    """The names of the mappings in the records of both."""
    return {path: told for model in MODELS for path, told in under(model, names).items()}


@dataclass(frozen=True)
class Both(Generic[One]):
    """What was measured of each; a subclass names the record, so that it is read back as one."""

    trained: One
    untrained: One

    def of(self, model: str) -> One:
        """By its name in ``MODELS``."""
        return self.trained if model == "trained" else self.untrained
