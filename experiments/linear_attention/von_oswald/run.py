"""Does linear attention learn one step of gradient descent?

Trains one layer of linear attention on linear regression (d = N = 10, inputs uniform between -1 and
1) and sets it beside one step of gradient descent from zero, at the best learning rate: predictions
and their derivatives with respect to the query, in and out of the training distribution; the
weights themselves beside those of a layer that takes the step by construction; and a second layer,
trained on skewed normal inputs, beside the closed form of its optimum.

    python -m experiments.von_oswald --workdir=runs/von_oswald

About a minute and a half on 2 cores. Expected: a cosine of the derivatives of 0.9999, a difference
of 0.016 of their length, the loss of one step within 0.1% (1.655 and 1.654), and that of the closed
form within 0.1%.
"""

import dataclasses
import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.linear_attention.learner import (
    LinearLearner,
    LinearLearnerConfig,
    draw,
    obtain,
    predict,
    shortened,
)
from experiments.linear_attention.von_oswald.report import (
    LOSSES,
    NAMES,
    Arrays,
    Optimum,
    sections,
    summarise,
)
from experiments.tools.conduct import Outcome, each, finish, measured, start
from experiments.tools.flags import LONE, launch, option
from experiments.tools.predictors import Predictor, against
from icl_jax import checks
from icl_jax.blocks.attention_stack import AttentionStack
from icl_jax.descent.line_search import check_grid, rate_grid, tune_learning_rate
from icl_jax.descent.linear_attention import (
    one_step_weights,
    optimal_linear_attention,
    optimal_linear_attention_loss,
    stacked_weights,
)
from icl_jax.descent.linear_steps import descent_prediction
from icl_jax.dims import Array, Params
from icl_jax.measures.function_space import squared_error
from icl_jax.tasks.prompt import Prompt
from icl_jax.training.config import TrainingConfig


def skewed_learner() -> LinearLearnerConfig:
    """Normal inputs of five coordinates, the largest variance ten times the smallest."""
    training = TrainingConfig(
        num_steps=3000, batch_size=2048, learning_rate=1e-2, checkpoint_every=500
    )
    return LinearLearnerConfig(
        input_width=5,
        num_examples=20,
        input_range=None,
        variances=(2.0, 1.5, 1.0, 0.5, 0.2),
        training=training,
    )


@dataclass(frozen=True)
class Config:
    """What is trained, and on how many tasks it is compared."""

    num_prompts: int = option(4000, "test prompts, a task each")
    num_search_prompts: int = option(4000, "held-out prompts of the learning rate's line search")
    lowest_rate: float = option(0.1, "of the line search")
    highest_rate: float = option(10.0, "of the line search")
    num_rates: int = option(101, "of the line search, evenly spaced in the logarithm")
    num_optimum_prompts: int = option(50000, "test prompts of the comparison with the closed form")
    seed: int = option(2, "of the test prompts, the nulls and the resampling")
    learner: LinearLearnerConfig = field(default_factory=LinearLearnerConfig)
    skewed: LinearLearnerConfig = field(default_factory=skewed_learner)

    def __post_init__(self) -> None:
        for name in ("num_prompts", "num_search_prompts", "num_rates", "num_optimum_prompts"):
            checks.positive_int("von_oswald", name, getattr(self, name))
        check_grid("von_oswald", self.lowest_rate, self.highest_rate, self.num_rates)
        checks.at_least_two("von_oswald", "num_prompts", self.num_prompts, LONE)
        for name in ("learner", "skewed"):
            if getattr(self, name).depth != 1:
                raise ValueError(
                    f"von_oswald: {name}.depth must be 1: one layer is held against one step. "
                    "Deeper stacks are compared by experiments.depth."
                )
        if self.skewed.input_range is not None:
            raise ValueError(
                "von_oswald: skewed.input_range must be none: the closed form is that of normal "
                "inputs."
            )

    @classmethod
    def quick(cls) -> "Config":
        """Two short trainings."""
        return cls(
            num_prompts=1000,
            num_optimum_prompts=10000,
            learner=shortened(LinearLearnerConfig(), num_steps=500),
            skewed=shortened(skewed_learner(), num_steps=500),
        )


def one_step(rate: Array, prompt: Prompt) -> Array:
    """The prediction of one step of descent, ()."""
    return descent_prediction(prompt.inputs_ND, prompt.targets_N, prompt.query_D, rate=rate)


@jax.jit
def search(prompts: Prompt, rates_X: Array) -> Any:
    """The learning rate at which one step predicts best."""

    def score(rate: Array) -> Array:
        predicted_B = jax.vmap(functools.partial(one_step, rate))(prompts)
        return jnp.mean(squared_error(predicted_B, prompts.query_target))

    return tune_learning_rate(score, rates_X)


def merged(params: Params) -> tuple[Array, Array]:
    """A layer as what it predicts: ``sum_i (query M token_i) (token_i . v) / N``.

    Returns:
      ``M`` (C, C) and ``v`` (C,), with the scale that is free between them taken so that ``v``
      reads the label with weight 1. One step of descent has ``rate I`` and 0 in M.
    """
    (layer,) = params.values()
    query, key, value = (layer[name][:, 0] for name in ("query", "key", "value"))
    highest = jax.lax.Precision.HIGHEST
    bilinear_CC = jnp.matmul(query, key.T, precision=highest)
    # A stack predicts minus what its layers add to the query's label.
    value_C = -jnp.matmul(value, layer["out"][0, :, -1], precision=highest)
    return bilinear_CC * value_C[-1], value_C / value_C[-1]


