"""Do the tokens of a prompt, and the blocks of a stack, pull the weights the same way?

In a pre-norm stack, the update of every position of every block (a lone query token standing in for
each position, as in Innocenti and Achour) and of the query across blocks. Token alignment is the
matrix of cosines between the positions of one block, block alignment that between the blocks. For
the trained stack, for the same stack before training, and for random updates.

    python -m experiments.alignment --workdir=runs/alignment

About two minutes on 2 cores, most of it training. Expected: tokens of one block align (mean cosines
of 0.39 to 0.51 in ten blocks; untrained 0.48 to 0.52), because their updates share one vector and
the context; blocks do not (-0.002, untrained -0.004, random updates 0.0002).
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.both import MODELS, Both
from experiments.regression.learner import (
    Examined,
    Learner,
    LearnerConfig,
    deep_learner,
    embed,
    examine,
    test_prompts,
)
from experiments.tools.conduct import Outcome
from experiments.tools.flags import LONE, launch, option
from icl_jax import checks
from icl_jax.blocks.functional import functional
from icl_jax.blocks.stack import Stack
from icl_jax.descent.parameters import kernel_of
from icl_jax.dims import Array, Params
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.measures.nulls import random_update
from icl_jax.measures.weight_space import alignment, off_diagonal_mean
from icl_jax.patches.extraction import stack_patches
from icl_jax.patches.low_rank import frobenius_norm
from icl_jax.patches.token import kernel_update, token_update
from icl_jax.report.figures import heatmaps
from icl_jax.report.page import Section, Table, number
from icl_jax.stack.block import apply_block
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import Layers
from icl_jax.tasks.prompt import prompt_tokens

#: What tables and verdicts call one of the nulls.
RANDOM = "random updates"


@dataclass(frozen=True)
class Config:
    """Whose updates are compared, on how many prompts."""

    num_prompts: int = option(100, "test prompts")
    seed: int = option(4, "of the test prompts and the random updates")
    learner: LearnerConfig = field(default_factory=deep_learner)

    def __post_init__(self) -> None:
        checks.at_least_two("alignment", "num_prompts", self.num_prompts, LONE)
        if self.learner.stack.depth < 2:
            raise ValueError(
                "alignment: learner.stack.depth must be at least 2 to compare blocks, got "
                f"{self.learner.stack.depth}."
            )

    @classmethod
    def quick(cls) -> "Config":
        """A short training and fewer prompts."""
        return cls(num_prompts=32, learner=deep_learner(quick=True))


@dataclass(frozen=True)
class Aligned:
    """Cosines of updates in L blocks, at T positions, of B prompts.

    Attributes:
      token_alignment: (L, T, T), means over prompts.
      block_alignment: (L, L), means over prompts.
      token_mean: (B, L), away from the diagonal.
      block_mean: (B,), away from the diagonal.
      random_block_mean: (B,), of random updates.
      norms: (B, L), of the query's updates.
    """

    token_alignment: np.ndarray
    block_alignment: np.ndarray
    token_mean: np.ndarray
    block_mean: np.ndarray
    random_block_mean: np.ndarray
    norms: np.ndarray


@dataclass(frozen=True)
class Arrays(Both[Aligned]):
    """Both models on the same prompts."""

    trained: Aligned
    untrained: Aligned


@functools.partial(jax.jit, static_argnames="stack")
def align(stack: Stack, params: Params, tokens_BTC: Array, key: Array) -> dict[str, Array]:
    """Mean alignment matrices over prompts, and every prompt's off-diagonal means."""
    layers = functional(stack, params)

    def one(inputs: tuple[Array, Array]) -> dict[str, Array]:
        tokens_TC, prompt_key = inputs
        stream_TD = embed(stack, params, tokens_TC)
        token_LTT = token_alignments(layers, stream_TD)
        query_K = jnp.asarray([tokens_TC.shape[0] - 1], jnp.int32)
        bank = stack_patches(layers, stream_TD, query_K)
        updates = jax.tree.map(
            lambda *leaves: jnp.stack(leaves),
            *[
                kernel_update(jax.tree.map(lambda leaf: leaf[0], patch.input), kernel_of(b, p))
                for patch, b, p in zip(bank.patches, layers.blocks, layers.params, strict=True)
            ],
        )
        block_LL = alignment(updates)
        keys_L = jax.random.split(prompt_key, block_LL.shape[0])
        random_LL = alignment(jax.vmap(random_update)(keys_L, updates))
        return {
            "token_alignment": token_LTT,
            "block_alignment": block_LL,
            "token_mean": jax.vmap(off_diagonal_mean)(token_LTT),
            "block_mean": off_diagonal_mean(block_LL),
            "random_block_mean": off_diagonal_mean(random_LL),
            "norms": jax.vmap(frobenius_norm)(updates),
        }

    keys_B = jax.random.split(key, tokens_BTC.shape[0])
    results = jax.lax.map(one, (tokens_BTC, keys_B), batch_size=16)
    for name in ("token_alignment", "block_alignment"):
        results[name] = results[name].mean(axis=0)
    return results


def token_alignments(layers: Layers, stream_TD: Array) -> Array:
    """Cosines (L, T, T) between the updates of all positions, block by block.

    The anchor is the query's lone token in every block (Innocenti and Achour, Theorem 1), so all
    updates of a block share their left vector.
    """
    query_K = jnp.asarray([stream_TD.shape[0] - 1], jnp.int32)

    def step(block: Any, params: Params, state_TD: Array, _: None) -> tuple[Array, Array]:
        full = block.contextual(params, state_TD)
        lone = block.contextual(params, state_TD[query_K], positions_T=query_K)
        updates = jax.vmap(token_update, in_axes=(0, None, None))(
            full.mlp_input_TD, lone.mlp_input_TD[0], kernel_of(block, params)
        )
        return apply_block(block, params, full), alignment(updates)

    return fold(layers, step, stream_TD)[1].joined()


