"""Error bars: how far a mean over prompts could be off."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator

# Each is held as an index and as a count: a gigabyte in all.
_MOST_DRAWS = 2**27


class Interval(NamedTuple):
    """A mean and the ends of its interval, each of the shape of one prompt's value.

    Examples:
      >>> values = jnp.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])  # three prompts, two points each
      >>> found = bootstrap_mean(jax.random.key(0), values)
      >>> found.mean.tolist(), (found.low < found.high).tolist()  # the second point never differs
      ([2.0, 5.0], [True, False])
    """

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

    Returns:
      The interval, in float32 or wider.

    Raises:
      ValueError: fewer than two prompts, a level outside (0, 1), or more draws than memory holds.
      TypeError: values that are not floating point, or no PRNG key.

    Examples:
      >>> found = bootstrap_mean(jax.random.key(0), jnp.array([1.0, 2.0, 3.0, 4.0]))
      >>> float(found.mean), bool(found.low < found.mean < found.high)
      (2.5, True)

    Source: Efron 1979, "Bootstrap methods: another look at the jackknife".
    """
    checks.prng_key("bootstrap_mean", "key", key)
    checks.floating("bootstrap_mean", "values_B", values_B)
    if jnp.ndim(values_B) < 1 or values_B.shape[0] < 2:
        raise ValueError(
            f"bootstrap_mean: values_B needs at least two prompts, got shape {jnp.shape(values_B)}."
        )
    check_resampling("bootstrap_mean", values_B.shape[0], level, num_resamples)

    flat_BX = values_B.reshape(values_B.shape[0], -1).astype(accumulator(values_B.dtype))
    means_SX = resampled_means(key, flat_BX, num_resamples)
    ends = (shaped.reshape(values_B.shape[1:]) for shaped in percentile_ends(means_SX, level))
    return Interval(jnp.mean(flat_BX, axis=0).reshape(values_B.shape[1:]), *ends)


def check_resampling(where: str, count: int, level: float, num_resamples: int) -> None:
    """Raises ValueError unless ``num_resamples`` draws of ``count`` prompts can be made."""
    if not (checks.is_number(level) and 0 < level < 1):
        raise ValueError(f"{where}: level must lie in (0, 1), got {level!r}.")
    checks.positive_int(where, "num_resamples", num_resamples)
    if num_resamples * count > _MOST_DRAWS:
        raise ValueError(
            f"{where}: num_resamples={num_resamples} of {count} prompts are more than "
            f"{_MOST_DRAWS:,} draws. Take at most {max(1, _MOST_DRAWS // count)}; 500 are usual."
        )


def resampled_means(key: Array, values_BX: Array, num_resamples: int) -> Array:
    """The means over B of ``num_resamples`` resamples of the rows, (S, X), all columns together."""
    count = values_BX.shape[0]
    # How often each prompt is drawn, then one product: no resampled copy of the data is built.
    draws_SB = jax.random.randint(key, (num_resamples, count), 0, count)
    weights_SB = jax.vmap(lambda draw_B: jnp.bincount(draw_B, length=count))(draws_SB)
    sums_SX = jnp.matmul(
        weights_SB.astype(values_BX.dtype), values_BX, precision=jax.lax.Precision.HIGHEST
    )
    return sums_SX / count


def percentile_ends(samples_SX: Array, level: float) -> Array:
    """The lower and the upper ends between which a share ``level`` of the samples lies, (2, X)."""
    tail = (1 - level) / 2
    return jnp.quantile(samples_SX, jnp.asarray([tail, 1 - tail], samples_SX.dtype), axis=0)
