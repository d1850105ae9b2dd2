"""The main programs compile for TPUs, with the kernel in them, within a chip's memory.

Nothing is run: there is no TPU here.
"""

import jax
import jax.numpy as jnp
import pytest

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.functional import functional
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.rotary import Rotary
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import repeat
from icl_jax.dynamics.prefixes import prefix_pass
from icl_jax.language.ends import embed, readout
from icl_jax.patches.bank import compact_bank
from icl_jax.patches.extraction import extract
from icl_jax.stack.run import forward
from tests.tpu.topologies import GIBIBYTES, on_one_chip, one_chip

pytestmark = pytest.mark.tpu


def llama(layers=16):
    """The shape of Llama 3.2 1B, and the shapes of its parameters."""
    attention = SoftmaxAttention(
        num_heads=32, num_kv_heads=8, rotary=Rotary(500000.0), dtype=jnp.bfloat16
    )
    mlp = Gated(hidden_width=8192, activation="silu", use_bias=False, dtype=jnp.bfloat16)
    blocks = repeat(Block(attention, mlp, "pre_norm", "rms"), layers)
    model = LanguageModel(blocks, 128256, 2048, dtype=jnp.bfloat16)
    tokens = jax.ShapeDtypeStruct((2,), jnp.int32)
    return model, jax.eval_shape(model.init, jax.random.key(0), tokens)["params"]


def full(model, kept):
    def run(params, tokens_T):
        stream_TD = forward(functional(model, params), embed(model, params, tokens_T))
        return readout(model, params, stream_TD[-kept:])

    return run


def patches(model, kept):
    def run(params, tokens_T):
        length = tokens_T.shape[0]
        kept_K = jnp.arange(length - kept, length, dtype=jnp.int32)
        layers = functional(model, params)
        stream_TD = embed(model, params, tokens_T)
        return compact_bank(extract(layers, stream_TD, kept_K, loop="closed", output="auto"))

    return run


def prefixes(model, kept):
    del kept

    def run(params, tokens_T):
        stream_TD = embed(model, params, tokens_T)
        layers = functional(model, params)
        return prefix_pass(layers, stream_TD[:-1], stream_TD[-1]).output_MD[-1]

    return run


PROGRAMS = {"full": full, "patches": patches, "prefixes": prefixes}


def compiled(generation, program, length, layers=16):
    model, shapes = llama(layers)
    mesh = one_chip(generation)
    tokens = jax.ShapeDtypeStruct((length,), jnp.int32)
    with jax.set_mesh(mesh):
        run = jax.jit(PROGRAMS[program](model, 64))
        return run.lower(*on_one_chip(mesh, shapes, tokens)).compile()


@pytest.mark.parametrize("generation", GIBIBYTES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_main_programs_take_the_kernel(generation, program):
    assert "tpu_custom_call" in compiled(generation, program, 2048, layers=2).as_text()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_long_prompt_of_a_1b_model_fits_one_v5e(program):
    memory = compiled("v5e", program, 32768).memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    assert needed + memory.output_size_in_bytes < GIBIBYTES["v5e"] * 2**30
