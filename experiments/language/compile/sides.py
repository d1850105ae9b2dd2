"""The two sides of a compiled context: closed form, and LoRA by gradient descent.

Both are given the same calibration texts, and seconds are counted without compilation: each program
is run once before the clock starts. On a CPU they are the process's own seconds on all cores, which
other work on the machine does not change; on a device, those on the wall.
"""

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.tools.shares import to_choose_by
from icl_jax.blocks.functional import designs, functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.descent.adapters import Adapters, new_adapters, with_adapters
from icl_jax.dims import Array, Params
from icl_jax.interop.huggingface import Checkpoint
from icl_jax.language.batch import bucket, presence
from icl_jax.language.compile import compile_context, context_queries
from icl_jax.language.ends import embed, readout
from icl_jax.patches.fit import Fit
from icl_jax.patches.ladder import fit_static
from icl_jax.patches.static_patch import StaticPatch
from icl_jax.sharding import any_process
from icl_jax.stack.layers import PerLayer
from icl_jax.stack.run import forward

Patches = PerLayer[StaticPatch]


def clock() -> float:
    """Seconds, of what is counted."""
    return time.process_time() if jax.default_backend() == "cpu" else time.perf_counter()


@dataclass(frozen=True)
class Lessons:
    """What a context is compiled from.

    Attributes:
      context: its token ids.
      texts: the calibration texts' token ids, as they follow the context.
      stems: how many tokens of each text were given and are not to be learnt to write.
      bos: the token in front of everything; None for none.
    """

    context: np.ndarray
    texts: Sequence[np.ndarray]
    stems: Sequence[int]
    bos: int | None

    def without(self, tokens: Any) -> np.ndarray:
        """A text without the context, BOS first."""
        lead = [] if self.bos is None else [self.bos]
        return np.concatenate([lead, np.asarray(tokens)]).astype(np.int32)

    def behind(self, tokens: Any) -> np.ndarray:
        """A text behind the context, BOS first."""
        return self.without(np.concatenate([self.context, np.asarray(tokens)]))

    @property
    def shift(self) -> int:
        """By how much the context moves a text."""
        return len(self.context)


@dataclass(frozen=True)
class Solved:
    """Patches in closed form, and the seconds that they took."""

    patches: Patches
    seconds: float
    weight: float
    rank: int | None


def solve(
    checkpoint: Checkpoint, lessons: Lessons, fit: Fit, weight: float, warm: bool = True
) -> Solved:
    """One rung of the ladder, timed the second time."""
    run = (checkpoint.model, checkpoint.params, lessons.context, lessons.texts)

    def once() -> Patches:
        found = compile_context(*run, bos=lessons.bos, fit=fit, weight=weight)
        return jax.block_until_ready(found)

    if warm:
        once()
    start = clock()
    patches = once()
    return Solved(patches, clock() - start, weight, fit.rank)


def solve_memory(checkpoint: Checkpoint, lessons: Lessons, fit: Fit) -> int:
    """Bytes that a rung needs beside the model's weights: the program's temporaries, as the
    compiler says, and the calibration queries' states that it is given."""
    model, params = checkpoint.model, checkpoint.params
    made = context_queries(model, params, lessons.context, lessons.texts, bos=lessons.bos)
    program = jax.jit(functools.partial(fit_static, fit=fit)).lower(functional(model, params), made)
    return _temporaries(program) + _held(made)


def choose(
    checkpoint: Checkpoint,
    lessons: Lessons,
    fits: Sequence[Fit],
    weights: Sequence[float],
    loss: Callable[[Patches], float],
) -> tuple[Solved, list[tuple[int | None, float, float]]]:
    """The rank and ridge weight with the least loss on held-out queries, and all that were tried:
    rank, weight and loss of each.

    Args:
      checkpoint: the model.
      lessons: what to fit.
      fits: with the ranks to try.
      weights: of the ridge, to try.
      loss: of patches, on held-out queries; one that is not finite loses.
    """
    tried: list[tuple[float, Solved]] = []
    for fit in fits:
        for number, weight in enumerate(weights):
            solved = solve(checkpoint, lessons, fit, weight, warm=not number)
            tried.append((loss(solved.patches), solved))
    best = min(tried, key=lambda pair: to_choose_by(pair[0]))[1]
    return best, [(one.rank, one.weight, value) for value, one in tried]


@dataclass(frozen=True)
class Point:
    """A descent after some steps: its seconds, and its loss on held-out queries."""

    steps: int
    seconds: float
    held_out: float


@dataclass(frozen=True)
class Descended:
    """LoRA by descent.

    Attributes:
      at: the parameters when each of the asked for seconds were over.
      path: what was seen on the way.
      rate: the learning rate.
    """

    at: list[Params]
    path: list[Point]
    rate: float


