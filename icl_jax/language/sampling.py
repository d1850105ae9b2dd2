"""Which token comes next."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.patches.low_rank import accumulator


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; the defaults take the most probable one (greedy).

    Attributes:
      temperature: by which logits are divided; 0 is greedy.
      top_k: draw from the k most probable tokens only; None for all.
      top_p: draw from the fewest most probable tokens that have this much probability together
        (Holtzman et al., arXiv 1904.09751); None for all.
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        checks.non_negative("Sampling", "temperature", self.temperature)
        if self.top_k is not None:
            checks.positive_int("Sampling", "top_k", self.top_k)
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"Sampling: top_p must lie in (0, 1], got {self.top_p}.")


GREEDY = Sampling()


@functools.partial(jax.jit, static_argnames="sampling")
def draw_token(key: Array, logits_V: Array, sampling: Sampling = GREEDY) -> Array:
    """A token id (), int32; the same key and nearly the same logits give the same token.

    Args:
      key: of the draw; greedy sampling does not use it.
      logits_V: (V,).
      sampling: how.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_V).astype(jnp.int32)
    scaled_V = logits_V.astype(accumulator(logits_V.dtype)) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scaled_V.shape[0]:
        least = jax.lax.top_k(scaled_V, sampling.top_k)[0][-1]
        scaled_V = jnp.where(scaled_V < least, -jnp.inf, scaled_V)
    if sampling.top_p is not None:
        ordered_V = jnp.sort(scaled_V, descending=True)
        before_V = jnp.cumsum(jax.nn.softmax(ordered_V)) - jax.nn.softmax(ordered_V)
        least = jnp.min(jnp.where(before_V < sampling.top_p, ordered_V, jnp.inf))
        scaled_V = jnp.where(scaled_V < least, -jnp.inf, scaled_V)
    return jax.random.categorical(key, scaled_V).astype(jnp.int32)
