"""The program of a walk over a stack does not grow with its depth, whatever stands in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.blocks.functional import functional
from icl_jax.blocks.stack import Stack
from icl_jax.dynamics.prefixes import prefix_pass
from icl_jax.patches.extraction import patched_forward, stack_patches
from icl_jax.stack.run import forward
from tests.helpers import LAYERS, MLPS, WIDTH, counted, normal

#: Local and global attention, and a mixture of experts.
KINDS = {
    "L": Block(LAYERS["attention_grouped"], MLPS["gated"], "sandwich", "rms"),
    "G": Block(LAYERS["attention_rotary"], MLPS["gated"], "sandwich", "rms"),
    "M": Block(LAYERS["attention_rotary"], MLPS["experts"], "pre_norm", "rms"),
}


def model_of(pattern):
    """A stack of such blocks; programs are looked at, not run, so its parameters are zeros."""
    stack = Stack(tuple(KINDS[kind].clone() for kind in pattern), width=WIDTH)
    tokens_TC = jnp.zeros((2, 3), jnp.float32)
    shapes = jax.eval_shape(stack.init, jax.random.key(0), tokens_TC)["params"]
    return functional(stack, jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))


HIDDEN_TD = normal(1, 6, WIDTH, dtype="float32")
WALKS = {
    "forward": lambda layers: forward(layers, HIDDEN_TD),
    "stack_patches": lambda layers: stack_patches(layers, HIDDEN_TD, [2, 5]),
    "open_loop": lambda layers: stack_patches(layers, HIDDEN_TD, [2, 5], loop="open"),
    "patched_forward": lambda layers: patched_forward(
        layers, HIDDEN_TD, stack_patches(layers, HIDDEN_TD, [2, 5])
    ),
    "prefix_pass": lambda layers: prefix_pass(layers, HIDDEN_TD[:-1], HIDDEN_TD[-1]),
    "gradient": lambda layers: jax.grad(lambda x: jnp.sum(forward(layers, x) ** 2))(HIDDEN_TD),
}


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize(
    ("few", "many"),
    (
        ("L" * 4, "L" * 32),
        ("LLLLLG" * 2, "LLLLLG" * 5),
        ("M" * 4, "M" * 32),
        ("G" + "L" * 4, "G" + "L" * 31),
        ("LLLLLG" * 2 + "LL", "LLLLLG" * 4 + "LL"),
    ),
    ids=("equal", "five_to_one", "mixture", "another_first", "gemma_3_with_its_tail"),
)
def test_the_size_of_a_program_does_not_depend_on_the_depth(walk, few, many):
    models = [model_of(one) for one in (few, many)]
    assert len(models[0].designs) == len(models[1].designs)  # A segment is a loop of its own.
    shallow, deep = (counted(jax.make_jaxpr(WALKS[walk])(model)) for model in models)
    assert shallow == deep
    assert shallow["scan"] >= 1 and sum(shallow.values()) > 20
