"""Does the context do to the weights what gradient descent does?

The same block, the same examples, the same query. On one side the implicit weights ``W_i`` after i
examples in the context; on the other the same kernel fine-tuned with an optax optimiser on these i
examples, each taken as a query without context, one step each, at the learning rate that is best
on tasks held out for the search. Their query losses, and the angle between their weight updates;
beside them least squares, the untrained learner, shuffled labels and a random update.

    python -m experiments.descent --workdir=runs/descent

About one minute on 2 cores. Expected: both losses fall with i. Descent ends lower, at a rate tuned
for it. The updates have a cosine of 0.2 to 0.3, several times that of the nulls and far from 1:
related, not the same.
"""

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.conduct import Outcome
from experiments.flags import launch, option
from experiments.learner import (
    Learner,
    LearnerConfig,
    embed,
    examine,
    first_kernel,
    quick_learner,
    read_out,
    test_prompts,
    with_kernel,
)
from experiments.oracles import oracle_losses, query_losses
from icl_jax import checks
from icl_jax.blocks.stack import Stack, functional
from icl_jax.descent.closed_form import ORACLES
from icl_jax.descent.finetune import finetune
from icl_jax.descent.line_search import rate_grid, tune_learning_rate
from icl_jax.dims import Array, Params
from icl_jax.dynamics.anchored import anchored_trajectory
from icl_jax.dynamics.prefixes import lone_midpoints, prefix_pass
from icl_jax.measures.function_space import squared_error
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.measures.nulls import random_update, shuffled_labels
from icl_jax.measures.weight_space import cosine
from icl_jax.patches.block import Midpoint, apply_block, block_patches
from icl_jax.patches.low_rank import LowRank
from icl_jax.report.figures import Curve, Panel, Role, curves
from icl_jax.report.page import Section, Table, number
from icl_jax.tasks.prompt import Prompt, example_queries, prompt_tokens

OptimizerName = Literal["sgd", "momentum", "adam"]
OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
}


COSINES = ("cosine", "random_cosine", "shuffled_cosine", "untrained_cosine")


@dataclass(frozen=True)
class Config:
    """What descends, on how many prompts."""

    num_prompts: int = option(200, "test prompts, one run each")
    num_search_prompts: int = option(100, "held-out prompts of the learning rate's line search")
    optimizer: OptimizerName = option("sgd", "what fine-tunes the kernel")
    lowest_rate: float = option(1e-4, "of the line search")
    highest_rate: float = option(10.0, "of the line search")
    num_rates: int = option(26, "of the line search, evenly spaced in the logarithm")
    seed: int = option(2, "of the test prompts, the nulls and the resampling")
    learner: LearnerConfig = field(default_factory=LearnerConfig)

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_search_prompts", "num_rates"):
            checks.positive_int("descent", name, getattr(self, name))
        checks.one_of("descent", "optimizer", self.optimizer, tuple(OPTIMIZERS))
        if self.learner.stack.depth != 1:
            raise ValueError(
                f"descent: learner.stack.depth must be 1, got {self.learner.stack.depth}: the "
                "comparison is of one block's first kernel."
            )

    @classmethod
    def quick(cls) -> "Config":
        """A short training and fewer prompts."""
        return cls(num_prompts=100, num_search_prompts=50, num_rates=16, learner=quick_learner())


def implicit(stack: Stack, params: Params, prompt: Prompt) -> tuple[Any, Array]:
    """The anchored updates after every prefix, and the lone query's predictions with them (M,)."""
    (block,), (block_params,) = functional(stack, params)
    hidden_TD = embed(stack, params, prompt_tokens(prompt))
    prefixes = prefix_pass((block,), (block_params,), hidden_TD[:-1], hidden_TD[-1])
    full, kept = prefixes.full[0], prefixes.kept[0]
    trajectory = anchored_trajectory(full.mlp_input_TD, first_kernel(params))
    patches, _ = block_patches(block, block_params, full, kept)
    predictions_M = read_out(stack, params, apply_block(block, block_params, kept, patches))
    return trajectory.updates, predictions_M


def descend(
    stack: Stack, params: Params, prompt: Prompt, optimizer: optax.GradientTransformation
) -> tuple[Array, Array]:
    """Fine-tunes the first kernel: its updates (M, D, H), and the lone query's predictions (M,)."""
    (block,), (block_params,) = functional(stack, params)

    def alone(tokens_NC: Array) -> Midpoint:
        hidden_ND = embed(stack, params, tokens_NC)
        return lone_midpoints(
            block, block_params, hidden_ND, jnp.zeros(hidden_ND.shape[0], jnp.int32)
        )

    def predict(kernel_DH: Array, midpoint: Midpoint) -> Array:
        one_row = jax.tree.map(lambda leaf: leaf[None], midpoint)
        output_1D = apply_block(block, with_kernel(block_params, kernel_DH), one_row)
        return read_out(stack, params, output_1D)[0]

    def loss(kernel_DH: Array, example: tuple[Midpoint, Array]) -> Array:
        midpoint, target = example
        return squared_error(predict(kernel_DH, midpoint), target)

    # The contextual layer is not trained, so what it makes of each lone example is fixed.
    examples = (alone(example_queries(prompt)), prompt.targets_N)
    start_DH = first_kernel(params)
    trajectory = finetune(loss, start_DH, examples, optimizer)
    query = jax.tree.map(lambda leaf: leaf[0], alone(prompt_tokens(prompt)[-1:]))
    predictions_M = jax.vmap(lambda kernel_DH: predict(kernel_DH, query))(trajectory.points)
    return trajectory.points - start_DH[None], predictions_M


