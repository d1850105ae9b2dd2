"""Queries with their context, without, and without it in patched weights."""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.learner import embed, read_out
from icl_jax.blocks.functional import functional
from icl_jax.blocks.stack import Stack
from icl_jax.dims import Array, Params
from icl_jax.patches.calibration import Queries
from icl_jax.patches.fit import Fit
from icl_jax.patches.ladder import fit_static
from icl_jax.patches.static_patch import StaticPatch, static_forward
from icl_jax.stack.layers import PerLayer
from icl_jax.stack.run import forward
from icl_jax.tasks.prompt import Prompt


@dataclass(frozen=True)
class Split:
    """How a prompt's rows are used: N examples, then calibration, held-out and new queries."""

    examples: int
    calibration: int
    held_out: int
    new: int

    @property
    def rows(self) -> int:
        """How many rows a prompt needs."""
        return self.examples + self.calibration + self.held_out + self.new


def predictions(
    stack: Stack, params: Params, queries_QD: Array, patches: PerLayer[StaticPatch] | None
) -> Array:
    """Labels (Q,) of queries without a context, by plain or patched weights."""
    layers = functional(stack, params)

    def one(stream_1D: Array) -> Array:
        if patches is None:
            return read_out(stack, params, forward(layers, stream_1D))[0]
        return read_out(stack, params, static_forward(layers, stream_1D, patches))[0]

    return jax.vmap(one)(queries_QD[:, None])


def in_context(stack: Stack, params: Params, context_ND: Array, queries_QD: Array) -> Array:
    """The same with the context in front."""
    layers = functional(stack, params)

    def one(query_D: Array) -> Array:
        stream_TD = jnp.concatenate([context_ND, query_D[None]])
        return read_out(stack, params, forward(layers, stream_TD))[-1]

    return jax.vmap(one)(queries_QD)


def streams(stack: Stack, params: Params, prompt: Prompt, split: Split) -> tuple[Array, Array]:
    """The embedded examples (N, D), and all that follows them as queries (Q, D)."""
    tokens_XC = jnp.concatenate([prompt.inputs_ND, prompt.targets_N[:, None]], axis=1)
    asked_QC = jnp.pad(prompt.inputs_ND[split.examples :], ((0, 0), (0, 1)))
    context_ND = embed(stack, params, tokens_XC[: split.examples])
    return context_ND, embed(stack, params, asked_QC)


def calibration(context_ND: Array, queries_KD: Array, fitted_K: Any) -> Queries:
    """Queries of one token behind a context."""
    count, width = queries_KD.shape
    context_KND = jnp.broadcast_to(context_ND, (count, *context_ND.shape))
    return Queries(
        jnp.concatenate([context_KND, queries_KD[:, None]], axis=1),
        queries_KD[:, None],
        jnp.full((count, 1), context_ND.shape[0], jnp.int32),
        fitted_K[:, None],
    )


@functools.partial(jax.jit, static_argnames=("stack", "split"))
def ends(stack: Stack, params: Params, prompts: Prompt, split: Split) -> tuple[Array, Array]:
    """Predictions (B, Q) of the query alone, and with the context."""

    def one(prompt: Prompt) -> tuple[Array, Array]:
        context_ND, asked_QD = streams(stack, params, prompt, split)
        alone_Q = predictions(stack, params, asked_QD, None)
        return alone_Q, in_context(stack, params, context_ND, asked_QD)

    return jax.lax.map(one, prompts, batch_size=8)


@functools.partial(jax.jit, static_argnames=("stack", "split", "fit", "size"))
def patched(
    stack: Stack,
    params: Params,
    prompts: Prompt,
    split: Split,
    fit: Fit,
    weights_X: Array,
    count: Array | int,
    *,
    size: int,
) -> tuple[Array, Array]:
    """Predictions (X, B, Q) of weights patched on a prompt's first queries.

    Args:
      stack, params: the model.
      prompts: B of them.
      split: how their rows are used.
      fit: the solution.
      weights_X: (X,), the ridge weights to try.
      count: how many queries are fitted, at most ``size``.
      size: how many are run; ``exact`` fits all of them.

    Returns:
      Those of each prompt's own queries, and of the next prompt's.
    """

    def one(prompt: Prompt) -> tuple[Array, Any]:
        context_ND, asked_QD = streams(stack, params, prompt, split)
        layers = functional(stack, params)

        def at(weight: Array) -> tuple[Array, Any]:
            fitted_K: Any = np.ones(size, bool)
            if fit.rung != "exact":
                fitted_K = jnp.arange(size) < count
            queries = calibration(context_ND, asked_QD[:size], fitted_K)
            patches = fit_static(layers, queries, fit, weight=weight)
            return predictions(stack, params, asked_QD, patches), patches

        predicted_XQ, patches = jax.lax.map(at, weights_X)
        return predicted_XQ, patches

    own_BXQ, patches = jax.lax.map(one, prompts, batch_size=8)

    def elsewhere(pair: tuple[Prompt, Any]) -> Array:
        prompt, patches = pair
        _, asked_QD = streams(stack, params, prompt, split)
        return jax.lax.map(lambda one: predictions(stack, params, asked_QD, one), patches)

    others = jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), patches)
    other_BXQ = jax.lax.map(elsewhere, (prompts, others), batch_size=8)
    return jnp.swapaxes(own_BXQ, 0, 1), jnp.swapaxes(other_BXQ, 0, 1)
