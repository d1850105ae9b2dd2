"""What does a context as weights cost in closed form, and what by descent to the same loss?

    python -m benchmarks.reusable --json=FILE

Rows on one model of random weights, all in one process.

Memory: the streaming fit over a few calibration tokens and over many times as many: bytes of what
it holds (the temporaries that the compiler reports, and the sums), which do not grow; and the fit
in order, which holds all states, beside it.

Descent: the closed form, and LoRA by Adam at the same rank on the same texts, until its held-out
loss is that of the closed form or ``--steps`` are over (the row says which).

Random weights are enough for seconds and bytes. What a trained model keeps is measured by
``experiments.kept``.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks.harness import as_row, launch, nbytes
from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.rotary import Rotary
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.descent.adapters import new_adapters, with_adapters
from icl_jax.language.compile import compile_context, context_queries, static_logits
from icl_jax.language.prompt import full_logits
from icl_jax.measures.distributions import kl_divergence
from icl_jax.optimizers import OptimizerConfig
from icl_jax.patches.fit import Fit
from icl_jax.patches.ladder import fit_static
from icl_jax.patches.ladder_sums import solve_static, static_sums
from icl_jax.patches.static import merge_sums

_WIDTH = flags.DEFINE_integer("width", 256, "model width d", lower_bound=8)
_LAYERS = flags.DEFINE_integer("layers", 4, "blocks", lower_bound=1)
_VOCAB = flags.DEFINE_integer("vocab", 512, "tokens of the vocabulary", lower_bound=16)
_CONTEXT = flags.DEFINE_integer("context", 64, "tokens of the context", lower_bound=1)
_TOKENS = flags.DEFINE_list(
    "tokens", ["1000", "10000", "100000"], "calibration tokens of the streaming fit"
)
_IN_ORDER = flags.DEFINE_integer("in_order", 10000, "most tokens of the fit in order")
_RANK = flags.DEFINE_integer("rank", 8, "of the updates", lower_bound=1)
_STEPS = flags.DEFINE_integer("steps", 200, "most steps of the descent", lower_bound=1)

QUERY, BATCH = 10, 8  # Tokens of a query; queries of one batch of the stream.


def made() -> tuple[LanguageModel, Any]:
    """A small decoder of random weights."""
    width = _WIDTH.value
    block = Block(
        SoftmaxAttention(num_heads=4, rotary=Rotary(10000.0)),
        Gated(hidden_width=3 * width, activation="silu", use_bias=False),
        norm="rms",
    )
    blocks = tuple(block.clone() for _ in range(_LAYERS.value))
    model = LanguageModel(blocks, vocab_size=_VOCAB.value, width=width)
    return model, model.init(jax.random.key(0), jnp.arange(4))["params"]


def drawn(seed: int, count: int) -> list[np.ndarray]:
    """Random queries."""
    return list(np.random.default_rng(seed).integers(1, _VOCAB.value, (count, QUERY)))


def memory(model: LanguageModel, params: Any, context_T: np.ndarray) -> list[dict[str, Any]]:
    """The streaming fit at several lengths, beside the fit in order."""
    layers = functional(model, params)
    fit = Fit(rank=_RANK.value, order="at_once")
    first = context_queries(model, params, context_T, drawn(0, BATCH), bos=0)
    program = jax.jit(static_sums).lower(layers, first).compile().memory_analysis()
    add = jax.jit(merge_sums, donate_argnums=0)  # In the place of the sums so far.
    asking = functools.partial(context_queries, model, params, context_T, bos=0)

    def stream(batches: int) -> int:
        """The patches, once; and the most bytes that were held at a time."""
        sums, most = None, 0
        for number in range(batches):
            part = asking(drawn(number, BATCH))
            found = static_sums(layers, part)
            sums = found if sums is None else add(sums, found)
            most = max(most, nbytes((sums, found, part)) + program.temp_size_in_bytes)
        jax.block_until_ready(solve_static(layers, sums, fit))
        return most

    def in_order(batches: int) -> int:
        asked = asking(drawn(0, batches * BATCH))
        jax.block_until_ready(fit_static(layers, asked, Fit(rank=_RANK.value)))
        return nbytes(asked)

    def temporaries(batches: int) -> int:
        run = functools.partial(fit_static, fit=Fit(rank=_RANK.value))
        asked = asking(drawn(0, batches * BATCH))
        return int(jax.jit(run).lower(layers, asked).compile().memory_analysis().temp_size_in_bytes)

    rows = []
    stream(2)  # Compiled before anything is timed.
    for tokens in map(int, _TOKENS.value):
        batches = max(2, tokens // (BATCH * QUERY))
        held_whole = tokens <= _IN_ORDER.value
        if held_whole:
            in_order(batches)
        sides = {"streaming, at once": stream}
        sides["in order" if held_whole else "streaming, again"] = in_order if held_whole else stream
        seconds, sizes = {}, {}
        for label, side in sides.items():
            start = time.perf_counter()
            sizes[label] = side(batches)
            seconds[label] = [time.perf_counter() - start]
        if held_whole:
            sizes["in order"] += temporaries(batches)
        told = {"tokens": tokens, "context": len(context_T), "layers": len(layers)}
        rows.append(as_row(f"static patch from {tokens:,} tokens", seconds, sizes, sizes=told))
    return rows


def descent(model: LanguageModel, params: Any, context_T: np.ndarray) -> dict[str, Any]:
    """The closed form, and LoRA until it has the same held-out loss, or its steps are over."""
    texts, new = drawn(0, 24), drawn(1, 24)
    read = [np.arange(1, QUERY + 1)] * len(new)
    alone = [np.concatenate([[0], one]) for one in new]
    behind = [np.concatenate([[0], context_T, one]) for one in new]
    shifted = [rows + len(context_T) for rows in read]
    full = jnp.concatenate(full_logits(model, params, behind, shifted))

    def off(found: Any) -> float:
        return float(jnp.mean(kl_divergence(full, jnp.concatenate(found))))

    def closed() -> Any:
        run = (model, params, context_T, texts)
        return jax.block_until_ready(compile_context(*run, bos=0, fit=Fit(rank=_RANK.value)))

    closed()
    start = time.perf_counter()
    patches = closed()
    seconds = {"closed form": [time.perf_counter() - start]}
    target = off(static_logits(model, params, alone, read, patches))

    # Distillation: the full run's distributions over the same texts are what is learnt.
    tokens_BT = jnp.stack([jnp.concatenate([jnp.zeros(1, jnp.int32), one]) for one in texts])
    rows_B = [np.arange(1, QUERY + 1) + len(context_T)] * len(texts)
    taught_BKV = jnp.stack(
        full_logits(model, params, [np.concatenate([[0], context_T, one]) for one in texts], rows_B)
    )
    adapters = new_adapters(jax.random.key(0), params, ("gate", "up", "down"), _RANK.value)
    optimizer = OptimizerConfig("adam").make(3e-3, _STEPS.value)

    @jax.jit
    def step(adapters: Any, state: Any) -> tuple[Any, Any]:
        def loss(adapters: Any) -> Any:
            merged = with_adapters(params, adapters)
            logits = jax.vmap(lambda tokens: model.apply({"params": merged}, tokens))(tokens_BT)
            return jnp.mean(kl_divergence(taught_BKV, logits[:, 1:]))

        change, state = optimizer.update(jax.grad(loss)(adapters), state, adapters)
        return jax.tree.map(jnp.add, adapters, change), state

    state = optimizer.init(adapters)
    program = step.lower(adapters, state).compile().memory_analysis()
    jax.block_until_ready(step(adapters, state))
    spent, steps, reached = 0.0, 0, float("inf")
    while steps < _STEPS.value and reached > target:
        start = time.perf_counter()
        for _ in range(10):
            adapters, state = step(adapters, state)
        jax.block_until_ready(adapters)
        spent, steps = spent + time.perf_counter() - start, steps + 10
        reached = off(full_logits(model, with_adapters(params, adapters), alone, read))
    seconds["LoRA by Adam"] = [spent]
    asked = context_queries(model, params, context_T, texts, bos=0)
    fit = functools.partial(fit_static, fit=Fit(rank=_RANK.value))
    needed = jax.jit(fit).lower(functional(model, params), asked).compile().memory_analysis()
    sizes = {
        "closed form": needed.temp_size_in_bytes + nbytes(asked),
        "LoRA by Adam": program.temp_size_in_bytes + nbytes((adapters, state, taught_BKV)),
    }
    told = {"steps": steps, "rank": _RANK.value, "texts": len(texts)}
    name = "to the same held-out loss" if reached <= target else "the loss was not reached"
    row = as_row(name, seconds, sizes, sizes=told)
    nothing = off(full_logits(model, params, alone, read))
    return {**row, "held_out": {"closed": target, "lora": reached, "no context": nothing}}


def benchmark() -> list[dict[str, Any]]:
    """Memory over calibration tokens, and the closed form beside descent."""
    model, params = made()
    context_T = np.random.default_rng(9).integers(1, _VOCAB.value, _CONTEXT.value)
    return [*memory(model, params, context_T), descent(model, params, context_T)]


if __name__ == "__main__":
    launch(benchmark)
