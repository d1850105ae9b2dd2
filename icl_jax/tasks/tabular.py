"""Real rows: the diabetes data that ship inside scikit-learn (442 patients, 10 features)."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.tasks.prompt import Prompt, check_sample

FEATURES = ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6")
SPLITS = ("train", "test")


@dataclass(frozen=True)
class Diabetes:
    """Prompts of patients, examples and query drawn without replacement from one half of the rows.

    Only one table exists, so a learner could memorise one function and never read its context. Each
    prompt therefore shows the table in a way of its own: ``input_width`` features drawn without
    replacement from ``columns``, in random order, and a random sign on each feature and on the
    target. With no example to read, zero is the best prediction. The rows are split once and for
    all: "train" and "test" prompts share no patient.

    Features and target are standardised with mean and deviation of the training rows. Labels are
    real, noise included; so the query's target is noisy here, and no predictor reaches loss zero.

    Attributes:
      input_width: D, at most the number of ``columns``.
      split: "train" or "test": 221 rows each, so at most 220 examples.
      columns: the features to draw from; as many as ``input_width`` fixes the set.

    Raises:
      ValueError: an unknown split or column, a column given twice, or too few columns.

    Source: Efron et al. 2004, "Least Angle Regression", for the data.
    """

    input_width: int
    split: str = "train"
    columns: tuple[str, ...] = FEATURES

    def __post_init__(self) -> None:
        checks.positive_int("Diabetes", "input_width", self.input_width)
        checks.one_of("Diabetes", "split", self.split, SPLITS)
        for column in self.columns:
            checks.one_of("Diabetes", "columns", column, FEATURES)
        if len(set(self.columns)) < len(self.columns):
            raise ValueError(f"Diabetes: columns must not repeat, got {self.columns}.")
        if self.input_width > len(self.columns):
            raise ValueError(
                f"Diabetes: input_width must be at most {len(self.columns)}, the number of "
                f"columns to draw from, got {self.input_width}."
            )

    def sample(self, key: Array, *, num_examples: int, dtype: Any = jnp.float32) -> Prompt:
        """Draws rows, columns and signs.

        Raises:
          ValueError: more examples than the split has rows, less one for the query.
          ImportError: scikit-learn is not installed.
        """
        check_sample("Diabetes.sample", num_examples, dtype)
        features, targets = load_split(self.split)
        num_rows = len(targets)
        if num_examples >= num_rows:
            raise ValueError(
                f"Diabetes.sample: num_examples must be at most {num_rows - 1} (split "
                f"{self.split!r} has {num_rows} rows, one of them the query), got {num_examples}."
            )
        pool = [FEATURES.index(column) for column in self.columns]
        rows_key, columns_key, signs_key, target_key = jax.random.split(key, 4)
        rows_T = jax.random.permutation(rows_key, num_rows)[: num_examples + 1]
        columns_D = jax.random.permutation(columns_key, len(pool))[: self.input_width]
        signs_D = jax.random.rademacher(signs_key, (self.input_width,), dtype)
        target_sign = jax.random.rademacher(target_key, (), dtype)
        drawn_TD = jnp.asarray(features[:, pool], dtype)[rows_T][:, columns_D]
        inputs_TD = drawn_TD * signs_D[None, :]
        targets_T = jnp.asarray(targets, dtype)[rows_T] * target_sign
        return Prompt(inputs_TD[:-1], targets_T[:-1], inputs_TD[-1], targets_T[-1])


@functools.cache
def load_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Features (221, 10) and targets (221,) of one half of the rows, standardised, read-only.

    Raises:
      ImportError: scikit-learn is not installed.
    """
    checks.one_of("load_split", "split", split, SPLITS)
    try:
        from sklearn.datasets import load_diabetes
    except ImportError as error:
        raise ImportError(
            "The diabetes task reads its data from scikit-learn, which is not installed: "
            'pip install "icl_jax[experiments]".'
        ) from error
    features, targets = load_diabetes(return_X_y=True, scaled=False)
    order = np.random.default_rng(0).permutation(len(targets))
    train, test = np.array_split(order, 2)
    chosen = train if split == "train" else test
    arrays = tuple(
        (table[chosen] - table[train].mean(0)) / table[train].std(0)
        for table in (features, targets)
    )
    for array in arrays:
        array.setflags(write=False)
    return arrays
