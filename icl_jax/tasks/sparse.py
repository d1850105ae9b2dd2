"""Linear functions that read only a few coordinates of the input."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.tasks.prompt import Prompt, check_sample, noisy_prompt


@dataclass(frozen=True)
class SparseLinearRegression:
    """``y = w . x + noise``, where ``w ~ N(0, I)`` keeps ``num_nonzero`` uniformly drawn entries.

    Attributes:
      input_width: D.
      num_nonzero: how many coordinates matter, 1 to D.
      noise_std: standard deviation of the noise on the examples' labels.

    Raises:
      ValueError: a size or the noise is not what it has to be.

    Source: Garg et al. 2022 (arXiv 2208.01066), section 5 (3 of 20 coordinates).
    """

    input_width: int
    num_nonzero: int
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        where = "SparseLinearRegression"
        checks.positive_int(where, "input_width", self.input_width)
        checks.positive_int(where, "num_nonzero", self.num_nonzero)
        checks.non_negative(where, "noise_std", self.noise_std)
        if self.num_nonzero > self.input_width:
            raise ValueError(
                f"{where}: num_nonzero must be at most input_width = {self.input_width}, got "
                f"{self.num_nonzero}."
            )

    def sample(self, key: Array, *, num_examples: int, dtype: Any = jnp.float32) -> Prompt:
        """Draws inputs, weights, which of them count, and noise."""
        check_sample("SparseLinearRegression.sample", num_examples, dtype)
        inputs_key, weights_key, support_key, noise_key = jax.random.split(key, 4)
        inputs_TD = jax.random.normal(inputs_key, (num_examples + 1, self.input_width), dtype)
        dense_D = jax.random.normal(weights_key, (self.input_width,), dtype)
        support_D = jax.random.permutation(support_key, self.input_width) < self.num_nonzero
        weights_D = jnp.where(support_D, dense_D, 0)
        values_T = jnp.matmul(inputs_TD, weights_D, precision=jax.lax.Precision.HIGHEST)
        return noisy_prompt(noise_key, inputs_TD, values_T, self.noise_std)
