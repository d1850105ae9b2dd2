"""Which examples, and which heads, wrote the update?

Attention is a sum over heads and tokens, so the weight update of the query is one too: exactly,
with no gradients and no removal of tokens one by one. With a norm between attention and kernel it
is exact up to one extra term, the remainder, which is reported.

    python -m experiments.attribution --workdir=runs/attribution

About one minute on 2 cores. Expected: contributions that add up to the update (to 5e-7; another
prompt's: 0.33). Examples far from the query have the larger shares, before training as after it:
what an example passes on grows with its size. What training adds is the difference from the
untrained curve.
"""

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.regression.both import MODELS, Both
from experiments.regression.learner import (
    Examined,
    Learner,
    LearnerConfig,
    embed,
    examine,
    first_kernel,
    quick_learner,
    test_prompts,
)
from experiments.tools.conduct import Outcome
from experiments.tools.flags import LONE, launch, option
from icl_jax import checks
from icl_jax.blocks.functional import functional
from icl_jax.blocks.stack import Stack
from icl_jax.dims import Array, Params
from icl_jax.dynamics.attribution import Attribution, attribute_block
from icl_jax.dynamics.contributions import (
    contribution_norms,
    contribution_shares,
    remainder_share,
    summed_update,
)
from icl_jax.measures.nulls import another_prompts
from icl_jax.patches.low_rank import LowRank, frobenius_norm, subtract
from icl_jax.patches.token import token_update
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table, number
from icl_jax.tasks.prompt import Prompt, prompt_tokens


@dataclass(frozen=True)
class Config:
    """Whose updates are taken apart, on how many prompts."""

    num_prompts: int = option(200, "test prompts")
    num_bins: int = option(10, "groups of examples by their distance from the query")
    seed: int = option(3, "of the test prompts")
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        checks.at_least_two("attribution", "num_prompts", self.num_prompts, LONE)
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


@dataclass(frozen=True)
class TakenApart:
    """The updates of B prompts, taken apart into A heads and T tokens.

    Attributes:
      additivity_error: (B,), of the sum of the contributions, relative.
      shuffled_error: (B,), of another prompt's sum.
      remainder: (B,), the share of no token.
      shares: (B, A, T), of the update.
      norms: (B, A, T).
      distances: (B, N), of the examples from the query.
    """

    additivity_error: np.ndarray
    shuffled_error: np.ndarray
    remainder: np.ndarray
    shares: np.ndarray
    norms: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class Arrays(Both[TakenApart]):
    """Both models on the same prompts."""

    trained: TakenApart
    untrained: TakenApart


@functools.partial(jax.jit, static_argnames="stack")
def take_apart(stack: Stack, params: Params, prompts: Prompt) -> dict[str, Array]:
    """The query's update in the first block on every prompt, taken apart and put together again."""
    block, first_params = functional(stack, params)[0]
    kernel_DH = first_kernel(stack, params)

    def update(stream_TD: Array) -> LowRank:
        query_K = jnp.asarray([stream_TD.shape[0] - 1], jnp.int32)
        full = block.contextual(first_params, stream_TD)
        kept = block.contextual(first_params, stream_TD[query_K], positions_T=query_K)
        return token_update(full.mlp_input_TD[-1], kept.mlp_input_TD[0], kernel_DH)

    def one(stream_TD: Array) -> Attribution:
        query_K = jnp.asarray([stream_TD.shape[0] - 1], jnp.int32)
        attribution = attribute_block(block, first_params, stream_TD, query_K)
        return jax.tree.map(lambda leaf: leaf[0], attribution)

    def distance(first: LowRank, second: LowRank) -> Array:
        return frobenius_norm(subtract(first, second)) / frobenius_norm(second)

    stream_BTD = jax.vmap(lambda prompt: embed(stack, params, prompt_tokens(prompt)))(prompts)
    updates = jax.vmap(update)(stream_BTD)
    attributions = jax.vmap(one)(stream_BTD)
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


def measure(config: Config, learner: Learner) -> Arrays:
    """The taken-apart updates of both models on the same prompts."""
    prompts = test_prompts(learner, config.seed, config.num_prompts)
    found = {}
    for model in MODELS:
        numbers = take_apart(learner.stack, getattr(learner, model), prompts)
        found[model] = TakenApart(**jax.device_get(numbers))
    return Arrays(**found)


