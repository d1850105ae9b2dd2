"""Twice the tokens, twice the memory: what a program holds beside what it is given."""

import jax
import jax.numpy as jnp
import pytest

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.functional import functional
from icl_jax.blocks.rotary import Rotary
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import Stack, repeat
from icl_jax.dynamics.attribution import attribute_block
from icl_jax.dynamics.prefixes import prefix_pass
from icl_jax.patches.extraction import stack_patches
from icl_jax.stack.run import forward

WIDTH, KEPT = 64, 8

PROGRAMS = {
    "forward": lambda layers, stream_TD, kept_K: forward(layers, stream_TD),
    "stack_patches": stack_patches,
    "open_loop": lambda *run: stack_patches(*run, loop="open"),
    "prefix_pass": lambda layers, stream_TD, _: (
        prefix_pass(layers, stream_TD[:-1], stream_TD[-1]).output_MD
    ),
    "attribute_block": lambda layers, stream_TD, kept_K: attribute_block(
        *layers[0], stream_TD, kept_K, rows_X=jnp.array([KEPT - 1])
    ),
}


def temporaries(name, length):
    attention = SoftmaxAttention(num_heads=4, num_kv_heads=2, rotary=Rotary(1e4), use_bias=False)
    block = Block(attention, Gated(hidden_width=2 * WIDTH, use_bias=False), norm="rms")
    stack = Stack(repeat(block, 2), width=WIDTH)
    shapes = jax.eval_shape(stack.init, jax.random.key(0), jnp.zeros((2, 3), jnp.float32))
    given = (
        shapes["params"],
        jax.ShapeDtypeStruct((length, WIDTH), jnp.float32),
        jax.ShapeDtypeStruct((KEPT,), jnp.int32),
    )
    run = jax.jit(lambda params, *rest: PROGRAMS[name](functional(stack, params), *rest))
    return run.lower(*given).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", PROGRAMS)
def test_twice_as_many_tokens_take_little_more_than_twice_the_memory(name):
    few, many = (temporaries(name, length) for length in (4096, 8192))
    # A matrix of scores, of one head alone, would be larger than all of it.
    assert few < 4096 * 4096 * 4
    assert many <= 2.2 * few
