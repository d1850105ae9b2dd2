"""Which token comes next."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator


@dataclass(frozen=True)
class Sampling:
    """How a token is drawn; the defaults take the most probable one (greedy).

    Attributes:
      temperature: by which logits are divided; 0 is greedy.
      top_k: draw from the k most probable tokens only; None for all.
      top_p: draw from the fewest most probable tokens that have this much probability together
        (Holtzman et al., arXiv 1904.09751); None for all.
      min_p: draw from those that have at least this share of the most probable one's probability
        (Nguyen et al., arXiv 2407.01082); None for all.
      repetition_penalty: by which the logits of tokens that the text has already are divided where
        positive, and multiplied where negative (Keskar et al., arXiv 1909.05858, with the sign as
        ``transformers`` has it); 1 changes nothing. Greedy sampling knows it, too.

    Examples:
      >>> Sampling(temperature=0.7, top_p=0.9).top_k is None
      True
    """

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        checks.non_negative("Sampling", "temperature", self.temperature)
        if self.top_k is not None:
            checks.positive_int("Sampling", "top_k", self.top_k)
        top_p, min_p = self.top_p, self.min_p
        if top_p is not None and not (checks.is_number(top_p) and 0 < top_p <= 1):
            raise ValueError(f"Sampling: top_p must lie in (0, 1], got {top_p!r}.")
        if min_p is not None and not (checks.is_number(min_p) and 0 <= min_p <= 1):
            raise ValueError(f"Sampling: min_p must lie in [0, 1], got {min_p!r}.")
        checks.positive("Sampling", "repetition_penalty", self.repetition_penalty)


GREEDY = Sampling()


@functools.partial(jax.jit, static_argnames="sampling")
def draw_token(
    key: Array, logits_V: Array, sampling: Sampling = GREEDY, seen_V: Array | None = None
) -> Array:
    """A token id (), int32; the same key and nearly the same logits give the same token.

    Args:
      key: of the draw; greedy sampling does not use it.
      logits_V: (V,).
      sampling: how.
      seen_V: (V,), which tokens the text has already; asked for by a ``repetition_penalty``.

    Raises:
      ValueError: a penalty, and nobody says for which tokens.
      TypeError: no PRNG key.
    """
    checks.prng_key("draw_token", "key", key)
    if sampling.repetition_penalty != 1:
        if seen_V is None:
            raise ValueError("draw_token: repetition_penalty needs seen_V, the tokens so far.")
        logits_V = logits_V.astype(accumulator(logits_V.dtype))
        penalty = sampling.repetition_penalty
        less_V = jnp.where(logits_V < 0, logits_V * penalty, logits_V / penalty)
        logits_V = jnp.where(seen_V, less_V, logits_V)
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
    if sampling.min_p:
        least = jnp.max(scaled_V) + jnp.log(jnp.asarray(sampling.min_p, scaled_V.dtype))
        scaled_V = jnp.where(scaled_V < least, -jnp.inf, scaled_V)
    return jax.random.categorical(key, scaled_V).astype(jnp.int32)
