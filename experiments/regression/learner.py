"""The in-context learner that the experiments look into: described, trained once, read back.

A learner sees ``(x_1, y_1), ..., (x_N, y_N), (x_query, 0)`` and predicts ``y_query`` from the last
token's output. It is trained on fresh prompts at every step; while it trains, each batch is also
predicted by the query alone with patched weights: two curves that have to lie on each other.
"""

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tools.arrays import NO_NAMES, Names, Record
from experiments.tools.conduct import TEST_STREAM, Outcome, finish, measured, start
from experiments.tools.flags import option
from icl_jax import checks
from icl_jax.blocks.config import StackConfig, build_stack
from icl_jax.blocks.functional import functional
from icl_jax.blocks.stack import Stack
from icl_jax.compilations import run_once
from icl_jax.descent.parameters import kernel_of
from icl_jax.dims import Array, Params
from icl_jax.dynamics.prefixes import prefix_pass, probe_pass
from icl_jax.measures.function_space import squared_error
from icl_jax.patches.extraction import patched_forward, stack_patches
from icl_jax.report.page import Section
from icl_jax.sharding import on_host, place
from icl_jax.stack.run import forward
from icl_jax.tasks.catalogue import TaskName, make_task
from icl_jax.tasks.prompt import Prompt, Task, example_queries, prompt_tokens, sample_prompts
from icl_jax.training.config import TrainingConfig, make_optimizer
from icl_jax.training.loop import train
from icl_jax.training.step import initial_params
from icl_jax.training.traced import train_traced


@dataclass(frozen=True)
class LearnerConfig:
    """A task, a stack, and how it is trained."""

    task: TaskName = option("linear", "what the prompts teach")
    input_width: int = option(2, "dimension d of the inputs")
    num_examples: int = option(50, "examples N per prompt")
    noise_std: float = option(0.0, "standard deviation of the label noise")
    watch: bool = option(True, "predict each training batch by patched weights, too")
    all_shots: bool = option(False, "train on every label of a prompt, asked before it is shown")
    stack: StackConfig = field(default_factory=StackConfig)
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(num_steps=2000, batch_size=64, learning_rate=3e-3)
    )

    def __post_init__(self) -> None:
        checks.positive_int("LearnerConfig", "num_examples", self.num_examples)
        if self.all_shots and self.watch:
            raise ValueError(
                "LearnerConfig: watch=True follows the last label alone; with all_shots=True set "
                "watch to False."
            )
        _ask_for(self.task, self.input_width, self.noise_std, self.num_examples)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a training batch: every prompt has its examples and its query."""
        return self.training.batch_size * (self.num_examples + 1)

    def make_task(self, split: str = "train") -> Task:
        """Where the prompts come from; real rows differ between training and test."""
        return make_task(self.task, self.input_width, noise_std=self.noise_std, split=split)


@functools.lru_cache(maxsize=64)  # A sweep makes thousands of configurations of one task.
def _ask_for(name: TaskName, input_width: int, noise_std: float, num_examples: int) -> None:
    """Lets a task refuse the number of examples, as real rows do: they are finite."""
    task = make_task(name, input_width, noise_std=noise_std, split="train")
    jax.eval_shape(
        functools.partial(task.sample, num_examples=num_examples),
        jax.eval_shape(jax.random.key, 0),
    )


@dataclass(frozen=True)
class Learner:
    """A trained learner, and the same one before training: its null.

    Attributes:
      config: what was asked for.
      stack: the model.
      task: where its test prompts come from.
      trained: parameters after training.
      untrained: parameters before.
      history: training metrics by name, one value per recorded step.
    """

    config: LearnerConfig
    stack: Stack
    task: Task
    trained: Params
    untrained: Params
    history: dict[str, np.ndarray]


def quick_learner(**changes: Any) -> LearnerConfig:
    """A learner that is trained in seconds."""
    training = TrainingConfig(
        num_steps=400, batch_size=32, learning_rate=3e-3, checkpoint_every=200
    )
    return dataclasses.replace(LearnerConfig(training=training, num_examples=20), **changes)


def deep_learner(quick: bool = False) -> LearnerConfig:
    """The 10-layer pre-norm stack; a quick one has 4 layers."""
    stack = StackConfig(wiring="pre_norm", depth=4 if quick else 10)
    if quick:
        training = TrainingConfig(num_steps=60, batch_size=16, steps_per_call=20)
        return LearnerConfig(num_examples=20, stack=stack, training=training, watch=False)
    training = TrainingConfig(num_steps=600, batch_size=32, learning_rate=1e-3, steps_per_call=20)
    return LearnerConfig(stack=stack, training=training, watch=False)


def embed(stack: Stack, params: Params, tokens_TC: Array) -> Array:
    """The residual stream (T, D) before the first block."""
    stream_TD: Any = stack.apply({"params": params}, tokens_TC, method="embed")
    return stream_TD


def read_out(stack: Stack, params: Params, stream_TD: Array) -> Array:
    """Predictions (T,) from the residual stream after the last block."""
    outputs_TO: Any = stack.apply({"params": params}, stream_TD, method="readout")
    return outputs_TO[:, 0]


def first_kernel(stack: Stack, params: Params) -> Array:
    """The kernel whose trajectory is followed: the first of the first block's MLP, (D, H)."""
    return kernel_of(*functional(stack, params)[0])


