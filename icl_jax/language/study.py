"""Calibration queries for a context, when nobody has given any."""

from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np

from icl_jax import checks
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.dims import Array, Params
from icl_jax.language.generation import generate
from icl_jax.language.sampling import Sampling

#: As the model itself is: nothing is cut off, nothing sharpened.
PLAIN = Sampling(1.0)


def self_study(
    model: LanguageModel,
    params: Params,
    context_T: Any,
    stems: Sequence[Any],
    num_tokens: int,
    key: Array,
    *,
    bos: int | None = None,
    sampling: Sampling = PLAIN,
    stop: Collection[int] = (),
) -> list[np.ndarray]:
    """Queries sampled from the model itself with the context in front: stem and continuation.

    Args:
      model: a causal model with a head.
      params: its parameters.
      context_T: (T,), the context's token ids, without a BOS.
      stems: token ids of the beginning of each query; an empty one asks for whatever follows.
      num_tokens: how many to write after each.
      key: of the draws; query b has the draws of ``fold_in(key, b)``.
      bos: the token in front of everything, if there is one.
      sampling: by default from the model's own distribution.
      stop: tokens after which a query ends (they are kept).

    Returns:
      The token ids of each query, without the context.

    Raises:
      ValueError: no stems, or what ``generate`` refuses.
      TypeError: tokens that are not integers, or no PRNG key.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> stems = [[], [8, 9]]  # whatever follows, and what begins so
      >>> queries = self_study(model, params, [5, 6, 7], stems, 4, jax.random.key(1), bos=2)
      >>> [len(query) for query in queries], queries[1][:2].tolist()
      ([4, 6], [8, 9])
    """
    if not len(stems):
        raise ValueError(
            "self_study: stems is empty. Give the beginning of each query; [] is one that says "
            "nothing yet."
        )
    checks.prng_key("self_study", "key", key)
    lead = _listed("bos", [] if bos is None else [bos])
    context = _listed("context_T", context_T)
    begun = [_listed(f"stems[{number}]", stem) for number, stem in enumerate(stems)]
    prompts = [[*lead, *context, *stem] for stem in begun]
    written = generate(model, params, prompts, num_tokens, sampling=sampling, key=key, stop=stop)
    return [
        np.asarray([*stem, *np.asarray(new_N).tolist()], np.int32)
        for stem, new_N in zip(begun, jax.device_get(written), strict=True)
    ]


def _listed(name: str, values: Any) -> list[int]:
    found: list[int] = checks.token_list("self_study", name, values).tolist()
    return found


def own_queries(context_T: Any, length: int) -> list[np.ndarray]:
    """The context's own tokens as queries: windows of ``length``, each half in the one before.

    A query that repeats a part of the context asks what the context says there.

    Raises:
      ValueError: a length below 1, an empty context, or what no token has as its id.
      TypeError: tokens that are not integers.

    Examples:
      >>> [query.tolist() for query in own_queries([1, 2, 3, 4, 5], 4)]
      [[1, 2, 3, 4], [3, 4, 5]]
    """
    checks.positive_int("own_queries", "length", length)
    context = checks.token_list("own_queries", "context_T", context_T)
    if not len(context):
        raise ValueError("own_queries: context_T is empty; there is nothing to ask about.")
    step = max(1, length // 2)
    starts = range(0, max(1, len(context) - step), step)
    return [context[start : start + length] for start in starts]
