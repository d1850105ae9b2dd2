"""Do the implicit weights settle as the context grows?

For each test prompt, the weights after every prefix of its context: the anchored trajectory
``W_0, W_1, ..., W_N`` (each ``W_i`` does to the lone query what the first i examples do) and the
peel-off trajectory, which moves one token after the other from the context into the weights. For
the trained learner, and for the same learner before training, because steps of any average shrink
like 1/i whatever it has learned.

    python -m experiments.convergence --workdir=runs/convergence

About one minute on 2 cores. Expected: steps that shrink with i whether the learner is trained or
not, with slopes of -0.94 and -0.96 in the logarithms; peel-off ends at the same output (to 1e-6) in
another matrix (cosine 0.70, untrained 0.71).
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
from icl_jax.dynamics.anchored import anchored_trajectory
from icl_jax.dynamics.peel_off import peel_off_trajectory
from icl_jax.dynamics.prefixes import prefix_pass, suffix_midpoints
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.measures.subspaces import effective_rank
from icl_jax.measures.weight_space import cosine
from icl_jax.patches.low_rank import (
    apply_update,
    frobenius_norm,
    singular_values,
    subtract,
)
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table, number
from icl_jax.tasks.prompt import prompt_tokens


@dataclass(frozen=True)
class Config:
    """Whose weights are followed, on how many prompts."""

    num_prompts: int = option(200, "test prompts")
    seed: int = option(1, "of the test prompts and of the resampling")
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        checks.at_least_two("convergence", "num_prompts", self.num_prompts, LONE)

    @classmethod
    def quick(cls) -> "Config":
        """A short training and fewer prompts."""
        return cls(num_prompts=100, learner=quick_learner())


#: A float32 product is a float32 product on every device.
product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True)
class Followed:
    """Both trajectories of B prompts of N examples.

    Attributes:
      step_norms: (B, N), of the anchored trajectory.
      update_norms: (B, N + 1), ``|W_i - W_0|``.
      losses: (B, N), the linear losses.
      step_size: (B,).
      kernel_norm: (B,).
      peel_step_norms: (B, N), of the peel-off trajectory.
      peel_spectrum: (B, R), singular values of its update.
      peel_effective_rank: (B,).
      peel_output_gap: (B,), of both updates' outputs, relative.
      peel_distance: (B,), of both updates, relative.
      peel_cosine: (B,), of both updates.
    """

    step_norms: np.ndarray
    update_norms: np.ndarray
    losses: np.ndarray
    step_size: np.ndarray
    kernel_norm: np.ndarray
    peel_step_norms: np.ndarray
    peel_spectrum: np.ndarray
    peel_effective_rank: np.ndarray
    peel_output_gap: np.ndarray
    peel_distance: np.ndarray
    peel_cosine: np.ndarray


@dataclass(frozen=True)
class Arrays(Both[Followed]):
    """Both models on the same prompts."""

    trained: Followed
    untrained: Followed


@functools.partial(jax.jit, static_argnames="stack")
def follow(stack: Stack, params: Params, tokens_BTC: Array) -> dict[str, Array]:
    """Both trajectories of the first block's first kernel on every prompt, in numbers."""
    layers = functional(stack, params)
    block, first_params = layers[0]
    kernel_DH = first_kernel(stack, params)

    def one(tokens_TC: Array) -> dict[str, Array]:
        stream_TD = embed(stack, params, tokens_TC)
        context_ND, query_D = stream_TD[:-1], stream_TD[-1]
        prefixes = prefix_pass(layers[:1], context_ND, query_D)
        suffixes = suffix_midpoints(block, first_params, context_ND, query_D)
        anchored = anchored_trajectory(prefixes.full[0].mlp_input_TD, kernel_DH)
        peeled = peel_off_trajectory(suffixes.mlp_input_TD, kernel_DH)
        last = anchored.final
        lone_D = suffixes.mlp_input_TD[-1]
        # The difference first: of two products, what is left would be their rounding.
        change_H = product(lone_D - suffixes.mlp_input_TD[0], kernel_DH)
        full_H = product(suffixes.mlp_input_TD[0], kernel_DH)
        gap_H = apply_update(lone_D, peeled.final) + change_H
        spectrum_R = singular_values(peeled.final)
        return {
            "step_norms": anchored.step_norms_S,
            "update_norms": jax.vmap(frobenius_norm)(anchored.points),
            "losses": anchored.losses_S,
            "step_size": anchored.step_size,
            "kernel_norm": jnp.linalg.norm(kernel_DH),
            "peel_step_norms": peeled.step_norms_S,
            "peel_spectrum": spectrum_R,
            "peel_effective_rank": effective_rank(spectrum_R),
            "peel_output_gap": jnp.linalg.norm(gap_H) / jnp.linalg.norm(full_H),
            "peel_distance": frobenius_norm(subtract(last, peeled.final)) / frobenius_norm(last),
            "peel_cosine": cosine(last, peeled.final),
        }

    return jax.lax.map(one, tokens_BTC, batch_size=32)