def predict(stack: Stack, params: Params, tokens_TC: Array) -> Array:
    """The query's label as the learner predicts it, ()."""
    outputs_TO: Any = stack.apply({"params": params}, tokens_TC)
    return outputs_TO[-1, 0]


def shot_predictions(stack: Stack, params: Params, prompt: Prompt) -> Array:
    """Every label as the learner predicts it from the examples before it, (M,), the query last."""
    layers = functional(stack, params)
    tokens_TC = prompt_tokens(prompt)
    context_ND = embed(stack, params, tokens_TC[:-1])
    queries_MC = jnp.concatenate([example_queries(prompt), tokens_TC[-1:]])
    probes = probe_pass(layers, context_ND, embed(stack, params, queries_MC))
    return read_out(stack, params, probes.output_MD)


def query_predictions(stack: Stack, params: Params, prompt: Prompt) -> Array:
    """The query's label as the learner predicts it after 0, 1, ..., N examples, (M,)."""
    layers = functional(stack, params)
    stream_TD = embed(stack, params, prompt_tokens(prompt))
    prefixes = prefix_pass(layers, stream_TD[:-1], stream_TD[-1])
    return read_out(stack, params, prefixes.output_MD)


def predictions(stack: Stack, params: Params, tokens_TC: Array) -> dict[str, Array]:
    """The query's label as the learner sees it: by context, by patched weights, by neither.

    Returns:
      ``context``: with everything there. ``patched``: the query alone, with the weights that the
      context has patched. ``alone``: the query alone, with the weights as they are. Each ().
    """
    layers = functional(stack, params)
    stream_TD = embed(stack, params, tokens_TC)
    query_K = jnp.asarray([tokens_TC.shape[0] - 1], jnp.int32)
    bank = stack_patches(layers, stream_TD, query_K)
    states = {
        "context": forward(layers, stream_TD)[query_K],
        "patched": patched_forward(layers, stream_TD, bank),
        "alone": forward(layers, stream_TD[query_K], positions_T=query_K),
    }
    return {name: read_out(stack, params, state_1D)[0] for name, state_1D in states.items()}


def test_prompts(learner: Learner, seed: int, num_prompts: int) -> Prompt:
    """Prompts that the learner was not trained on, with a leading axis B."""
    return _prompts(learner, learner.task, seed, num_prompts)


def search_prompts(learner: Learner, seed: int, num_prompts: int) -> Prompt:
    """Prompts to tune a descent on: new ones, but of real rows the training's share."""
    return _prompts(learner, learner.config.make_task(), seed, num_prompts)


def _prompts(learner: Learner, task: Task, seed: int, num_prompts: int) -> Prompt:
    return sample_prompts(
        task,
        jax.random.fold_in(jax.random.key(seed), TEST_STREAM),
        num_prompts=num_prompts,
        num_examples=learner.config.num_examples,
    )


@functools.lru_cache(maxsize=8)
def obtain(config: LearnerConfig, learners: Path) -> Learner:
    """Trains the learner of a configuration, or finishes or reads back the one on disk.

    Args:
      config: what to train.
      learners: a folder of learners; each has a subfolder named after its configuration, so that
        experiments that ask for the same learner share it.
    """
    run = start(learners / _name(config), "learner", config)
    stack = build_stack(config.stack)
    key = jax.random.key(config.training.seed)
    initial = functools.partial(_initial, stack, config)
    result = train(
        initial,
        functools.partial(_loss, stack, config),
        make_optimizer(config.training),
        key,
        num_steps=config.training.num_steps,
        steps_per_call=config.training.steps_per_call,
        checkpoint_every=config.training.checkpoint_every,
        workdir=run.workdir,
    )
    return Learner(
        config,
        stack,
        config.make_task(split="test"),
        # Through the host: parameters from a checkpoint are committed to their device and fresh
        # ones are not, and jit compiles a program for each kind.
        trained=place(on_host(result.params)),
        untrained=place(run_once(functools.partial(initial_params, initial), key)),
        history=result.metrics,
    )