def kernels(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The modules that the patches change, too: what reads the MLP's input, and the down kernel."""
    names = {name for block in designs(checkpoint.model.blocks) for name in block.input_kernels}
    return (*sorted(names - {"down"}), "down")


def descend_for(
    checkpoint: Checkpoint,
    lessons: Lessons,
    rank: int,
    rate: float,
    seconds: Sequence[float],
    key: Array,
    held_out: Callable[[Params], float] | None = None,
) -> Descended:
    """LoRA on the calibration texts by Adam until each of ``seconds`` is over, full batches.

    Args:
      checkpoint: the model.
      lessons: whose texts are learnt, without the context in front.
      rank: of the adapters, of the kernels that the patches change.
      rate: of Adam.
      seconds: increasing; of steps alone, the programs compiled before.
      key: of the adapters' first values.
      held_out: a loss of the parameters to be noted at each of ``seconds``; not on the clock.
    """
    model, params = checkpoint.model, checkpoint.params
    tokens_BT, learnt_BT = padded(lessons, model)
    adapters = new_adapters(key, params, kernels(checkpoint), rank)
    state = optax.scale_by_adam().init(adapters)
    step = functools.partial(lora_step, model, params, tokens_BT, learnt_BT, jnp.float32(rate))
    jax.block_until_ready(step(adapters, state))
    spent, steps = 0.0, 0
    at, path = [], []
    for limit in seconds:
        while any_process(spent < limit):  # Processes of one program take as many steps.
            start = clock()
            adapters, state, _ = jax.block_until_ready(step(adapters, state))
            spent += clock() - start
            steps += 1
        merged = with_adapters(params, adapters)
        at.append(merged)
        path.append(Point(steps, spent, float("nan") if held_out is None else held_out(merged)))
    return Descended(at, path, rate)


def lora_memory(checkpoint: Checkpoint, lessons: Lessons, rank: int) -> int:
    """Bytes that a step of LoRA needs beside the model's weights: the program's temporaries, as the
    compiler says, the texts, the adapters, and Adam's state of them."""
    model, params = checkpoint.model, checkpoint.params
    texts = padded(lessons, model)
    adapters = new_adapters(jax.random.key(0), params, kernels(checkpoint), rank)
    state = optax.scale_by_adam().init(adapters)
    program = lora_step.lower(model, params, *texts, jnp.float32(0), adapters, state)
    return _temporaries(program) + _held((texts, adapters, state))


def _temporaries(program: jax.stages.Lowered) -> int:
    analysis: Any = program.compile().memory_analysis()
    return int(analysis.temp_size_in_bytes)


def _held(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def padded(lessons: Lessons, model: LanguageModel) -> tuple[Array, Array]:
    """Texts (B, T) without the context, and which of their tokens are to be learnt to write."""
    texts = [lessons.without(one) for one in lessons.texts]
    length = bucket(max(map(len, texts)), model.num_positions)
    lead = int(lessons.bos is not None)
    rows, learnt = [], []
    for text, stem in zip(texts, lessons.stems, strict=True):
        rows.append(np.pad(text, (0, length - len(text)), mode="edge"))
        places = np.arange(length)
        learnt.append((places >= lead + max(stem, 1 - lead)) & (places < len(text)))
    return jnp.asarray(np.stack(rows)), jnp.asarray(np.stack(learnt))


@functools.partial(jax.jit, static_argnames="model")
def lora_step(
    model: LanguageModel,
    params: Params,
    tokens_BT: Array,
    learnt_BT: Array,
    rate: Array,
    adapters: Adapters,
    state: Any,
) -> tuple[Adapters, Any, Array]:
    """One step of Adam on the mean cross entropy of the learnt tokens."""

    def loss(adapters: Adapters) -> Array:
        merged = with_adapters(params, adapters)

        def one(tokens_T: Array, learnt_T: Array) -> Array:
            size = tokens_T.shape[0]
            stream_TD = forward(
                functional(model, merged),
                embed(model, merged, tokens_T),
                present_T=presence(model, jnp.asarray(size, jnp.int32), size),
            )
            logits_TV = readout(model, merged, stream_TD[:-1])
            losses_T = optax.softmax_cross_entropy_with_integer_labels(logits_TV, tokens_T[1:])
            return jnp.sum(jnp.where(learnt_T[1:], losses_T, 0))

        total = jnp.sum(jax.vmap(one)(tokens_BT, learnt_BT))
        return total / jnp.sum(learnt_BT, dtype=total.dtype)

    value, gradient = jax.value_and_grad(loss)(adapters)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        change, state = optax.scale_by_adam().update(gradient, state, adapters)
        moved = jax.tree.map(lambda leaf, step: leaf - rate * step, adapters, change)
    return moved, state, value
