"""Whether a contextual layer is what it says it is: for the author of one.

Patches, trajectories and generation ask a layer four questions (``views.py``) and believe what it
declares. A layer that ignores ``present_T``, say, makes every patch wrong without an error; here it
is found out on random sequences.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.views import Slots, free_slots, occupy
from icl_jax.dims import Array, Params, accumulator


def check_layer(
    layer: ContextualLayer,
    *,
    width: int = 8,
    length: int = 6,
    params: Params = None,
    key: Array | None = None,
) -> None:
    """Holds a layer's answers about parts of a sequence against runs on the parts themselves.

    Args:
      layer: an unbound layer.
      width: D.
      length: T, of the sequences.
      params: its parameters; when left out, drawn and moved, as what begins with zeros hides much.
      key: of the random numbers.

    Raises:
      ValueError: parameters with which the layer says nothing but zeros, which shows nothing; or a
        list of what does not hold: absent positions that matter (``present_T``), a causal
        layer that looks ahead, prefixes, suffixes or extensions (padded ones, too) that differ
        from truncated runs,
        weights that do not add up to 1 (with a sink's) where the layer says that they do, or a sum
        that ``parts`` does not open.
      TypeError: no PRNG key.

    Examples:
      >>> check_layer(SoftmaxAttention(num_heads=2), length=4)  # silent: it is what it says
    """
    key = jax.random.key(0) if key is None else key
    checks.prng_key("check_layer", "key", key)
    keys = jax.random.split(key, 2)
    stream_TD = jax.random.normal(keys[0], (length, width))
    if params is None:
        params = _drawn(layer, keys[1], stream_TD)

    def ask(method: str | None, *args: Any, **kwargs: Any) -> Any:
        return layer.apply({"params": params}, *args, method=method, **kwargs)

    limit = 100 * float(jnp.finfo(accumulator(stream_TD.dtype)).eps) * length * width
    wrong = [
        f"{claim}: differs by {error:.1e}"
        for claim, error in _errors(layer, ask, stream_TD)
        if not error <= limit
    ]
    if wrong:
        raise ValueError(
            f"check_layer: {type(layer).__name__} is not what it says: {'; '.join(wrong)}. What is "
            "expected stands in the docstrings of ContextualLayer."
        )


def _errors(layer: ContextualLayer, ask: Any, stream_TD: Array) -> Iterator[tuple[str, float]]:
    """Every claim with the largest relative error of it."""
    length = stream_TD.shape[0]
    positions_T = jnp.arange(length, dtype=jnp.int32)
    whole_TD = ask(None, stream_TD)
    if not np.any(np.asarray(whole_TD)):
        raise ValueError(
            f"check_layer: with these params {type(layer).__name__} gives zeros only, whatever it "
            "reads. Give others, which no kernel of zeros is among."
        )

    there = jnp.array([t for t in range(length) if t not in (1, length - 2)])
    present_T = jnp.zeros(length, bool).at[there].set(True)
    short_KD = ask(None, stream_TD[there], positions_T=positions_T[there])
    yield (
        "present_T (absent positions must not matter)",
        _error(ask(None, stream_TD, present_T=present_T)[there], short_KD),
    )
    if layer.causal:
        cut = length // 2
        yield (
            "causal (what comes later must not matter)",
            _error(whole_TD[:cut], ask(None, stream_TD[:cut])),
        )
    context_ND, query_D = stream_TD[:-1], stream_TD[-1]
    probes_MD = jnp.broadcast_to(query_D[None], stream_TD.shape)
    context_out_ND, probes_out_MD = ask("prefixes", context_ND, probes_MD, positions_M=positions_T)
    runs = [ask(None, jnp.concatenate([context_ND[:i], query_D[None]]))[-1] for i in range(length)]
    yield "prefixes (probes)", _error(probes_out_MD, jnp.stack(runs))
    yield "prefixes (context)", _error(context_out_ND, ask(None, context_ND))
    runs = [ask(None, stream_TD[i:], positions_T=positions_T[i:])[-1] for i in range(length)]
    suffixes_MD = ask("suffixes", context_ND, query_D, positions_T=positions_T)
    yield "suffixes", _error(suffixes_MD, jnp.stack(runs))
    if layer.has_memory:
        yield (
            "extend (a sequence in two pieces)",
            _error(_extended(layer, ask, stream_TD, positions_T), whole_TD),
        )
        yield (
            "extend (padding behind a prompt must not matter)",
            _error(_padded(layer, ask, stream_TD, positions_T), whole_TD),
        )
    if layer.is_sum:
        weights_ATT, passed_ATD = ask("parts", stream_TD)
        if layer.normalised:
            sums = jnp.sum(weights_ATT, axis=-1)
            if layer.has_sink:
                sums = sums + ask("sink_weights", stream_TD)
            yield "normalised (weights must add up to 1)", _error(sums, jnp.ones_like(sums))
        sums_TD = jnp.einsum("atj,ajd->td", weights_ATT, passed_ATD, precision="highest")
        offset_D = (whole_TD - sums_TD)[0]  # An output bias is no part of the sum.
        yield "parts (their sum must be the output)", _error(sums_TD + offset_D[None], whole_TD)


def _extended(layer: ContextualLayer, ask: Any, stream_TD: Array, positions_T: Array) -> Array:
    """The sequence read in two pieces through a memory."""
    length, width = stream_TD.shape
    memory = layer.empty_memory(length + 2, width, stream_TD.dtype)
    slots: Slots = free_slots(length + 2)
    outputs = []
    for start, stop in ((0, 2), (2, length)):
        slots = occupy(slots, start, positions_T[start:stop])
        (out_MD,), (memory,) = ask("extend", (stream_TD[start:stop],), (memory,), (slots,))
        outputs.append(out_MD)
    return jnp.concatenate(outputs)


def _padded(layer: ContextualLayer, ask: Any, stream_TD: Array, positions_T: Array) -> Array:
    """The same, the first piece padded behind to a bucket, as generation reads prompts."""
    length, width = stream_TD.shape
    cut = length // 2
    slots: Slots = free_slots(length + 2)
    memory = layer.empty_memory(length + 2, width, stream_TD.dtype)
    # What pads a prompt is its last token again.
    places = np.minimum(np.arange(cut + 2), cut - 1)
    slots = occupy(slots, 0, positions_T[places], jnp.arange(cut + 2) < cut)
    (first_MD,), (memory,) = ask("extend", (stream_TD[places],), (memory,), (slots,))
    slots = occupy(slots, cut + 2, positions_T[cut:])
    (rest_MD,), _ = ask("extend", (stream_TD[cut:],), (memory,), (slots,))
    return jnp.concatenate([first_MD[:cut], rest_MD])


def _drawn(layer: ContextualLayer, key: Array, stream_TD: Array) -> Params:
    """Parameters of a layer, none of them zero or one throughout."""
    keys = jax.random.split(key)
    params = layer.init(keys[0], stream_TD).get("params", {})
    leaves, tree = jax.tree.flatten(params)
    noises = jax.random.split(keys[1], max(len(leaves), 1))
    moved = [
        leaf + 0.1 * jax.random.normal(noise, leaf.shape, leaf.dtype)
        for leaf, noise in zip(leaves, noises[: len(leaves)], strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def _error(got: Array, want: Array) -> float:
    actual, expected = (np.asarray(one, np.float64) for one in (got, want))
    return float(np.max(np.abs(actual - expected)) / max(np.max(np.abs(expected)), 1e-30))
