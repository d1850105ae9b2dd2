"""Stacks of linear attention, trained on linear regression: what von_oswald and depth look into."""

import dataclasses
import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tools.conduct import TEST_STREAM, start
from experiments.tools.flags import option
from icl_jax import checks
from icl_jax.blocks.attention_stack import AttentionStack, linear_attention_stack
from icl_jax.compilations import run_once
from icl_jax.dims import Array, Params
from icl_jax.measures.function_space import squared_error
from icl_jax.sharding import on_host, place
from icl_jax.tasks.linear import LinearRegression
from icl_jax.tasks.prompt import Prompt, prompt_tokens, sample_prompts
from icl_jax.training.config import TrainingConfig, make_optimizer
from icl_jax.training.loop import train
from icl_jax.training.step import initial_params


@dataclass(frozen=True)
class LinearLearnerConfig:
    """Linear regression without noise, and layers of linear attention that learn it in context."""

    input_width: int = option(10, "dimension d of the inputs")
    num_examples: int = option(10, "examples N per prompt")
    input_range: float | None = option(1.0, "inputs uniform up to so far from 0; none: normal")
    variances: tuple[float, ...] = option((), "of normal inputs' coordinates; empty: all 1")
    depth: int = option(1, "layers")
    looped: bool = option(False, "the same weights in every layer")
    initial_scale: float = option(
        0.5,
        "of the initial kernels; a deep stack is a polynomial of high degree, and explodes at 1",
    )
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            num_steps=2000, batch_size=2048, learning_rate=1e-2, checkpoint_every=500
        )
    )

    def __post_init__(self) -> None:
        for name in ("input_width", "num_examples", "depth"):
            checks.positive_int("LinearLearnerConfig", name, getattr(self, name))
        if self.variances and len(self.variances) != self.input_width:
            raise ValueError(
                f"LinearLearnerConfig: variances must be input_width={self.input_width} numbers, "
                f"got {len(self.variances)}."
            )
        checks.positive("LinearLearnerConfig", "initial_scale", self.initial_scale)
        self.task()

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a training batch: every prompt has its examples and its query."""
        return self.training.batch_size * (self.num_examples + 1)

    def task(self) -> LinearRegression:
        """What it is trained on."""
        return LinearRegression(
            self.input_width, covariance=self.variances or None, input_range=self.input_range
        )


def shortened(config: LinearLearnerConfig, *, num_steps: int) -> LinearLearnerConfig:
    """The same with a short training on small batches, for a quick look."""
    training = dataclasses.replace(
        config.training, num_steps=num_steps, batch_size=256, learning_rate=2e-2
    )
    return dataclasses.replace(config, training=training)


@dataclass(frozen=True)
class LinearLearner:
    """A trained stack, and the same one before training.

    Attributes:
      config: what was asked for.
      model: the stack.
      trained: parameters after training.
      untrained: parameters before.
      history: training metrics by name.
    """

    config: LinearLearnerConfig
    model: AttentionStack
    trained: Params
    untrained: Params
    history: dict[str, np.ndarray]


def predict(model: AttentionStack, params: Params, prompt: Prompt) -> Array:
    """The query's label as the stack predicts it, ()."""
    return predict_all(model, params, prompt)[-1]


def predict_all(model: AttentionStack, params: Params, prompt: Prompt) -> Array:
    """The query's label as it would be predicted before and after every layer, (L + 1,)."""
    predictions: Any = model.apply({"params": params}, prompt_tokens(prompt), method="predictions")
    return jnp.asarray(predictions)


def draw(task: LinearRegression, seed: int, num_prompts: int, num_examples: int) -> Prompt:
    """Prompts that no training has seen, with a leading axis B."""
    return sample_prompts(
        task,
        jax.random.fold_in(jax.random.key(seed), TEST_STREAM),
        num_prompts=num_prompts,
        num_examples=num_examples,
    )


@functools.lru_cache(maxsize=16)
def obtain(config: LinearLearnerConfig, learners: Path) -> LinearLearner:
    """Trains the stack of a configuration, or finishes or reads back the one on disk."""
    name = f"linear-{config.depth}-{hashlib.sha256(repr(config).encode()).hexdigest()[:8]}"
    run = start(learners / name, "linear_learner", config)
    model = linear_attention_stack(config.depth, config.num_examples, looped=config.looped)

    def initial(key: Array) -> Params:
        params: Params = model.init(
            key, jnp.zeros((config.num_examples + 1, config.input_width + 1), jnp.float32)
        )["params"]
        return jax.tree.map(lambda kernel: config.initial_scale * kernel, params)

    def loss(params: Params, key: Array) -> tuple[Array, dict[str, Array]]:
        prompts = sample_prompts(
            config.task(),
            key,
            num_prompts=config.training.batch_size,
            num_examples=config.num_examples,
        )
        predicted_B = jax.vmap(functools.partial(predict, model, params))(prompts)
        return jnp.mean(squared_error(predicted_B, prompts.query_target)), {}

    key = jax.random.key(config.training.seed)
    result = train(
        initial,
        loss,
        make_optimizer(config.training),
        key,
        num_steps=config.training.num_steps,
        steps_per_call=config.training.steps_per_call,
        checkpoint_every=config.training.checkpoint_every,
        workdir=run.workdir,
    )
    return LinearLearner(
        config,
        model,
        trained=place(on_host(result.params)),
        untrained=place(run_once(functools.partial(initial_params, initial), key)),
        history=result.metrics,
    )
