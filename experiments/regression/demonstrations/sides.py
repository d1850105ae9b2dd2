"""What each way of choosing says of a prompt's examples; all without the query's label.

What is asked about is the learner's own answer with all examples.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.learner import embed, read_out
from icl_jax.blocks.functional import functional
from icl_jax.blocks.stack import Stack
from icl_jax.dims import Array, Params
from icl_jax.dynamics.attribution import attribute_block
from icl_jax.dynamics.groups import (
    choose_by_update,
    group_cosines,
    group_gram,
    group_shares,
    group_sizes,
)
from icl_jax.dynamics.leave_out import leave_out_block, leave_out_by_reruns, masked_outputs
from icl_jax.dynamics.marginal import decay_exponent, marginal_sizes, marginal_updates
from icl_jax.dynamics.prefixes import prefix_pass
from icl_jax.measures.choice import greedy
from icl_jax.measures.shapley import Shapley, all_orders, random_orders, shapley_values
from icl_jax.measures.subspaces import effective_rank_of_updates
from icl_jax.measures.weight_space import off_diagonal_mean
from icl_jax.stack.block import apply_block
from icl_jax.stack.fold import fold
from icl_jax.stack.run import forward
from icl_jax.tasks.prompt import Prompt, prompt_tokens


class Said(NamedTuple):
    """What is said of one prompt's N examples; a batch of them has a leading axis B.

    Attributes:
      scores: way -> (N,); large is important.
      greedy: (k,), what ``choose_by_update`` takes.
      cosine: (), how near it comes to the update.
      alike: (), the mean cosine between what two examples add.
      one_pass: (), how far leave-one-out in one pass is from reruns, relative; NaN in a deeper
        stack, where there is no such pass.
      full: (), the learner's own answer.
    """

    scores: dict[str, Array]
    greedy: Array
    cosine: Array
    alike: Array
    one_pass: Array
    full: Array


@functools.partial(jax.jit, static_argnames=("stack", "count"))
def said(stack: Stack, params: Params, prompts: Prompt, *, count: int) -> Said:
    """By the update, by leave-one-out, by attention, and by a gradient, of B prompts."""
    layers = functional(stack, params)

    def one(prompt: Prompt) -> Said:
        stream_TD = embed(stack, params, prompt_tokens(prompt))
        last = stream_TD.shape[0] - 1
        groups_NT = jnp.eye(last, last + 1, dtype=bool)

        def step(
            block: Any, layer: Params, state_TD: Array, _: None
        ) -> tuple[Array, tuple[Array, Array]]:
            found = attribute_block(block, layer, state_TD, jnp.asarray([last], jnp.int32))
            gram_XX = group_gram(jax.tree.map(lambda leaf: leaf[0], found), groups_NT)
            rows_1 = jnp.asarray([last], jnp.int32)
            weights_A1T = block.parts(layer, state_TD, rows_M=rows_1)[0]
            attention_N = jnp.sum(jnp.abs(weights_A1T[:, 0, :last]), axis=0)
            midpoint = block.contextual(layer, state_TD)
            return apply_block(block, layer, midpoint), (gram_XX, attention_N)

        _, found = fold(layers, step, stream_TD)
        gram_LXX, attention_LN = found.joined()
        gram_XX = jnp.mean(gram_LXX / jnp.sum(gram_LXX, axis=(1, 2), keepdims=True), axis=0)

        def answer(stream_TD: Array) -> Array:
            return read_out(stack, params, forward(layers, stream_TD))[-1]

        full, gradient_TD = jax.value_and_grad(answer)(stream_TD)
        without_ND = leave_out_by_reruns(layers, stream_TD, groups_NT)
        one_pass = jnp.asarray(jnp.nan, stream_TD.dtype)
        if len(layers) == 1:
            passed_ND = leave_out_block(*layers[0], stream_TD, groups_NT)
            one_pass = jnp.linalg.norm(passed_ND - without_ND) / jnp.linalg.norm(without_ND)
        left_N = read_out(stack, params, without_ND)
        order, cosines = choose_by_update(gram_XX, count)
        scores = {
            "share": group_shares(gram_XX)[:-1],
            "size": group_sizes(gram_XX)[:-1],
            "answer": (left_N - full) ** 2,
            "attention": jnp.mean(attention_LN, axis=0),
            "gradient": jnp.abs(jnp.sum(gradient_TD * stream_TD, axis=-1))[:-1],
        }
        alike = off_diagonal_mean(group_cosines(gram_XX)[:-1, :-1])
        return Said(scores, order, cosines[-1], alike, one_pass, full)

    return jax.lax.map(one, prompts, batch_size=8)


@functools.partial(jax.jit, static_argnames="stack")
def answers(stack: Stack, params: Params, prompts: Prompt, sets_BXN: Any) -> Array:
    """The query's label (B, X) when only some of the examples are there."""
    layers = functional(stack, params)

    def one(pair: tuple[Prompt, Array]) -> Array:
        prompt, sets_XN = pair
        stream_TD = embed(stack, params, prompt_tokens(prompt))
        present_XT = jnp.pad(sets_XN, ((0, 0), (0, 1)), constant_values=True)
        return read_out(stack, params, masked_outputs(layers, stream_TD, present_XT))

    return jax.lax.map(one, (prompts, sets_BXN), batch_size=8)


