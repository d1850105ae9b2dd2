"""Classification prompts for language models: real rows as short texts, labels as words.

    alcohol high, hue low, proline high -> first
    alcohol low, hue mid, proline low ->

The rows are those that ship inside scikit-learn. A prompt shows some of them with their labels and
asks for the label of another. Features are told by the third of the training rows they fall into,
the few that tell the classes apart best.
"""

import functools
from dataclasses import dataclass

import numpy as np

from icl_jax import checks

SPLITS = ("train", "test")
LEVELS = ("low", "mid", "high")

#: By data set, the words for its classes. Diabetes, a regression, asks for the half.
LABELS: dict[str, tuple[str, ...]] = {
    "wine": ("first", "second", "third"),
    "breast_cancer": ("bad", "good"),
    "diabetes": ("less", "more"),
    "digits": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
}


@dataclass(frozen=True)
class ClassificationPrompt:
    """Demonstrations and a query, in words.

    Attributes:
      demonstrations: the text of each, up to where its label comes.
      labels: the class of each.
      query: the text of the query, up to where its label would come.
      answer: the class of the query.

    Examples:
      >>> prompt = Classification("wine", num_features=1).sample(np.random.default_rng(0), 1, 2)[0]
      >>> prompt.demonstrations, prompt.labels
      (('flavanoids high', 'flavanoids mid'), (0, 1))
      >>> prompt.query, prompt.answer
      ('flavanoids mid', 0)
    """

    demonstrations: tuple[str, ...]
    labels: tuple[int, ...]
    query: str
    answer: int


@dataclass(frozen=True)
class Classification:
    """A data set as prompts.

    Attributes:
      name: one of ``LABELS``.
      num_features: how many features a row is told by.
      split: "train" or "test" rows, a half each, split once and for all.

    Raises:
      ValueError: an unknown name or split, or more features than there are.
      ImportError: scikit-learn is not installed.

    Examples:
      >>> task = Classification("breast_cancer", num_features=2, split="test")
      >>> prompt = task.sample(np.random.default_rng(0), num_prompts=1, num_examples=8)[0]
      >>> len(prompt.demonstrations), prompt.query
      (8, 'worst radius mid, worst perimeter mid')
    """

    name: str
    num_features: int = 3
    split: str = "train"

    def __post_init__(self) -> None:
        checks.one_of("Classification", "name", self.name, tuple(LABELS))
        checks.one_of("Classification", "split", self.split, SPLITS)
        checks.positive_int("Classification", "num_features", self.num_features)
        available = len(_table(self.name)[2])
        if self.num_features > available:
            raise ValueError(
                f"Classification: num_features must be at most {available} for {self.name!r}, got "
                f"{self.num_features}."
            )

    def sample(
        self, rng: np.random.Generator, num_prompts: int, num_examples: int
    ) -> list[ClassificationPrompt]:
        """Draws rows without replacement for every prompt.

        Raises:
          ValueError: more examples than the split has rows, less one for the query.
        """
        texts, labels = _texts(self.name, self.num_features, self.split)
        if not 1 <= num_examples < len(texts):
            raise ValueError(
                f"Classification.sample: num_examples must be from 1 to {len(texts) - 1} (split "
                f"{self.split!r} of {self.name!r} has {len(texts)} rows, one of them the query), "
                f"got {num_examples}."
            )
        prompts = []
        for _ in range(num_prompts):
            rows = rng.choice(len(texts), num_examples + 1, replace=False)
            told = [(texts[row], int(labels[row])) for row in rows]
            prompts.append(
                ClassificationPrompt(
                    tuple(text for text, _ in told[:-1]),
                    tuple(label for _, label in told[:-1]),
                    *told[-1],
                )
            )
        return prompts


@functools.cache
def _table(name: str) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Features (R, F), classes (R,) and the names of the features."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "Classification prompts are made of rows from scikit-learn, which is not installed: "
            'pip install "icl_jax[experiments]".'
        ) from error
    found = getattr(datasets, f"load_{name}")()
    names = tuple(str(each).replace("_", " ") for each in found.feature_names)
    labels = found.target
    if name == "diabetes":
        labels = (labels > np.median(labels)).astype(int)
    return np.asarray(found.data), np.asarray(labels), names


@functools.cache
def _texts(name: str, num_features: int, split: str) -> tuple[tuple[str, ...], np.ndarray]:
    """The rows of a split as texts, and their classes."""
    features, labels, names = _table(name)
    order = np.random.default_rng(0).permutation(len(labels))
    train, test = np.array_split(order, 2)
    # The training rows choose the features and the thirds.
    scores = _separation(features[train], labels[train])
    chosen = np.sort(np.argsort(-scores, kind="stable")[:num_features])
    rows = train if split == "train" else test
    thirds = np.quantile(features[train][:, chosen], [1 / 3, 2 / 3], axis=0)
    levels = (features[rows][:, chosen][None] > thirds[:, None, :]).sum(axis=0)
    texts = tuple(
        ", ".join(f"{names[f]} {LEVELS[level]}" for f, level in zip(chosen, row, strict=True))
        for row in levels
    )
    return texts, labels[rows]


def _separation(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The variance of the classes' means over that within classes, per feature (F,)."""
    groups = [features[labels == label] for label in np.unique(labels)]
    between = np.var([group.mean(axis=0) for group in groups], axis=0)
    within = np.mean([group.var(axis=0) for group in groups], axis=0)
    return np.divide(between, within, out=np.zeros_like(between), where=within > 0)
