"""Which examples, and which heads, wrote the update?

Attention is a sum over heads and tokens, so the weight update of the query is one too: exactly,
with no gradients and no removal of tokens one by one. With a norm between attention and kernel it
is exact up to one extra term, the remainder, which is reported.

    python -m experiments.attribution --workdir=runs/attribution

About one minute on 2 cores. Expected: contributions that add up to the update to float32 rounding;
a trained learner that reads the examples close to the query most, an untrained one that does not.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.conduct import Outcome, finish, measured, start
from experiments.flags import launch, option
from experiments.learner import (
    Learner,
    LearnerConfig,
    embed,
    first_kernel,
    obtain,
    quick_learner,
    test_prompts,
)
from icl_jax import checks
from icl_jax.blocks.stack import Stack, functional
from icl_jax.dims import Array, Params
from icl_jax.dynamics.attribution import (
    Attribution,
    attribute_block,
    contribution_norms,
    contribution_shares,
    remainder_share,
    summed_update,
)
from icl_jax.measures.nulls import another_prompts
from icl_jax.patches.low_rank import LowRank, frobenius_norm, subtract
from icl_jax.patches.token import token_update
from icl_jax.report.figures import Curve, Panel, curves
from icl_jax.report.page import Section, Table
from icl_jax.tasks.prompt import Prompt, prompt_tokens

MODELS = ("trained", "untrained")


@dataclass(frozen=True)
class Config:
    """Whose updates are taken apart, on how many prompts."""

    num_prompts: int = option(200, "test prompts")
    num_bins: int = option(10, "groups of examples by their distance from the query")
    seed: int = option(3, "of the test prompts")
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        checks.positive_int("attribution", "num_prompts", self.num_prompts)
        checks.positive_int("attribution", "num_bins", self.num_bins)
        if not self.learner.stack.layer.endswith("attention"):
            raise ValueError(
                f"attribution: learner.stack.layer={self.learner.stack.layer!r} is no sum over "
                "tokens and heads; choose 'attention' or 'linear_attention'."
            )

    @classmethod
    def quick(cls) -> "Config":
        """A short training and fewer prompts."""
        return cls(num_prompts=100, learner=quick_learner())


@functools.partial(jax.jit, static_argnames="stack")
def take_apart(stack: Stack, params: Params, prompts: Prompt) -> dict[str, Array]:
    """The query's update in the first block on every prompt, taken apart and put together again."""
    blocks, block_params = functional(stack, params)
    block, first_params = blocks[0], block_params[0]
    kernel_DH = first_kernel(params)

    def update(hidden_TD: Array) -> LowRank:
        query_K = jnp.asarray([hidden_TD.shape[0] - 1], jnp.int32)
        full = block.contextual(first_params, hidden_TD)
        kept = block.contextual(first_params, hidden_TD[query_K], positions_T=query_K)
        return token_update(full.mlp_input_TD[-1], kept.mlp_input_TD[0], kernel_DH)

    def one(hidden_TD: Array) -> Attribution:
        query_K = jnp.asarray([hidden_TD.shape[0] - 1], jnp.int32)
        attribution = attribute_block(block, first_params, hidden_TD, query_K)
        return jax.tree.map(lambda leaf: leaf[0], attribution)

    def distance(first: LowRank, second: LowRank) -> Array:
        return frobenius_norm(subtract(first, second)) / frobenius_norm(second)

    hidden_BTD = jax.vmap(lambda prompt: embed(stack, params, prompt_tokens(prompt)))(prompts)
    updates = jax.vmap(update)(hidden_BTD)
    attributions = jax.vmap(one)(hidden_BTD)
    sums = jax.vmap(lambda parts: summed_update(parts, kernel_DH))(attributions)
    remainders = jax.vmap(lambda parts: remainder_share(parts, kernel_DH))(attributions)
    return {
        "additivity_error": jax.vmap(distance)(sums, updates),
        "shuffled_error": jax.vmap(distance)(another_prompts(sums), updates),
        "remainder": remainders,
        "shares": jax.vmap(lambda parts: contribution_shares(parts, kernel_DH))(attributions),
        "norms": jax.vmap(lambda parts: contribution_norms(parts, kernel_DH))(attributions),
        "distances": jnp.linalg.norm(prompts.inputs_ND - prompts.query_D[:, None, :], axis=-1),
    }
