"""What the tests of the mathematical core share: one tolerance, and how random cases are drawn.

Hypothesis draws names, sizes and small integers; arrays come from jax.random keys, so that a
failing example is short and everybody's.
"""

import functools
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from hypothesis import strategies as st
from jax.extend.core import jaxprs_in_params

from icl_jax.blocks.block import Block
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.delta import GatedDelta
from icl_jax.blocks.experts import Experts
from icl_jax.blocks.feedforward import Dense, Feedforward, Gated
from icl_jax.blocks.functional import functional
from icl_jax.blocks.linear_attention import LinearAttention
from icl_jax.blocks.recurrent import GatedRecurrent, StateSpace
from icl_jax.blocks.rotary import Rotary
from icl_jax.blocks.selective import SelectiveStateSpace
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import Stack, repeat
from icl_jax.blocks.wiring import WIRINGS
from icl_jax.stack.layers import Layers

WIDTH = 8

#: One of each contextual layer, and the variants that a patch could trip over.
LAYERS: dict[str, ContextualLayer] = {
    "attention": SoftmaxAttention(num_heads=2),
    "attention_bidirectional": SoftmaxAttention(num_heads=2, causal=False, use_bias=True),
    "attention_rotary": SoftmaxAttention(num_heads=2, rotary=Rotary(50.0)),
    "attention_grouped": SoftmaxAttention(
        num_heads=4, num_kv_heads=2, rotary=Rotary(50.0), window=3, soft_cap=20.0, qk_norm="head"
    ),
    "attention_sloped": SoftmaxAttention(num_heads=2, slopes=(0.5, 0.1), sinks=True),
    "linear_attention": LinearAttention(num_heads=2),
    "linear_bidirectional": LinearAttention(num_heads=2, causal=False, use_bias=True),
    "state_space": StateSpace(state_width=16),
    "recurrent": GatedRecurrent(state_width=8),
    "delta": GatedDelta(num_heads=4, num_key_heads=2, key_width=3, value_width=5, taps=3),
    # As wide as the stream, so that it goes into every wiring.
    "selective": SelectiveStateSpace(
        num_heads=4, num_key_heads=2, key_width=3, value_width=2, taps=3, use_bias=True
    ),
}

MLPS: dict[str, Feedforward] = {
    "linear": Dense(hidden_widths=(), use_bias=False),
    "linear_bias": Dense(hidden_widths=()),
    "dense": Dense(hidden_widths=(16,), use_bias=False),
    "dense_bias": Dense(hidden_widths=(16,)),
    "deep": Dense(hidden_widths=(16, 8, 16), activation="gelu", use_bias=False),
    "deep_bias": Dense(hidden_widths=(16, 8, 16), activation="tanh"),
    "gated": Gated(hidden_width=16, activation="silu", use_bias=False),
    "gated_bias": Gated(hidden_width=16, activation="gelu_tanh"),
    "experts": Experts(num_experts=4, experts_per_token=2, hidden_width=8, shared_width=4),
}


def eps(dtype: Any, length: int = 1, *, condition: float = 1.0) -> float:
    """The relative error to expect of a computation in ``dtype``: the one tolerance of the tests.

    Args:
      dtype: in which it is computed.
      length: of its longest reduction, times the number of reductions in a row. Errors of rounding
        add up like a random walk: a factor ``sqrt(length)``, and 8 for the tail of small cases.
      condition: how many times larger the largest intermediate quantity is than the result.
    """
    return 8 * float(jnp.finfo(dtype).eps) * math.sqrt(length) * condition


def relative_error(got: Any, want: Any) -> float:
    """``|got - want| / |want|`` in the Frobenius norm, in float64."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, f"shapes {got.shape} and {want.shape}"
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def assert_close(got: Any, want: Any, length: int = 1, *, condition: float = 1.0) -> None:
    """Asserts the dtype of ``want`` and a relative error within ``eps`` of that dtype."""
    assert jnp.result_type(got) == jnp.result_type(want)
    error, bound = relative_error(got, want), eps(got.dtype, length, condition=condition)
    assert error <= bound, f"relative error {error:.2e} above {bound:.2e}"


def assert_trees_close(got: Any, want: Any, length: int = 1, *, condition: float = 1.0) -> None:
    """Asserts equal structure, and ``assert_close`` or exactly zero on every leaf."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for got_leaf, want_leaf in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        if not jnp.issubdtype(want_leaf.dtype, jnp.floating):
            np.testing.assert_array_equal(got_leaf, want_leaf)
        elif not np.any(np.asarray(want_leaf)):
            assert not np.any(np.asarray(got_leaf))
        else:
            assert_close(got_leaf, want_leaf, length, condition=condition)


#: Compiling takes a second, running a microsecond: optimise little (see conftest.py).
compiled = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 1})


def normal(seed: int, *shape: int, dtype: Any = jnp.float64) -> jax.Array:
    """Independent standard normal entries."""
    # Drawn at one size, and so compiled once for all shapes.
    size = math.prod(shape)
    draws = np.asarray(_draws(jax.random.key(seed), 4096 * math.ceil(size / 4096)))
    return jnp.asarray(draws[:size].reshape(shape)).astype(dtype)


@functools.partial(jax.jit, static_argnums=1)
def _draws(key: jax.Array, size: int) -> jax.Array:
    return jax.random.normal(key, (size,), jnp.float64)


