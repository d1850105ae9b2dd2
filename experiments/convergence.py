"""Do the implicit weights settle as the context grows?

For each test prompt, the weights after every prefix of its context: the anchored trajectory
``W_0, W_1, ..., W_N`` (each ``W_i`` does to the lone query what the first i examples do) and the
peel-off trajectory, which moves one token after the other from the context into the weights. For
the trained learner, and for the same learner before training, because steps of any average shrink
like 1/i whatever it has learned.

    python -m experiments.convergence --workdir=runs/convergence

About one minute on 2 cores. Expected: steps that shrink with i in both; for the untrained learner
with a slope near -1 in the logarithms; peel-off ends at the same output, in another matrix.
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
from icl_jax.dynamics.anchored import anchored_trajectory
from icl_jax.dynamics.peel_off import peel_off_trajectory
from icl_jax.dynamics.prefixes import prefix_pass, suffix_midpoints
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.measures.weight_space import cosine, effective_rank
from icl_jax.patches.low_rank import (
    apply_update,
    frobenius_norm,
    singular_values,
    subtract,
)
from icl_jax.report.figures import Curve, Panel, curves
from icl_jax.report.page import Section, Table
from icl_jax.tasks.prompt import prompt_tokens

MODELS = ("trained", "untrained")


@dataclass(frozen=True)
class Config:
    """Whose weights are followed, on how many prompts."""

    num_prompts: int = option(200, "test prompts")
    seed: int = option(1, "of the test prompts and of the resampling")
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        checks.positive_int("convergence", "num_prompts", self.num_prompts)

    @classmethod
    def quick(cls) -> "Config":
        """A short training and fewer prompts."""
        return cls(num_prompts=100, learner=quick_learner())


@functools.partial(jax.jit, static_argnames="stack")
def follow(stack: Stack, params: Params, tokens_BTC: Array) -> dict[str, Array]:
    """Both trajectories of the first block's first kernel on every prompt, in numbers."""
    blocks, block_params = functional(stack, params)
    block, first_params = blocks[0], block_params[0]
    kernel_DH = first_kernel(params)

    def one(tokens_TC: Array) -> dict[str, Array]:
        hidden_TD = embed(stack, params, tokens_TC)
        context_ND, query_D = hidden_TD[:-1], hidden_TD[-1]
        prefixes = prefix_pass((block,), (first_params,), context_ND, query_D)
        suffixes = suffix_midpoints(block, first_params, context_ND, query_D)
        anchored = anchored_trajectory(prefixes.full[0].mlp_input_TD, kernel_DH)
        peeled = peel_off_trajectory(suffixes.mlp_input_TD, kernel_DH)
        last = jax.tree.map(lambda leaf: leaf[-1], anchored.updates)
        lone_D = suffixes.mlp_input_TD[-1]
        full_H = suffixes.mlp_input_TD[0] @ kernel_DH
        gap_H = apply_update(lone_D, peeled.update) + lone_D @ kernel_DH - full_H
        spectrum_R = singular_values(peeled.update)
        return {
            "step_norms": anchored.step_norms_N,
            "update_norms": jax.vmap(frobenius_norm)(anchored.updates),
            "losses": anchored.losses_N,
            "step_size": anchored.step_size,
            "kernel_norm": jnp.linalg.norm(kernel_DH),
            "peel_step_norms": peeled.step_norms_N,
            "peel_spectrum": spectrum_R,
            "peel_effective_rank": effective_rank(spectrum_R),
            "peel_output_gap": jnp.linalg.norm(gap_H) / jnp.linalg.norm(full_H),
            "peel_distance": frobenius_norm(subtract(last, peeled.update)) / frobenius_norm(last),
            "peel_cosine": cosine(last, peeled.update),
        }

    return jax.lax.map(one, tokens_BTC, batch_size=32)


def measure(config: Config, learner: Learner) -> dict[str, Array]:
    """The trajectories of both models on the same prompts."""
    prompts = test_prompts(learner, config.seed, config.num_prompts)
    tokens_BTC = jax.vmap(prompt_tokens)(prompts)
    arrays = {}
    for model in MODELS:
        numbers = follow(learner.stack, getattr(learner, model), tokens_BTC)
        arrays |= {f"{model}.{name}": array for name, array in numbers.items()}
    return arrays


def decay_exponent(values_N: np.ndarray) -> float:
    """The slope of ``log value`` against ``log i`` over the second half of the steps."""
    steps_N = np.arange(1, len(values_N) + 1)
    half = len(values_N) // 2
    slope, _ = np.polyfit(np.log(steps_N[half:]), np.log(values_N[half:]), 1)
    return float(slope)


def summarise(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means over prompts; ``step_norms`` is that of the trained learner."""
    summary: dict[str, Any] = {"num_prompts": len(arrays["trained.step_size"])}
    for model, prefix in zip(MODELS, ("", "untrained_"), strict=True):
        steps_N = arrays[f"{model}.step_norms"].mean(axis=0)
        summary |= {
            f"{prefix}step_norms": steps_N,
            f"{prefix}relative_last_step": steps_N[-1] / steps_N[0],
            f"{prefix}decay_exponent": decay_exponent(steps_N),
            f"{prefix}update_norms": arrays[f"{model}.update_norms"].mean(axis=0),
            f"{prefix}losses": arrays[f"{model}.losses"].mean(axis=0),
            f"{prefix}step_size": arrays[f"{model}.step_size"].mean(),
            f"{prefix}peel_step_norms": arrays[f"{model}.peel_step_norms"].mean(axis=0),
            f"{prefix}peel_effective_rank": arrays[f"{model}.peel_effective_rank"].mean(),
            f"{prefix}peel_output_gap": arrays[f"{model}.peel_output_gap"].max(),
            f"{prefix}peel_distance": arrays[f"{model}.peel_distance"].mean(),
            f"{prefix}peel_cosine": arrays[f"{model}.peel_cosine"].mean(),
        }
    return summary
