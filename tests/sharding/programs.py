"""The main programs on a small model, for a mesh or without one: what the tests of meshes run."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_jax.blocks.block import Block
from icl_jax.blocks.experts import Experts
from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.functional import cast, functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.rotary import Rotary
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import repeat
from icl_jax.descent.finetune import descend
from icl_jax.descent.fleet import fleet
from icl_jax.dynamics.prefixes import prefix_pass
from icl_jax.language.attribution import attribute
from icl_jax.language.ends import embed
from icl_jax.language.generation import generate, patched_generate
from icl_jax.language.prefixes import prefix_logits
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.sharding import place
from icl_jax.tasks.text import random_windows
from icl_jax.training.step import advance, initial_state
from tests.helpers import normal, random_params

#: Eight prompts, of two buckets' worth of lengths, and what is kept of each.
LENGTHS = (11, 9, 12, 7, 11, 12, 10, 8)
TOKENS = [
    np.random.default_rng(i).integers(0, 96, n).astype(np.int32) for i, n in enumerate(LENGTHS)
]
KEPT = [np.array([0, n - 1]) for n in LENGTHS]


def model(mlp: str = "gated", num_kv_heads: int = 2) -> LanguageModel:
    """Three layers of six heads, tied to an embedding of 96 tokens.

    No weight has the shape of an activation, so that a message tells which of them it carries.
    """
    attention = SoftmaxAttention(
        num_heads=6, num_kv_heads=num_kv_heads, head_width=6, rotary=Rotary(100.0)
    )
    mlps = {
        "gated": Gated(hidden_width=28, activation="silu", use_bias=False),
        "experts": Experts(num_experts=4, experts_per_token=2, hidden_width=8, shared_width=4),
    }
    return LanguageModel(repeat(Block(attention, mlps[mlp], "pre_norm", "rms"), 3), 96, 20)


@functools.cache
def weights(mlp: str, num_kv_heads: int, dtype: Any) -> Any:
    """Random parameters."""
    params = random_params(model(mlp, num_kv_heads), 0, jax.ShapeDtypeStruct((2,), jnp.int32))
    return cast(params, dtype)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model with its parameters, where they lie."""

    model: LanguageModel
    params: Any


def setting(dtype: Any, *, mlp: str = "gated", num_kv_heads: int = 2) -> Setting:
    """On the mesh that is set, or on one device."""
    return Setting(model(mlp, num_kv_heads), place(weights(mlp, num_kv_heads, dtype)))


def _patched(on: Setting) -> Any:
    banks = prompt_patches(on.model, on.params, TOKENS, KEPT)
    return banks, patched_logits(on.model, on.params, TOKENS, banks)


def _prefixes(on: Setting) -> Any:
    stream_TD = embed(on.model, on.params, jnp.asarray(TOKENS[0]))
    return prefix_pass(functional(on.model, on.params), stream_TD[:-1], stream_TD[-1])


def _descents(on: Setting) -> Any:
    def run(task: Any, rate: Any) -> Any:
        def loss(weights_D: Any) -> Any:
            return jnp.mean((task[0] @ weights_D - task[1]) ** 2)

        return descend(loss, jnp.zeros(3), optax.sgd(rate), num_steps=4).losses_S

    tasks = (normal(0, 8, 5, 3), normal(1, 8, 5))
    return jax.jit(functools.partial(fleet, run))(tasks, jnp.array([0.05, 0.2]))


def loss(params: Any, key: Any, *, model: LanguageModel) -> Any:
    """Cross entropy of fresh windows."""
    text_N = jnp.asarray(np.concatenate(TOKENS))
    windows_BT = random_windows(key, text_N, num_windows=8, length=9)

    def one(tokens_T: Any) -> Any:
        logits: Any = model.apply({"params": params}, tokens_T[:-1])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens_T[1:]))

    return jnp.mean(jax.vmap(one)(windows_BT)), {}


OPTIMIZER = optax.adam(1e-3)
#: The same function object each time, so that it is compiled once.
LOSSES = {mlp: functools.partial(loss, model=model(mlp)) for mlp in ("gated",)}


def training_state(on: Setting) -> Any:
    """What the training step starts from."""
    return initial_state(lambda key: on.params, OPTIMIZER, jax.random.key(0))


def _training(on: Setting) -> Any:
    state, table, _ = advance(
        training_state(on),
        jax.random.key(0),
        3,
        loss=LOSSES["gated"],
        optimizer=OPTIMIZER,
        capacity=3,
    )
    return state.params, state.opt_state, table


def quick(names: Any, *chosen: str) -> list[Any]:
    """Parameters of a test: all names, those that were not chosen marked as slow (they compile)."""
    return [
        name if name in chosen else pytest.param(name, marks=pytest.mark.slow) for name in names
    ]


#: By name: what a program gives in a setting.
PROGRAMS = {
    "full_logits": lambda on: full_logits(on.model, on.params, TOKENS, KEPT),
    "alone_logits": lambda on: alone_logits(on.model, on.params, TOKENS, KEPT),
    "prefix_logits": lambda on: prefix_logits(on.model, on.params, TOKENS),
    "patches": _patched,
    "generate": lambda on: generate(on.model, on.params, TOKENS, 5),
    "patched_generate": lambda on: [
        (one.tokens_N, one.bank) for one in patched_generate(on.model, on.params, TOKENS, KEPT, 5)
    ],
    "attribute": lambda on: attribute(on.model, on.params, TOKENS, KEPT),
    "prefixes": _prefixes,
    "fleet": _descents,
    "training": _training,
}