def greedy_by_answer(
    stack: Stack, params: Params, prompts: Prompt, full_B: np.ndarray, count: int
) -> np.ndarray:
    """For each prompt the examples (k,) whose answer comes nearest to the one with all, (B, k)."""
    num_examples = prompts.targets_N.shape[1]
    chosen = []
    for number, full in enumerate(full_B):
        prompt = jax.tree.map(lambda leaf: leaf[number : number + 1], prompts)  # noqa: B023

        def worth(sets_XN: np.ndarray) -> np.ndarray:
            # Of one size for all steps, so that one program serves them.
            padded_XN = np.pad(sets_XN, ((0, num_examples - len(sets_XN)), (0, 0)))
            found_X = answers(stack, params, prompt, padded_XN[None])[0]  # noqa: B023
            return -((np.asarray(found_X)[: len(sets_XN)] - full) ** 2)  # noqa: B023

        chosen.append(greedy(worth, num_examples, count)[0])
    return np.stack(chosen)


@functools.partial(jax.jit, static_argnames=("stack", "num_orders", "exact"))
def valued(
    stack: Stack,
    params: Params,
    prompts: Prompt,
    full_B: Array,
    key: Array,
    *,
    num_orders: int,
    exact: bool = False,
) -> Shapley:
    """Shapley values (B, N) of the examples: one prefix pass for each order.

    The worth is minus the squared distance from the answer with all. With ``exact`` in all orders
    of the examples, of which there must be few.
    """
    layers = functional(stack, params)
    num_examples = prompts.targets_N.shape[1]
    orders_SN = jnp.asarray(
        all_orders(num_examples) if exact else random_orders(key, num_orders, num_examples)
    )

    def one(pair: tuple[Prompt, Array]) -> Shapley:
        prompt, full = pair
        stream_TD = embed(stack, params, prompt_tokens(prompt))

        def worths(order_N: Array) -> Array:
            outputs_MD = prefix_pass(layers, stream_TD[:-1][order_N], stream_TD[-1]).output_MD
            return -((read_out(stack, params, outputs_MD) - full) ** 2)

        return shapley_values(key, orders_SN, jax.lax.map(worths, orders_SN, batch_size=8))

    return jax.lax.map(one, (prompts, full_B))


@functools.partial(jax.jit, static_argnames=("stack", "first"))
def learned(stack: Stack, params: Params, prompts: Prompt, *, first: int) -> tuple[Array, ...]:
    """Of the first block: sizes (B, N), exponents (B,), and how many steps differ (B,)."""
    layers = functional(stack, params)

    def one(prompt: Prompt) -> tuple[Array, ...]:
        stream_TD = embed(stack, params, prompt_tokens(prompt))
        inputs_MD = prefix_pass(layers, stream_TD[:-1], stream_TD[-1]).full.layer(0).mlp_input_TD
        sizes_N = marginal_sizes(inputs_MD)
        rank = effective_rank_of_updates(marginal_updates(inputs_MD))
        return sizes_N, decay_exponent(sizes_N, first=first), rank

    return jax.lax.map(one, prompts, batch_size=8)