def measure(config: Config, learner: Learner) -> Arrays:
    """The alignments of both models on the same prompts."""
    prompts = test_prompts(learner, config.seed, config.num_prompts)
    tokens_BTC = jax.vmap(prompt_tokens)(prompts)
    key = jax.random.key(config.seed)
    found = {}
    for model in MODELS:
        numbers = align(learner.stack, getattr(learner, model), tokens_BTC, key)
        found[model] = Aligned(**jax.device_get(numbers))
    return Arrays(**found)


def summarise(config: Config, arrays: Arrays) -> dict[str, Any]:
    """Mean off-diagonal cosines, with 95% intervals over prompts for the block alignment."""
    key = jax.random.key(config.seed)
    summary: dict[str, Any] = {"num_prompts": config.num_prompts}
    for model, prefix in zip(MODELS, ("", "untrained_"), strict=True):
        blocks = bootstrap_mean(key, jnp.asarray(arrays.of(model).block_mean))
        summary |= {
            f"{prefix}token_alignment": arrays.of(model).token_mean.mean(axis=0),
            f"{prefix}block_alignment": blocks.mean,
            f"{prefix}block_alignment_interval": [blocks.low, blocks.high],
            f"{prefix}random_block_alignment": arrays.of(model).random_block_mean.mean(),
            f"{prefix}update_norms": arrays.of(model).norms.mean(axis=0),
        }
    return summary


def sections(config: Config, arrays: Arrays) -> list[Section]:
    """Token alignment in the first, middle and last block; block alignment."""
    summary = summarise(config, arrays)
    depth = config.learner.stack.depth
    shown = (0, depth // 2, depth - 1)
    tokens = [arrays.of(m).token_alignment[layer] for m in MODELS for layer in shown]
    titles = [f"{m}, block {layer}" for m in MODELS for layer in shown]
    rows = [
        (
            str(layer),
            summary["token_alignment"][layer],
            summary["untrained_token_alignment"][layer],
            summary["update_norms"][layer],
            summary["untrained_update_norms"][layer],
        )
        for layer in range(depth)
    ]
    return [
        Section(
            "Do tokens of one block pull the same way?",
            "The cosine between the weight updates of every two positions of a block, averaged "
            f"over {config.num_prompts} prompts, with the lone query as the common anchor. Away "
            f"from the diagonal it is {number(summary['token_alignment'].mean())} on average in "
            f"the trained stack and {number(summary['untrained_token_alignment'].mean())} before "
            "training; independent random updates would give 0. All updates of a block share their "
            "left vector, so much of the alignment is in the construction, not in what was "
            "learned: compare with the untrained stack.",
            figure=heatmaps(
                tokens,
                titles,
                x_label="position",
                y_label="position",
                value_label="cosine",
                low=-1.0,
                high=1.0,
            ),
            tables=[
                Table(
                    ("block, from 0", "trained", "untrained", "|dW| trained", "|dW| untrained"),
                    rows,
                    "Mean cosine between two positions, and the norm of the query's update.",
                )
            ],
            verdict=_beside(
                "Positions of one block", summary["token_alignment"], "token_alignment", summary
            ),
            anchor="token-alignment",
        ),
        Section(
            "Do blocks?",
            "The same between the query's updates in different blocks: "
            f"{number(summary['block_alignment'])} (95% interval "
            f"{number(summary['block_alignment_interval'][0])} to "
            f"{number(summary['block_alignment_interval'][1])}) trained, "
            f"{number(summary['untrained_block_alignment'])} untrained, "
            f"{number(summary['random_block_alignment'])} for random updates. Blocks have bases of "
            "their own: a common direction of their kernels would be a coincidence.",
            figure=heatmaps(
                [arrays.of(model).block_alignment for model in MODELS],
                list(MODELS),
                x_label="block, from 0",
                y_label="block, from 0",
                value_label="cosine",
                low=-1.0,
                high=1.0,
            ),
            verdict=_beside(
                "Different blocks",
                summary["block_alignment"],
                "block_alignment",
                summary,
                {RANDOM: summary["random_block_alignment"]},
            ),
            tables=[
                Table(
                    ("updates", "mean cosine"),
                    [
                        ("trained", summary["block_alignment"]),
                        ("untrained", summary["untrained_block_alignment"]),
                        (RANDOM, summary["random_block_alignment"]),
                    ],
                )
            ],
            anchor="block-alignment",
        ),
    ]


def _beside(
    what: str,
    trained: Any,
    name: str,
    summary: Mapping[str, Any],
    others: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """A mean cosine beside the nearest of its nulls: untrained, and others."""
    mine = float(np.mean(trained))
    nulls = {"untrained": summary[f"untrained_{name}"], **others}
    means = {null: float(np.mean(values)) for null, values in nulls.items()}
    nearest = max(means, key=lambda null: means[null])
    word = "more than" if mine > means[nearest] else "less than"
    told = f"{nearest}, the nearest null" if others else nearest
    return f"{what} align at a cosine of {number(mine)}, {word} {told} ({number(means[nearest])})."


EXPERIMENT = Examined(
    "alignment",
    "Do tokens and blocks pull the same way?",
    __doc__,
    Arrays,
    measure,
    summarise,
    sections,
)


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains the stack (or finds it in ``learners``), compares its updates, reports."""
    return examine(EXPERIMENT, config, workdir, learners)


if __name__ == "__main__":
    launch(Config, run, __doc__)
