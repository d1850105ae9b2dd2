"""Two-layer ReLU networks with random weights."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.tasks.prompt import Prompt, check_sample, noisy_prompt


@dataclass(frozen=True)
class TwoLayerNetwork:
    """``y = sqrt(2 / H) relu(x W) . a + noise`` with Gaussian ``x``, ``W`` and ``a``.

    The factor makes ``E[y^2] = D``, as for a linear function with unit weights.

    Attributes:
      input_width: D.
      num_hidden: H.
      noise_std: standard deviation of the noise on the examples' labels.

    Raises:
      ValueError: a size or the noise is not what it has to be.

    Source: Garg et al. 2022 (arXiv 2208.01066), section 5 (100 hidden units).
    """

    input_width: int
    num_hidden: int = 100
    noise_std: float = 0.0

    def __post_init__(self) -> None:
        checks.positive_int("TwoLayerNetwork", "input_width", self.input_width)
        checks.positive_int("TwoLayerNetwork", "num_hidden", self.num_hidden)
        checks.non_negative("TwoLayerNetwork", "noise_std", self.noise_std)

    def sample(self, key: Array, *, num_examples: int, dtype: Any = jnp.float32) -> Prompt:
        """Draws inputs, both layers, and noise."""
        check_sample("TwoLayerNetwork.sample", num_examples, dtype)
        inputs_key, first_key, second_key, noise_key = jax.random.split(key, 4)
        highest = jax.lax.Precision.HIGHEST
        inputs_TD = jax.random.normal(inputs_key, (num_examples + 1, self.input_width), dtype)
        first_DH = jax.random.normal(first_key, (self.input_width, self.num_hidden), dtype)
        second_H = jax.random.normal(second_key, (self.num_hidden,), dtype)
        hidden_TH = jax.nn.relu(jnp.matmul(inputs_TD, first_DH, precision=highest))
        scale = math.sqrt(2 / self.num_hidden)
        values_T = scale * jnp.matmul(hidden_TH, second_H, precision=highest)
        return noisy_prompt(noise_key, inputs_TD, values_T, self.noise_std)