def measure(config: Config, learner: Learner) -> Arrays:
    """The trajectories of both models on the same prompts."""
    prompts = test_prompts(learner, config.seed, config.num_prompts)
    tokens_BTC = jax.vmap(prompt_tokens)(prompts)
    found = {}
    for model in MODELS:
        numbers = follow(learner.stack, getattr(learner, model), tokens_BTC)
        found[model] = Followed(**jax.device_get(numbers))
    return Arrays(**found)


def decay_exponent(values_N: np.ndarray) -> float:
    """The slope of ``log value`` against ``log i`` over the second half of the steps."""
    steps_N = np.arange(1, len(values_N) + 1)
    half = len(values_N) // 2
    slope, _ = np.polyfit(np.log(steps_N[half:]), np.log(values_N[half:]), 1)
    return float(slope)


def summarise(config: Config, arrays: Arrays) -> dict[str, Any]:
    """Means over prompts; ``step_norms`` is that of the trained learner."""
    summary: dict[str, Any] = {"num_prompts": len(arrays.trained.step_size)}
    for model, prefix in zip(MODELS, ("", "untrained_"), strict=True):
        steps_N = arrays.of(model).step_norms.mean(axis=0)
        summary |= {
            f"{prefix}step_norms": steps_N,
            f"{prefix}relative_last_step": steps_N[-1] / steps_N[0],
            f"{prefix}decay_exponent": decay_exponent(steps_N),
            f"{prefix}update_norms": arrays.of(model).update_norms.mean(axis=0),
            f"{prefix}losses": arrays.of(model).losses.mean(axis=0),
            f"{prefix}step_size": arrays.of(model).step_size.mean(),
            f"{prefix}peel_step_norms": arrays.of(model).peel_step_norms.mean(axis=0),
            f"{prefix}peel_effective_rank": arrays.of(model).peel_effective_rank.mean(),
            f"{prefix}peel_output_gap": arrays.of(model).peel_output_gap.max(),
            f"{prefix}peel_distance": arrays.of(model).peel_distance.mean(),
            f"{prefix}peel_cosine": arrays.of(model).peel_cosine.mean(),
        }
    return summary


