"""The programs that can be planned: what the library and the experiments run, on shapes alone."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.regression.descent.run import Config as DescentConfig
from experiments.regression.descent.sides import fine_tune
from experiments.regression.learner import deep_learner
from icl_jax.blocks.config import build_stack
from icl_jax.blocks.functional import functional
from icl_jax.descent.fleet import fleet
from icl_jax.dynamics.prefixes import prefix_pass
from icl_jax.language import prompt
from icl_jax.language.batch import Prompts
from icl_jax.language.ends import embed, readout
from icl_jax.language.sampling import GREEDY
from icl_jax.language.writing import ENDS, begin, go_on
from icl_jax.sharding import TABLE, specs
from icl_jax.sharding.table import OF_TASKS, Table
from icl_jax.stack.run import forward
from icl_jax.stack.sites import watch
from icl_jax.tasks.prompt import sample_prompts
from icl_jax.tasks.text import random_windows
from icl_jax.training.step import advance, initial_state
from launch.shapes import model_of, weights_of


@dataclass(frozen=True)
class Sizes:
    """What a program is made for.

    Attributes:
      model: its name; see ``launch.shapes``.
      dtype: of parameters and arithmetic.
      prompts: of a batch; of a fleet, tasks.
      length: tokens of a prompt.
      kept: positions that a prompt keeps.
      rates: learning rates of a fleet.
      steps: of a descent; of writing, tokens that there is room for.
      remat: whether a gradient computes the layers again.
    """

    model: str = "gemma-3-1b"
    dtype: str = "bfloat16"
    prompts: int = 1
    length: int = 2048
    kept: int = 64
    rates: int = 8
    steps: int = 50
    remat: bool = False


@dataclass(frozen=True)
class Call:
    """A program and what it is called with: shapes on a mesh.

    Attributes:
      function: jitted.
      arguments, options: of the call; options are static.
    """

    function: Any
    arguments: tuple[Any, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    def compile(self, mesh: Mesh, options: Mapping[str, Any] | None = None) -> Any:
        """The compiled program; the mesh that is set says which chips it is for.

        ``options`` are the compiler's.
        """
        with jax.set_mesh(mesh):
            lowered = self.function.lower(*self.arguments, **self.options)
            return lowered.compile(compiler_options=dict(options or {}))


#: ``make(sizes, mesh)``: what would be called.
Make = Callable[[Sizes, Mesh], Call]


def placed(tree: Any, mesh: Mesh, *, leading: str = "", table: Table = TABLE) -> Any:
    """Shapes that lie on a mesh as ``icl_jax.sharding.place`` would put the arrays."""

    def one(spec: PartitionSpec, leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    found = specs(tree, mesh, leading=leading, table=table)
    return jax.tree.map(one, found, tree, is_leaf=lambda leaf: isinstance(leaf, PartitionSpec))


def _language(sizes: Sizes, mesh: Mesh) -> tuple[Any, Any, Any]:
    """The model, its parameters on the mesh, and a batch of prompts."""
    model = model_of(sizes.model)
    params = placed(weights_of(model, sizes.dtype), mesh)

    def ids(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.int32)

    count = sizes.prompts
    batch = Prompts(ids(count, sizes.length), ids(count), ids(count, sizes.kept), ids(count))
    return model, params, placed(batch, mesh)


def _full(sizes: Sizes, mesh: Mesh) -> Call:
    return Call(prompt._full, _language(sizes, mesh))


def _patches(sizes: Sizes, mesh: Mesh) -> Call:
    options = {"loop": "closed", "output": "auto"}
    return Call(prompt._patches, _language(sizes, mesh), options)


def _prefixes(sizes: Sizes, mesh: Mesh) -> Call:
    """The last states of the query after every prefix of one prompt."""
    model, params, _ = _language(sizes, mesh)

    @jax.jit
    def run(params: Any, tokens_T: Any) -> Any:
        stream_TD = embed(model, params, tokens_T)
        return prefix_pass(functional(model, params), stream_TD[:-1], stream_TD[-1]).output_MD

    tokens_T = jax.ShapeDtypeStruct((sizes.length,), jnp.int32)
    return Call(run, (params, placed(tokens_T, mesh, leading="T")))


def _generate(sizes: Sizes, mesh: Mesh) -> Call:
    """A step of writing: one token for every prompt, whose context is in the memories."""
    model, params, prompts = _language(sizes, mesh)
    watching = watch("plan", functional(model, params), (), None, ENDS)
    keys_B = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), sizes.prompts))
    stop_S = jax.ShapeDtypeStruct((8,), jnp.int32)
    room = max(sizes.steps, 1)
    read = functools.partial(begin, model, room=room, sampling=GREEDY)
    text = jax.eval_shape(read, params, prompts, None, keys_B, stop_S, watching)
    limit = jax.ShapeDtypeStruct((), jnp.int32)
    text = placed(text, mesh, leading="LB")
    arguments = (model, params, text, limit, stop_S, watching)
    return Call(go_on, arguments, {"sampling": GREEDY})


def _training(sizes: Sizes, mesh: Mesh) -> Call:
    """A step of AdamW on fresh windows of a text."""
    model, params, _ = _language(sizes, mesh)
    text_N = np.zeros(max(4 * sizes.length, 1 << 16), np.int32)
    optimizer = optax.adamw(1e-3)

    def loss(params: Any, key: Any) -> Any:
        windows_BT = random_windows(
            key, jnp.asarray(text_N), num_windows=sizes.prompts, length=sizes.length + 1
        )

        def one(tokens_T: Any) -> Any:
            stream_TD = embed(model, params, tokens_T[:-1])
            layers = functional(model, params)
            stream_TD = forward(layers, stream_TD, remat=sizes.remat)
            logits = readout(model, params, stream_TD).astype(jnp.float32)
            rows = optax.softmax_cross_entropy_with_integer_labels(logits, tokens_T[1:])
            return jnp.mean(rows)

        return jnp.mean(jax.vmap(one)(windows_BT)), {}

    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(
        lambda params, key: initial_state(lambda _: params, optimizer, key), params, key
    )
    options = {"loss": loss, "optimizer": optimizer, "capacity": 1}
    return Call(advance, (placed(state, mesh), key, 1), options)


def _fleet(sizes: Sizes, mesh: Mesh) -> Call:
    """Descents of ``experiments.descent`` on the 10-layer learner: every task at every rate."""
    learner, explicit = deep_learner(), DescentConfig().explicit
    explicit = type(explicit)(**{**vars(explicit), "num_steps": sizes.steps})
    stack = build_stack(learner.stack)
    tokens_TC = jnp.zeros((learner.num_examples + 1, learner.input_width + 1), jnp.float32)
    params = jax.eval_shape(stack.init, jax.random.key(0), tokens_TC)["params"]
    draw = functools.partial(
        sample_prompts,
        learner.make_task(),
        num_prompts=sizes.prompts,
        num_examples=learner.num_examples,
    )
    tasks = jax.eval_shape(draw, jax.random.key(0))

    @jax.jit
    def run(params: Any, tasks: Any, rates_X: Any) -> Any:
        def one(task: Any, rate: Any) -> Any:
            return fine_tune(stack, params, explicit, task, rate).losses_S

        return fleet(one, tasks, rates_X)

    rates_X = jax.ShapeDtypeStruct((sizes.rates,), jnp.float32)
    arguments = (
        placed(params, mesh, table=Table(hidden=(), heads=(), kv_heads=())),
        placed(tasks, mesh, leading="B", table=OF_TASKS),
        placed(rates_X, mesh),
    )
    return Call(run, arguments)


#: By name: the programs of a language model, and the fleet.
PROGRAMS: Mapping[str, Make] = {
    "full": _full,
    "patches": _patches,
    "prefixes": _prefixes,
    "generate": _generate,
    "training": _training,
    "fleet": _fleet,
}