def merged_prediction(bilinear_CC: Array, value_C: Array, prompt: Prompt) -> Array:
    """What a merged layer predicts, ()."""
    examples_NC = jnp.concatenate([prompt.inputs_ND, prompt.targets_N[:, None]], axis=1)
    query_C = jnp.append(prompt.query_D, jnp.zeros((), prompt.query_D.dtype))
    highest = jax.lax.Precision.HIGHEST
    read_C = jnp.matmul(query_C, bilinear_CC, precision=highest)
    weights_N = jnp.matmul(examples_NC, read_C, precision=highest)
    return jnp.mean(weights_N * jnp.matmul(examples_NC, value_C, precision=highest))


@functools.partial(jax.jit, static_argnames="model")
def face_to_face(
    model: AttentionStack,
    trained: Params,
    untrained: Params,
    rate: Array,
    prompts: Prompt,
    key: Array,
) -> dict[str, Any]:
    """Measures with their nulls, and losses, for every prompt (B,)."""
    width = prompts.query_D.shape[-1]
    step = functools.partial(one_step, rate)
    constructed = stacked_weights([one_step_weights(width, rate=rate)])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, merged(trained), merged(constructed))
    learners: dict[str, Predictor] = {
        "trained": functools.partial(predict, model, trained),
        "untrained": functools.partial(predict, model, untrained),
        "descent": step,
        "constructed": functools.partial(predict, model, constructed),
        "interpolated": functools.partial(merged_prediction, *mean),
        "zero": lambda prompt: jnp.zeros_like(prompt.query_target),
    }
    found = {name: jax.vmap(learner)(prompts) for name, learner in learners.items()}
    return {
        "measures": against(step, learners["trained"], learners["untrained"], prompts, key),
        "losses": {n: squared_error(found[n], prompts.query_target) for n in LOSSES},
        "construction_gap": found["constructed"] - found["descent"],
        "descent_prediction": found["descent"],
    }


def optimum(learner: LinearLearner, prompts: Prompt, step: Any) -> Optimum:
    """The losses (B,) of a trained layer, of the closed form of its optimum, and of rivals.

    ``step`` is the search of one step's rate, on held-out tasks of the same kind.
    """
    covariance_DD = jnp.diag(jnp.asarray(learner.config.variances, jnp.float32))

    def all_of(prompt: Prompt) -> dict[str, Array]:
        return {
            "trained": predict(learner.model, learner.trained, prompt),
            "closed_form": optimal_linear_attention(
                prompt.inputs_ND, prompt.targets_N, prompt.query_D, covariance_DD=covariance_DD
            ),
            "descent": one_step(step.best_rate, prompt),
            "untrained": predict(learner.model, learner.untrained, prompt),
        }

    found = jax.jit(jax.vmap(all_of))(prompts)
    losses = {n: np.asarray(squared_error(x, prompts.query_target)) for n, x in found.items()}
    expected = optimal_linear_attention_loss(covariance_DD, learner.config.num_examples)
    return Optimum(**losses, expected=np.asarray(expected), rate_at_edge=step.at_edge)


def measure(config: Config, learners: Path) -> Arrays:
    """Trains, searches the rate, and compares inside the training distribution and outside."""
    learner, skewed = obtain(config.learner, learners), obtain(config.skewed, learners)
    task, examples = config.learner.task(), config.learner.num_examples
    held_out = draw(task, config.seed + 1, config.num_search_prompts, examples)
    rates_X = rate_grid(config.lowest_rate, config.highest_rate, config.num_rates, jnp.float32)
    found = search(held_out, rates_X)
    key = jax.random.key(config.seed)

    # Wider and narrower inputs than in training; the training's own stands in the middle.
    scales = np.geomspace(0.5, 2.0, 9)
    rows = []
    for scale in each(scales, "input ranges"):
        prompts = draw(task, config.seed, config.num_prompts, examples)
        prompts = dataclasses.replace(
            prompts,
            inputs_ND=prompts.inputs_ND * jnp.float32(scale),
            targets_N=prompts.targets_N * jnp.float32(scale),
            query_D=prompts.query_D * jnp.float32(scale),
            query_target=prompts.query_target * jnp.float32(scale),
        )
        rows.append(
            face_to_face(
                learner.model, learner.trained, learner.untrained, found.best_rate, prompts, key
            )
        )
    bilinear_CC, value_C = merged(learner.trained)
    task, examples = config.skewed.task(), config.skewed.num_examples
    test = draw(task, config.seed, config.num_optimum_prompts, examples)
    skewed_step = search(draw(task, config.seed + 1, config.num_search_prompts, examples), rates_X)
    together: dict[str, Any] = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
    return Arrays(
        scales_X=scales,
        rate=found.best_rate,
        rate_at_edge=found.at_edge,
        bilinear_CC=np.asarray(bilinear_CC),
        value_C=np.asarray(value_C),
        optimum=optimum(skewed, test, skewed_step),
        **together,
    )


def run(config: Config, workdir: Path, learners: Path | None = None) -> Outcome:
    """Trains (or finds) both layers, compares, writes summary and report."""
    record = start(workdir, "von_oswald", config)
    arrays = measured(
        record, Arrays, lambda: measure(config, learners or workdir / "learners"), names=NAMES
    )
    outcome = Outcome(summarise(config, arrays), sections(config, arrays))
    return finish(record, "Linear attention and one step of descent", __doc__, outcome)


if __name__ == "__main__":
    launch(Config, run, __doc__)
