"""Both sides of a comparison: what the context does to a learner, and what descent does.

Either side is a learner of the query at every point of its way: what it predicts, how the
prediction depends on the query, and how far one kernel has moved.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from experiments.regression.learner import embed, predict, query_predictions, read_out
from experiments.tools.predictors import predict_and_differentiate
from experiments.tools.trained import trained_part
from icl_jax.blocks.functional import designs, functional, layer_params
from icl_jax.blocks.stack import Stack
from icl_jax.descent.explicit import ExplicitConfig
from icl_jax.descent.finetune import descend, finetune
from icl_jax.descent.layer_causal import layer_causal_loss
from icl_jax.descent.parameters import kernel_of, merge
from icl_jax.dims import Array, Params
from icl_jax.dynamics.anchored import anchored_trajectory
from icl_jax.dynamics.peel_off import peel_off_trajectory
from icl_jax.dynamics.prefixes import prefix_pass, suffix_midpoints
from icl_jax.dynamics.trajectory import Trajectory
from icl_jax.measures.function_space import squared_error
from icl_jax.patches.low_rank import LowRank
from icl_jax.stack.run import forward
from icl_jax.tasks.prompt import Prompt, example_queries, prompt_tokens, query_token


class Side(NamedTuple):
    """A learner at P points of its way.

    Attributes:
      predictions_P: (P,), of the query's label.
      sensitivities_PD: (P, D), the derivatives with respect to the query's input.
    """

    predictions_P: Array
    sensitivities_PD: Array


class Implicit(NamedTuple):
    """What the context does.

    Attributes:
      side: the learner after every prefix.
      updates: of the kernel, anchored: rank-1 factors with a leading axis P.
      peeled: of the kernel, peeled off: the whole context's, of rank up to N.
    """

    side: Side
    updates: LowRank
    peeled: LowRank


def implicit(stack: Stack, params: Params, prompt: Prompt, layer: int) -> Implicit:
    """The learner after every prefix, and what that is for the first kernel of a layer."""
    layers = functional(stack, params)
    stream_TD = embed(stack, params, prompt_tokens(prompt))
    prefixes = prefix_pass(layers, stream_TD[:-1], stream_TD[-1])
    block, its_params = layers[layer]
    kernel_DH = kernel_of(block, its_params)
    anchored = anchored_trajectory(prefixes.full[layer].mlp_input_TD, kernel_DH)
    below_TD = forward(layers[:layer], stream_TD) if layer else stream_TD
    suffixes = suffix_midpoints(block, its_params, below_TD[:-1], below_TD[-1])
    peeled = peel_off_trajectory(suffixes.mlp_input_TD, kernel_DH)

    def of_query(query_D: Array) -> Array:
        return query_predictions(stack, params, dataclasses.replace(prompt, query_D=query_D))

    side = Side(of_query(prompt.query_D), jax.jacfwd(of_query)(prompt.query_D))
    return Implicit(side, anchored.points, peeled.final)


def fine_tune(
    stack: Stack, params: Params, config: ExplicitConfig, prompt: Prompt, rate: Array
) -> Trajectory:
    """Descent on a prompt's examples, each a query of its own without context.

    Returns:
      The trajectory; its points are the chosen weights, a tree with a leading axis P.
    """
    part, rest = trained_part(stack, params, config.trains)
    examples = (example_queries(prompt), prompt.targets_N)

    def loss(part: Params, example: tuple[Array, Array]) -> Array:
        token_C, target = example
        whole = merge(part, rest)
        if not config.layer_causal:
            return squared_error(predict(stack, whole, token_C[None]), target)
        return layer_causal_loss(
            functional(stack, whole),
            embed(stack, whole, token_C[None]),
            lambda stream_1D: squared_error(read_out(stack, whole, stream_1D)[0], target),
        )

    if config.batch == "one":
        optimizer = config.optimizer.make(rate, prompt.targets_N.shape[0])
        return finetune(loss, part, examples, optimizer)

    def full_loss(part: Params) -> Array:
        return jnp.mean(jax.vmap(lambda example: loss(part, example))(examples))

    optimizer = config.optimizer.make(rate, config.num_steps)
    return descend(full_loss, part, optimizer, num_steps=config.num_steps)


def explicit_side(
    stack: Stack, params: Params, config: ExplicitConfig, points: Params, prompt: Prompt
) -> Side:
    """The query without its context, by the weights at every point of a descent."""
    _, rest = trained_part(stack, params, config.trains)

    def at(part: Params) -> tuple[Array, Array]:
        def lone(prompt: Prompt) -> Array:
            return predict(stack, merge(part, rest), query_token(prompt)[None])

        return predict_and_differentiate(lone, prompt)

    return Side(*jax.vmap(at)(points))


def kernel_updates(stack: Stack, points: Params, layer: int) -> Array:
    """How far the first kernel of a layer is from its start, (P, D, H)."""
    block = designs(stack.blocks)[layer]
    kernels_PDH = kernel_of(block, layer_params(stack, points, layer, axis=1))
    return kernels_PDH - kernels_PDH[:1]