def sections(config: Config, arrays: Arrays) -> list[Section]:
    """Step norms, then the two trajectories against each other."""
    summary = summarise(config, arrays)
    examples = config.learner.num_examples
    steps_N = np.arange(1, examples + 1)
    roles: dict[str, Role] = {"trained": "main", "untrained": "control"}

    def curve(model: str, name: str, label: str, role: Role | None = None) -> Curve:
        interval = bootstrap_mean(
            jax.random.key(config.seed), jnp.asarray(getattr(arrays.of(model), name))
        )
        x = steps_N if interval.mean.shape[0] == examples else np.arange(examples + 1)
        mean, low, high = (np.asarray(part) for part in interval)
        return Curve(label, x, mean, low, high, role=role or roles[model])

    rows = [
        (
            model,
            summary[f"{prefix}step_norms"][0],
            summary[f"{prefix}step_norms"][-1],
            summary[f"{prefix}decay_exponent"],
            summary[f"{prefix}peel_cosine"],
            summary[f"{prefix}peel_distance"],
            summary[f"{prefix}peel_output_gap"],
            summary[f"{prefix}peel_effective_rank"],
        )
        for model, prefix in zip(MODELS, ("", "untrained_"), strict=True)
    ]
    return [
        Section(
            f"The weights settle as the context grows (N = {examples})",
            "From the first step to the last "
            f"the mean step shrinks from {number(rows[0][1])} to {number(rows[0][2])} in the "
            f"trained learner and from {number(rows[1][1])} to {number(rows[1][2])} in the "
            "untrained one. Over the second half of the context the steps fall like i to the power "
            f"{number(rows[0][3])} (trained) and {number(rows[1][3])} (untrained). An average over "
            "i tokens changes by about 1/i when one more comes, whatever the model has learned: "
            "settling alone is no sign of learning, only what differs from the grey curve is.",
            figure=curves(
                [
                    Panel(
                        "step norm",
                        [curve(m, "step_norms", m) for m in MODELS],
                        "context example i",
                        "|W_i - W_(i-1)|_F",
                        log_x=True,
                        log_y=True,
                    ),
                    Panel(
                        "distance from the start",
                        [curve(m, "update_norms", m) for m in MODELS],
                        "context examples i",
                        "|W_i - W_0|_F",
                    ),
                ]
            ),
            verdict=_settling(rows[0][3], rows[1][3]),
            anchor=f"convergence-{examples}",
        ),
        Section(
            f"Two trajectories, one output (N = {examples})",
            "The anchored update has rank 1, the peel-off update an effective rank of "
            f"{number(rows[0][7])}. Which weights a context writes is a choice of path; what "
            "they do to this query is not.",
            figure=curves(
                [
                    Panel(
                        "step norms of the two",
                        [
                            curve("trained", "step_norms", "anchored, trained"),
                            curve("trained", "peel_step_norms", "peel-off, trained", "second"),
                            curve("untrained", "peel_step_norms", "peel-off, untrained"),
                        ],
                        "step i",
                        "|W_i - W_(i-1)|_F",
                        log_y=True,
                    ),
                    Panel(
                        "spectrum of the peel-off update",
                        [
                            _spectrum(arrays, "trained", "peel-off, trained", "second"),
                            _spectrum(arrays, "untrained", "peel-off, untrained", "control"),
                        ],
                        "index",
                        "singular value",
                    ),
                ]
            ),
            tables=[
                Table(
                    (
                        "learner",
                        "first step",
                        "last step",
                        "exponent",
                        "cosine",
                        "distance",
                        "output gap",
                        "rank",
                    ),
                    rows,
                    f"Means over {config.num_prompts} prompts. First and last step of the anchored "
                    "trajectory and the exponent of its decay; cosine and relative distance of the "
                    "two final updates; the largest relative gap of their outputs; the effective "
                    "rank of the peel-off update.",
                )
            ],
            verdict="The anchored update and the product of N peel-off factors do the same to the "
            f"query (outputs differ by at most {number(rows[0][6])}) and are not the same matrix: "
            f"their distance is {number(rows[0][5])} of the anchored update's norm, at a cosine of "
            f"{number(rows[0][4])}; untrained, {number(rows[1][5])} and {number(rows[1][4])}.",
            anchor=f"peel-off-{examples}",
        ),
    ]


def _settling(trained: float, untrained: float) -> str:
    """Whether the weights settle, and whether that is more than an average does."""
    faster = "faster" if trained < untrained else "no faster"
    return (
        f"The steps shrink like i to the power {number(trained)} over the second half, {faster} "
        f"than in the untrained learner ({number(untrained)}), which is the null: an average "
        "settles like 1/i whatever was learned."
    )


def _spectrum(arrays: Arrays, model: str, label: str, role: Role) -> Curve:
    mean_R = arrays.of(model).peel_spectrum.mean(axis=0)[:12]
    return Curve(label, np.arange(1, len(mean_R) + 1), mean_R, role=role)


EXPERIMENT = Examined(
    "convergence", "Do the implicit weights settle?", __doc__, Arrays, measure, summarise, sections
)


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains the learner (or finds it in ``learners``), follows it, writes summary and report."""
    return examine(EXPERIMENT, config, workdir, learners)


if __name__ == "__main__":
    launch(Config, run, __doc__)
