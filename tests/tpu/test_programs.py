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
from icl_jax.language import attribution, prompt, writing
from icl_jax.language.batch import Prompts
from icl_jax.language.ends import embed, readout
from icl_jax.language.sampling import GREEDY
from icl_jax.patches.bank import compact_bank
from icl_jax.patches.extraction import extract
from icl_jax.stack.run import forward
from icl_jax.stack.sites import watch
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
        run = jax.jit({**PROGRAMS, **PUBLIC}[program](model, 64))
        return run.lower(*on_one_chip(mesh, shapes, tokens)).compile()


def one_prompt(tokens_T, kept):
    length = tokens_T.shape[0]
    kept_K = jnp.arange(length - kept, length, dtype=jnp.int32)
    counts = (jnp.array([number], jnp.int32) for number in (length, kept))
    return Prompts(tokens_T[None], next(counts), kept_K[None], next(counts))


def patched(model, kept):
    """The kept tokens alone, with patches that were made of the whole prompt."""

    def run(params, tokens_T):
        prompts = one_prompt(tokens_T, kept)
        banks, _ = prompt._patches(model, params, prompts, loop="closed", output="auto")
        return prompt._alone(model, params, prompts, banks.patches)

    return run


def attributed(model, kept):
    def run(params, tokens_T):
        row_B = jnp.array([kept - 1], jnp.int32)
        return attribution._attribute(model, params, one_prompt(tokens_T, kept), row_B, "input")

    return run


def written(model, kept):
    """Both loops of generation, over what they begin with."""
    options = {"sampling": GREEDY}
    keys_B, stop_S = jax.random.split(jax.random.key(0), 1), jnp.array([-1], jnp.int32)

    def run(params, tokens_T):
        given = (model, params, one_prompt(tokens_T, kept))
        watching = watch("test", functional(model, params))
        text = writing.begin(*given, None, keys_B, stop_S, watching, room=32, **options)
        text = writing.go_on(model, params, text, 32, stop_S, watching, **options)
        both = {**options, "output": "auto"}
        other = writing.begin_patched(*given, keys_B, stop_S, room=32, **both)
        other = writing.go_on_patched(model, params, other, 32, stop_S, **both)
        return text.tokens_BN, other.tokens_BN

    return run


#: What stands on the main programs.
PUBLIC = {"patched": patched, "attributed": attributed, "written": written}


@pytest.mark.parametrize("generation", GIBIBYTES)
@pytest.mark.parametrize("program", PUBLIC)
def test_what_stands_on_them_takes_the_kernel_too_and_fits(generation, program):
    program = compiled(generation, program, 2048, layers=2)
    assert "tpu_custom_call" in program.as_text()
    # Of two layers; the 14 others add their parameters, caches and patches.
    memory = program.memory_analysis()
    layer = 2 * 2048 * (2 * 2048 + 2 * 512 + 3 * 8192)
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes + 14 * layer
    assert needed < GIBIBYTES[generation] * 2**30


@pytest.mark.parametrize("generation", GIBIBYTES)
@pytest.mark.parametrize("program", PROGRAMS)
def test_the_main_programs_take_the_kernel(generation, program):
    assert "tpu_custom_call" in compiled(generation, program, 2048, layers=2).as_text()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_long_prompt_of_a_1b_model_fits_one_v5e(program):
    memory = compiled("v5e", program, 32768).memory_analysis()
    needed = memory.temp_size_in_bytes + memory.argument_size_in_bytes
    assert needed + memory.output_size_in_bytes < GIBIBYTES["v5e"] * 2**30