def traced(config: LearnerConfig, learning_rate: Array, seed: Array) -> Learner:
    """The learner of a configuration, as ``obtain`` trains it, with a traced rate and seed.

    A pure function, without a folder: for many trainings in one program.
    """
    stack = build_stack(config.stack)
    key = jax.random.key(seed)
    initial = functools.partial(_initial, stack, config)
    params, history = train_traced(
        initial,
        functools.partial(_loss, stack, config),
        make_optimizer(config.training, learning_rate),
        key,
        num_steps=config.training.num_steps,
    )
    history_S: Any = history  # Arrays of numpy outside of a program, of jax here.
    return Learner(
        config,
        stack,
        config.make_task(split="test"),
        trained=params,
        untrained=initial_params(initial, key),
        history=history_S,
    )


@dataclass(frozen=True)
class Examined(Generic[Record]):
    """An experiment on a learner.

    Attributes:
      name: of the experiment.
      title: of its page.
      doc: its docstring.
      kind: a dataclass of arrays: what it measures.
      measure: ``measure(config, learner)``, the arrays; skipped when they are on disk.
      summarise: ``summarise(config, arrays)``, the numbers.
      sections: ``sections(config, arrays)``, the pictures.
      names: ``names(config)``, of the mappings in what it measures.
    """

    name: str
    title: str
    doc: str | None
    kind: type[Record]
    measure: Callable[[Any, Learner], Record]
    summarise: Callable[[Any, Record], dict[str, Any]]
    sections: Callable[[Any, Record], list[Section]]
    names: Callable[[Any], Names] = lambda config: NO_NAMES

    def report(self, config: Any, arrays: Record) -> Outcome:
        """The numbers and the pictures."""
        return Outcome(self.summarise(config, arrays), self.sections(config, arrays))


def examine(
    experiment: Examined[Record], config: Any, workdir: Path, learners: Path | None
) -> Outcome:
    """An experiment on a learner, from its folder to its report.

    Args:
      experiment: what is measured, and what is said of it.
      config: its configuration, with the learner's in ``config.learner``.
      workdir: its folder.
      learners: where learners are kept; ``learners`` in its own folder when None.
    """
    record = start(workdir, experiment.name, config)
    learner = obtain(config.learner, learners or workdir / "learners")
    arrays = measured(
        record,
        experiment.kind,
        lambda: experiment.measure(config, learner),
        names=experiment.names(config),
    )
    return finish(record, experiment.title, experiment.doc, experiment.report(config, arrays))


def _initial(stack: Stack, config: LearnerConfig, key: Array) -> Params:
    tokens_TC = jnp.zeros((config.num_examples + 1, config.input_width + 1), jnp.float32)
    return stack.init(key, tokens_TC)["params"]


def _loss(
    stack: Stack, config: LearnerConfig, params: Params, key: Array
) -> tuple[Array, dict[str, Array]]:
    """The mean squared error on a fresh batch, and that of the patched weights on the same."""
    prompts = sample_prompts(
        config.make_task(),
        key,
        num_prompts=config.training.batch_size,
        num_examples=config.num_examples,
    )
    if config.all_shots:
        shots_BM = jax.vmap(functools.partial(shot_predictions, stack, params))(prompts)
        targets_BM = jnp.concatenate([prompts.targets_N, prompts.query_target[:, None]], axis=1)
        return jnp.mean(squared_error(shots_BM, targets_BM)), {}
    tokens_BTC = jax.vmap(prompt_tokens)(prompts)
    if not config.watch:
        predicted_B = jax.vmap(functools.partial(predict, stack, params))(tokens_BTC)
        return jnp.mean(squared_error(predicted_B, prompts.query_target)), {}
    predicted = jax.vmap(functools.partial(predictions, stack, params))(tokens_BTC)
    losses = {
        name: jnp.mean(squared_error(values_B, prompts.query_target))
        for name, values_B in predicted.items()
    }
    patched, alone = jax.lax.stop_gradient((losses["patched"], losses["alone"]))
    return losses["context"], {"patched_loss": patched, "alone_loss": alone}


def _name(config: LearnerConfig) -> str:
    digest = hashlib.sha256(repr(config).encode()).hexdigest()[:8]
    stack = config.stack
    return f"{config.task}-n{config.num_examples}-{stack.wiring}-{stack.depth}-{digest}"
