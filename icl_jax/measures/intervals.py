"""Error bars: how far a mean over prompts could be off."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array


class Interval(NamedTuple):
    """A mean and the ends of its interval, each of the shape of one prompt's value."""

    mean: Array
    low: Array
    high: Array


def bootstrap_mean(
    key: Array, values_B: Array, *, level: float = 0.95, num_resamples: int = 500
) -> Interval:
    """The mean over the first axis with its percentile bootstrap interval.

    Args:
      key: PRNG key of the resampling.
      values_B: (B, ...), one value (or curve) per prompt; prompts are resampled, curves kept whole.
      level: probability covered.
      num_resamples: bootstrap samples.

    Raises:
      ValueError: fewer than two prompts, or a level outside (0, 1).

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    if jnp.ndim(values_B) < 1 or values_B.shape[0] < 2:
        raise ValueError(
            f"bootstrap_mean: values_B needs at least two prompts, got shape {values_B.shape}."
        )
    if not 0 < level < 1:
        raise ValueError(f"bootstrap_mean: level must lie in (0, 1), got {level!r}.")
    checks.positive_int("bootstrap_mean", "num_resamples", num_resamples)
    count = values_B.shape[0]

    # How often each prompt is drawn, then one product: no resampled copy of the data is built.
    draws_SB = jax.random.randint(key, (num_resamples, count), 0, count)
    weights_SB = jax.vmap(lambda draw_B: jnp.bincount(draw_B, length=count))(draws_SB)
    flat_BX = values_B.reshape(count, -1)
    means_SX = weights_SB.astype(flat_BX.dtype) @ flat_BX / count
    tail = (1 - level) / 2
    ends = jnp.quantile(means_SX, jnp.asarray([tail, 1 - tail], flat_BX.dtype), axis=0)
    shape = values_B.shape[1:]
    return Interval(jnp.mean(values_B, axis=0), ends[0].reshape(shape), ends[1].reshape(shape))