@functools.partial(jax.jit, static_argnames=("stack", "optimizer"))
def search(
    stack: Stack, params: Params, prompts: Prompt, optimizer: OptimizerName, rates_X: Array
) -> Any:
    """The learning rate of the lowest query loss, averaged over prompts and context sizes >= 1."""

    def score(rate: Array) -> Array:
        def run(prompt: Prompt) -> Array:
            _, predictions_M = descend(stack, params, prompt, OPTIMIZERS[optimizer](rate))
            return query_losses(predictions_M, prompt)[1:].mean()

        return jax.vmap(run)(prompts).mean()

    return tune_learning_rate(score, rates_X)


@functools.partial(jax.jit, static_argnames=("stack", "optimizer"))
def face_to_face(
    stack: Stack,
    params: Params,
    prompts: Prompt,
    optimizer: OptimizerName,
    rate: Array,
    key: Array,
) -> dict[str, Array]:
    """Losses and cosines after every prefix, for every prompt: (B, M) each, cosines from i = 1."""

    def one(inputs: tuple[Prompt, Array]) -> dict[str, Array]:
        prompt, prompt_key = inputs
        shuffle_key, random_key = jax.random.split(prompt_key)
        updates, implicit_M = implicit(stack, params, prompt)
        descents_MDH, finetuned_M = descend(stack, params, prompt, OPTIMIZERS[optimizer](rate))
        confused = dataclasses.replace(
            prompt, targets_N=shuffled_labels(shuffle_key, prompt.targets_N)
        )
        confused_MDH, confused_M = descend(stack, params, confused, OPTIMIZERS[optimizer](rate))
        keys_M = jax.random.split(random_key, implicit_M.shape[0])
        randoms = jax.vmap(random_update)(keys_M, updates)

        def angles(first: LowRank, second_MDH: Array) -> Array:
            # At i = 0 nothing has moved, and nothing has no direction.
            later = jax.tree.map(lambda leaf: leaf[1:], first)
            return jax.vmap(cosine)(later, second_MDH[1:])

        return {
            "implicit_loss": query_losses(implicit_M, prompt),
            "finetuned_loss": query_losses(finetuned_M, prompt),
            "shuffled_loss": query_losses(confused_M, prompt),
            "cosine": angles(updates, descents_MDH),
            "shuffled_cosine": angles(updates, confused_MDH),
            "random_cosine": angles(randoms, descents_MDH),
        }

    keys_B = jax.random.split(key, prompts.query_target.shape[0])
    # In small groups: every prompt holds N + 1 whole kernels, twice.
    return jax.lax.map(one, (prompts, keys_B), batch_size=16)


def measure(config: Config, learner: Learner) -> dict[str, Any]:
    """Both sides for the trained learner; both sides again for the untrained one."""
    prompts = test_prompts(learner, config.seed, config.num_prompts)
    held_out = test_prompts(learner, config.seed + 1, config.num_search_prompts)
    key = jax.random.key(config.seed)
    rates_X = rate_grid(config.lowest_rate, config.highest_rate, config.num_rates, jnp.float32)
    arrays: dict[str, Any] = {f"{name}_loss": oracle_losses(name, prompts) for name in ORACLES}
    for prefix, params in (("", learner.trained), ("untrained_", learner.untrained)):
        found = search(learner.stack, params, held_out, config.optimizer, rates_X)
        arrays |= {
            f"{prefix}rate": found.best_rate,
            f"{prefix}rate_at_edge": found.at_edge,
            f"{prefix}search_scores": found.scores_X,
        }
        numbers = face_to_face(
            learner.stack, params, prompts, config.optimizer, found.best_rate, key
        )
        arrays |= {f"{prefix}{name}": array for name, array in numbers.items()}
    return arrays | {"rates": rates_X}


