"""Contexts compiled one by one, and what their patches do alone, added up, and elsewhere."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.learner import read_out
from experiments.regression.reusable.sides import (
    Split,
    calibration,
    in_context,
    predictions,
    streams,
)
from icl_jax.blocks.functional import functional
from icl_jax.blocks.stack import Stack
from icl_jax.dims import Array, Params
from icl_jax.dynamics.composition import compare_static
from icl_jax.patches.fit import Fit
from icl_jax.patches.ladder import fit_static
from icl_jax.patches.static_patch import (
    StaticPatch,
    combine_static,
    scale_static,
    static_forward,
)
from icl_jax.stack.layers import PerLayer
from icl_jax.tasks.prompt import Prompt

Patches = PerLayer[StaticPatch]


def compiled(
    stack: Stack, params: Params, prompts: Prompt, split: Split, weight: float | Array, key: Array
) -> dict[str, Patches]:
    """What every prompt's examples are compiled to, with a leading axis B.

    Returns:
      ``whole``: all examples. ``first``, ``second``: a half of them. ``shuffled``: all in another
      order. ``token``: all for a single query, which is a token patch.
    """
    count, half = split.examples, split.examples // 2
    keys_B = jax.random.split(key, prompts.targets_N.shape[0])
    orders: dict[str, Any] = {
        "whole": np.arange(count),
        "first": np.arange(half),
        "second": np.arange(half, 2 * half),
        "shuffled": jax.vmap(lambda one: jax.random.permutation(one, count))(keys_B),
        "token": np.arange(count),
    }
    found = {}
    for name, order in orders.items():
        order_BN = jnp.broadcast_to(jnp.asarray(order), (len(keys_B), order.shape[-1]))
        run = (stack, params, prompts, split, order_BN, jnp.asarray(weight, jnp.float32))
        found[name] = _fitted(*run, single=name == "token")
    return found


@functools.partial(jax.jit, static_argnames=("stack", "split", "single"))
def _fitted(
    stack: Stack,
    params: Params,
    prompts: Prompt,
    split: Split,
    order_BN: Array,
    weight: Array,
    *,
    single: bool,
) -> Patches:
    """Patches of the examples in an order, for the calibration queries or for one alone."""
    count, fit = (1, Fit("exact")) if single else (split.calibration, Fit())

    def one(pair: tuple[Prompt, Array]) -> Patches:
        prompt, order_N = pair
        context_ND, asked_QD = streams(stack, params, prompt, split)
        queries = calibration(context_ND[order_N], asked_QD[:count], np.ones(count, bool))
        return fit_static(functional(stack, params), queries, fit, weight=weight)

    return jax.lax.map(one, (prompts, order_BN), batch_size=8)


@functools.partial(jax.jit, static_argnames=("stack", "split"))
def answered(
    stack: Stack, params: Params, prompts: Prompt, split: Split, patches: Patches | None
) -> Array:
    """Predictions (B, Q) of all queries without a context, by each prompt's patches or by none."""

    def one(pair: tuple[Prompt, Any]) -> Array:
        prompt, patches = pair
        asked_QD = streams(stack, params, prompt, split)[1]
        return predictions(stack, params, asked_QD, patches)

    return jax.lax.map(one, (prompts, patches), batch_size=8)


@functools.partial(jax.jit, static_argnames=("stack", "split"))
def with_context(
    stack: Stack, params: Params, prompts: Prompt, split: Split, patches: Patches | None
) -> Array:
    """The same (B, Q) with each prompt's own context, in a model that is patched or not."""
    layers = functional(stack, params)

    def one(pair: tuple[Prompt, Any]) -> Array:
        prompt, patches = pair
        context_ND, asked_QD = streams(stack, params, prompt, split)
        if patches is None:
            return in_context(stack, params, context_ND, asked_QD)

        def ask(query_D: Array) -> Array:
            stream_TD = jnp.concatenate([context_ND, query_D[None]])
            return read_out(stack, params, static_forward(layers, stream_TD, patches))[-1]

        return jax.vmap(ask)(asked_QD)

    return jax.lax.map(one, (prompts, patches), batch_size=8)


def of_others(patches: Patches, shift: int = 1) -> Patches:
    """Every prompt's patches given to the prompt ``shift`` further on."""
    return jax.tree.map(lambda leaf: jnp.roll(leaf, shift, axis=0), patches)


@functools.partial(jax.jit, static_argnames="strength")
def added(*patches: Patches, strength: float = 1.0) -> Patches:
    """The sum of every prompt's patches, at a strength."""

    def one(*own: Patches) -> Patches:
        return scale_static(combine_static(*own), strength)

    return jax.vmap(one)(*patches)


@jax.jit
def agreement(first: Patches, second: Patches) -> Array:
    """Cosine (B,) of two patches of every prompt, the mean over layers and sides."""

    def one(mine: Patches, other: Patches) -> Array:
        found = compare_static(mine, other).joined()
        sides = [side.cosine for side in (found.input, found.down) if side is not None]
        return jnp.mean(jnp.concatenate(sides))

    return jax.vmap(one)(first, second)