def random_params(module: nn.Module, seed: int, *inputs: Any) -> Any:
    """float32 parameters of a Flax module, all of them random: no bias is zero, no gain is one.

    Kernels have the scale of Flax's initialisers. Only shapes are traced, nothing is compiled.
    """
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    paths, tree = jax.tree.flatten_with_path(shapes)
    draws = np.asarray(normal(seed, sum(math.prod(leaf.shape) for _, leaf in paths)))
    leaves, start = [], 0
    for path, leaf in paths:
        name, stop = path[-1].key, start + math.prod(leaf.shape)
        # Of a layer, without the axis of the layers it is stacked with.
        shape = leaf.shape[str(path[0].key).startswith("layers_") :]
        noise = draws[start:stop].reshape(leaf.shape)
        start = stop
        if len(shape) < 2 or name.endswith("bias"):
            value = 0.3 * noise + (name in ("scale", "skip"))
        else:
            # A convolution sums over its taps, one channel at a time.
            fan_in = {"out": math.prod(shape[:-1]), "taps": shape[-1]}.get(name, shape[0])
            value = noise / math.sqrt(fan_in)
        leaves.append(jnp.asarray(value.astype(leaf.dtype)))
    return tree.unflatten(leaves)


@dataclass(frozen=True)
class Model:
    """A stack with random parameters and its layers as pure functions."""

    stack: Stack
    params: Any
    layers: Layers

    @property
    def blocks(self) -> tuple[Any, ...]:
        """The block of every layer."""
        return self.layers.blocks

    @property
    def block_params(self) -> tuple[Any, ...]:
        """The parameters of every layer."""
        return tuple(self.layers.params)

    def embed(self, tokens_TC: jax.Array) -> jax.Array:
        """The residual stream before the first block."""
        return self.stack.apply({"params": self.params}, tokens_TC, method="embed")


def make_model(block: Block, depth: int = 1, *, seed: int = 0, channels: int = 3) -> Model:
    """A stack of ``depth`` clones of a block, every parameter random, float32."""
    stack = Stack(repeat(block, depth), width=WIDTH, output_width=2, final_norm="layer")
    params = random_params(stack, seed, jnp.zeros((2, channels), jnp.float32))
    return Model(stack, params, functional(stack, params))


@dataclass(frozen=True)
class Case:
    """A random model, the length of a sequence, and the positions kept of it."""

    layer: str
    mlp: str
    wiring: str
    norm: str
    depth: int
    length: int
    kept: tuple[int, ...]
    seed: int
    dtype: str

    @property
    def model(self) -> Model:
        """The model, built anew."""
        block = Block(LAYERS[self.layer], MLPS[self.mlp], self.wiring, self.norm)
        return make_model(block, self.depth, seed=self.seed)

    def tokens(self, prompt: int = 0) -> jax.Array:
        """The tokens (T, 3) of one of the prompts."""
        return normal(7919 * (self.seed + 1) + prompt, self.length, 3, dtype=self.dtype)

    @property
    def reduction(self) -> int:
        """The length of the reductions that follow one another in a run."""
        return self.depth * (self.length + WIDTH + 16)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations of a program, those of its parts included."""
    for equation in jaxpr.eqns:
        yield equation
        yield from itertools.chain.from_iterable(
            equations(part) for part in jaxprs_in_params(equation.params)
        )


def counted(closed: Any) -> dict[str, int]:
    """How often each primitive occurs in a program; ``jax.checkpoint`` is one named remat."""
    counts: dict[str, int] = {}
    for equation in equations(closed.jaxpr):
        name = "remat" if equation.primitive.name in ("checkpoint", "remat2") else None
        name = name or equation.primitive.name
        counts[name] = counts.get(name, 0) + 1
    return counts


def seeds() -> st.SearchStrategy[int]:
    """Small integers for ``jax.random.key``."""
    return st.integers(0, 999)


def kept_sets(length: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Kept positions: the query, the first token, both, or any proper subset."""
    anything = st.sets(st.integers(0, length - 1), min_size=1, max_size=length - 1)
    return st.one_of(
        st.just((length - 1,)),
        st.just((0,)),
        st.just((0, length - 1)),
        anything.map(lambda kept: tuple(sorted(kept))),
    )


@st.composite
def cases(draw: st.DrawFn, dtypes: tuple[str, ...] = ("float32", "float64")) -> Case:
    """Everything a token patch can meet."""
    layer = draw(st.sampled_from(sorted(LAYERS)))
    wiring = draw(st.sampled_from(tuple(WIRINGS)))
    norm = draw(st.sampled_from(("layer", "rms", "none")))
    length = draw(st.sampled_from((3, 6)))
    # Linear attention is a cubic: unnormed, two layers of it leave the range of float32.
    explodes = layer.startswith("linear") and (norm == "none" or wiring in ("no_skip", "skip"))
    return Case(
        layer=layer,
        mlp=draw(st.sampled_from(sorted(MLPS))),
        wiring=wiring,
        norm=norm,
        depth=1 if explodes else draw(st.integers(1, 3)),
        length=length,
        kept=draw(kept_sets(length)),
        seed=draw(seeds()),
        dtype=draw(st.sampled_from(dtypes)),
    )