def summarise(config: Config, arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Means over prompts; cosines are those after all examples, with 95% intervals."""
    key = jax.random.key(config.seed)
    num_sizes = arrays["implicit_loss"].shape[1]
    losses = {name: arrays[name].mean(axis=0) for name in arrays if name.endswith("_loss")}
    summary: dict[str, Any] = {
        "num_prompts": config.num_prompts,
        "context_sizes": np.arange(num_sizes),
        **losses,
        "untrained_loss": losses["untrained_implicit_loss"],
        "optimizer": config.optimizer,
        "learning_rate": arrays["rate"],
        "learning_rate_at_edge": bool(arrays["rate_at_edge"]),
        "untrained_learning_rate": arrays["untrained_rate"],
    }
    for name in COSINES:
        interval = bootstrap_mean(key, jnp.asarray(arrays[name][:, -1]))
        summary[name] = interval.mean
        summary[f"{name}_interval"] = [interval.low, interval.high]
    return summary


def sections(config: Config, arrays: Mapping[str, np.ndarray]) -> list[Section]:
    """Losses against context size, and the angle between the two updates."""
    summary = summarise(config, arrays)
    examples = config.learner.num_examples
    key = jax.random.key(config.seed)

    def curve(name: str, label: str, role: Role, first: int = 0) -> Curve:
        interval = bootstrap_mean(key, jnp.asarray(arrays[name]))
        mean, low, high = (np.asarray(part) for part in interval)
        return Curve(label, np.arange(first, first + len(mean)), mean, low, high, role=role)

    final = {name: values.mean(axis=0)[-1] for name, values in arrays.items() if "_loss" in name}
    edge = " (at the edge of the search)" if summary["learning_rate_at_edge"] else ""
    return [
        Section(
            f"In context and by descent: the query's loss (N = {examples})",
            f"After all {examples} examples the implicit weights predict the query with a loss of "
            f"{number(final['implicit_loss'])}, the same kernel fine-tuned on the same examples "
            f"({config.optimizer}, one step each, learning rate "
            f"{number(summary['learning_rate'])}, the best of {config.num_rates} on "
            f"{config.num_search_prompts} held-out prompts{edge}) with "
            f"{number(final['finetuned_loss'])}. Predicting zero gives "
            f"{number(final['zero_loss'])}, least squares {number(final['least_squares_loss'])}, "
            f"the untrained learner {number(final['untrained_implicit_loss'])}, and descent on "
            f"shuffled labels {number(final['shuffled_loss'])}. Both curves fall; that alone "
            "makes them two learners, not one mechanism.",
            figure=curves(
                [
                    Panel(
                        "",
                        [
                            curve("implicit_loss", "implicit weights", "main"),
                            curve("finetuned_loss", "fine-tuned", "second"),
                            curve("ridge_loss", "ridge regression", "reference"),
                            curve("zero_loss", "zero predictor", "control"),
                            curve("untrained_implicit_loss", "untrained learner", "control"),
                            curve("shuffled_loss", "fine-tuned, shuffled labels", "control"),
                        ],
                        "examples seen",
                        "squared error of the query",
                        log_y=True,
                    )
                ]
            ),
            tables=[
                Table(
                    ("predictor", "loss after N/2", f"loss after N = {examples}"),
                    [
                        (
                            name.removesuffix("_loss").replace("_", " "),
                            mean_M[len(mean_M) // 2],
                            mean_M[-1],
                        )
                        for name, values in arrays.items()
                        if name.endswith("_loss")
                        for mean_M in [values.mean(axis=0)]
                    ],
                    f"Mean squared error of the query over {config.num_prompts} prompts.",
                )
            ],
            anchor=f"descent-{examples}",
        ),
        Section(
            f"The angle between the two updates (N = {examples})",
            "The cosine between the implicit update and descent's, after all examples: "
            f"{number(summary['cosine'])} (95% interval "
            f"{number(summary['cosine_interval'][0])} to "
            f"{number(summary['cosine_interval'][1])}). Its nulls: a random update of the same "
            f"norm {number(summary['random_cosine'])}, descent on shuffled labels "
            f"{number(summary['shuffled_cosine'])}, and both sides in the untrained learner "
            f"{number(summary['untrained_cosine'])}. Only the margin over these says anything; "
            "two updates that both fit the labels share some direction in any model.",
            figure=curves(
                [
                    Panel(
                        "",
                        [
                            curve("cosine", "trained learner", "main", 1),
                            curve("untrained_cosine", "untrained learner", "control", 1),
                            curve("shuffled_cosine", "shuffled labels", "control", 1),
                            curve("random_cosine", "random update", "control", 1),
                        ],
                        "examples seen",
                        "cosine of the updates",
                    )
                ]
            ),
            anchor=f"angle-{examples}",
        ),
    ]


def report(config: Config, arrays: Mapping[str, np.ndarray]) -> Outcome:
    """The numbers and the pictures."""
    return Outcome(summarise(config, arrays), sections(config, arrays))


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains the learner (or finds it in ``learners``), compares, writes summary and report."""
    title, folders = "In context and by gradient descent", (workdir, learners)
    return examine("descent", title, __doc__, config, folders, measure, report)


if __name__ == "__main__":
    launch(Config, run, __doc__)