def share_by_distance(arrays: Arrays, model: str, num_bins: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean distance and mean share of an example, in groups of equal size from near to far.

    Shares are divided by 1/N: 1 is what an example has when all count alike.
    """
    shares_BN = arrays.of(model).shares.sum(axis=1)[:, :-1]
    distances_BN = arrays.of(model).distances
    order = np.argsort(distances_BN.ravel())
    groups = np.array_split(order, num_bins)
    distance = np.asarray([distances_BN.ravel()[group].mean() for group in groups])
    share = np.asarray([shares_BN.ravel()[group].mean() for group in groups])
    return distance, share * shares_BN.shape[1]


def summarise(config: Config, arrays: Arrays) -> dict[str, Any]:
    """The additivity error is the largest over prompts; its control the smallest."""
    summary: dict[str, Any] = {"num_prompts": config.num_prompts}
    for model, prefix in zip(MODELS, ("", "untrained_"), strict=True):
        shares_BAT = arrays.of(model).shares
        distance, share = share_by_distance(arrays, model, config.num_bins)
        summary |= {
            f"{prefix}additivity_error": arrays.of(model).additivity_error.max(),
            f"{prefix}shuffled_error": arrays.of(model).shuffled_error.min(),
            f"{prefix}remainder": np.abs(arrays.of(model).remainder).mean(),
            f"{prefix}head_shares": shares_BAT.sum(axis=2).mean(axis=0),
            f"{prefix}distance_groups": distance,
            f"{prefix}share_by_distance": share,
        }
    return summary


def sections(config: Config, arrays: Arrays) -> list[Section]:
    """Who wrote the update: examples by distance, and heads."""
    summary = summarise(config, arrays)
    near, far = summary["share_by_distance"][0], summary["share_by_distance"][-1]
    null_near, null_far = (summary["untrained_share_by_distance"][i] for i in (0, -1))
    roles: dict[str, Role] = {"trained": "main", "untrained": "control"}
    return [
        Section(
            f"Who wrote the update: tokens and heads ({config.learner.stack.wiring})",
            "The update of the query, in the first block, is a sum over context examples and "
            f"heads, of {config.num_prompts} prompts. What "
            "no token accounts for (the remainder, where a norm stands before the kernel) is "
            f"{number(summary['remainder'])} of the update. The examples nearest to the query "
            f"have {number(near)} times an even share and the farthest {number(far)} times; "
            f"before training it is {number(null_near)} and {number(null_far)}.",
            figure=curves(
                [
                    Panel(
                        "share of an example by its distance",
                        [
                            Curve(
                                model,
                                *share_by_distance(arrays, model, config.num_bins),
                                role=roles[model],
                            )
                            for model in MODELS
                        ],
                        "distance of the example from the query",
                        "share of the update, in units of 1/N",
                    ),
                    Panel(
                        "share of a head",
                        [
                            Curve(
                                model,
                                np.arange(len(heads)),
                                np.sort(heads)[::-1],
                                role=roles[model],
                            )
                            for model, heads in (
                                ("trained", summary["head_shares"]),
                                ("untrained", summary["untrained_head_shares"]),
                            )
                        ],
                        "head, largest share first, from 0",
                        "share of the update",
                    ),
                ]
            ),
            tables=[
                Table(
                    ("learner", "additivity error", "another prompt's sum", "remainder"),
                    [
                        (
                            model,
                            summary[f"{prefix}additivity_error"],
                            summary[f"{prefix}shuffled_error"],
                            summary[f"{prefix}remainder"],
                        )
                        for model, prefix in zip(MODELS, ("", "untrained_"), strict=True)
                    ],
                    "Relative Frobenius errors: the largest, and for the control the smallest.",
                )
            ],
            verdict="The contributions add up to the update to "
            f"{number(summary['additivity_error'])} (another prompt's sum: at least "
            f"{number(summary['shuffled_error'])}). {_far(far, null_far)} "
            f"{_heads(summary['head_shares'], summary['untrained_head_shares'])}",
            anchor=f"attribution-{config.learner.stack.wiring}".replace("_", "-"),
        )
    ]


def _far(trained: float, untrained: float) -> str:
    """Who has the larger share, and whether training made it so."""
    who = "Far examples" if trained > 1 else "Near examples"
    change = "more" if abs(trained - 1) > abs(untrained - 1) else "no more"
    return (
        f"{who} have the larger share (the farthest {number(trained)} times an even one), {change} "
        f"unevenly than untrained ({number(untrained)} times)."
    )


def _heads(trained_A: np.ndarray, untrained_A: np.ndarray) -> str:
    """How much the largest head writes, beside an even share and the untrained learner's."""
    return (
        f"Of {len(trained_A)} heads the largest writes {number(trained_A.max())} of the update "
        f"(an even share is {number(1 / len(trained_A))}, untrained it is "
        f"{number(untrained_A.max())})."
    )


EXPERIMENT = Examined(
    "attribution", "Which examples wrote the update?", __doc__, Arrays, measure, summarise, sections
)


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains the learner (or finds it in ``learners``), takes its updates apart, reports."""
    return examine(EXPERIMENT, config, workdir, learners)


if __name__ == "__main__":
    launch(Config, run, __doc__)
