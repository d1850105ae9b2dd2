"""What is said of a bank before it is used, beside what happens when it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.patches.bank import forward, patched_forward, stack_patches
from icl_jax.patches.prediction import check_open_loop, open_loop_growth
from icl_jax.patches.token import Conditioning
from icl_jax.stack.layers import PerLayer
from tests.helpers import LAYERS, MLPS, compiled, eps, make_model, normal, relative_error

KEPT = [0, 5]


@pytest.fixture(scope="module")
def run():
    model = make_model(Block(LAYERS["attention"], MLPS["gated"], "sandwich", "rms"), 3)
    stream_TD = model.embed(normal(3, 6, 3, dtype=jnp.float32))
    return model.layers, stream_TD


def numbers(*sizes):
    """Conditioning of a layer for every size, with one kept position; two segments."""
    one_RK = jnp.ones((1, 1), jnp.float32)
    above_RK = jnp.array(sizes[1:], jnp.float32)[:, None]
    return PerLayer(
        (
            (Conditioning(one_RK, one_RK, amplification=sizes[0] * one_RK),),
            (Conditioning(0 * above_RK, 0 * above_RK, amplification=above_RK),),
        ),
        (1, len(sizes) - 1),
    )


#: Without a norm on the output.
PLAIN = PerLayer(((Conditioning(jnp.ones((1, 1)), jnp.ones((1, 1))),),), (1,))


def with_a_small_entry(layers):
    """The same stack, with an entry of every MLP's output near zero."""

    def smaller(path, leaf):
        return leaf.at[..., 0].multiply(1e-5) if "down" in jax.tree_util.keystr(path) else leaf

    params = jax.tree_util.tree_map_with_path(smaller, layers.params)
    return dataclasses.replace(layers, params=params)


def test_growth_is_the_product_over_the_layers():
    assert open_loop_growth(numbers(1.0, 3.0, 0.5)) == pytest.approx(12.0)
    assert open_loop_growth(PLAIN) is None


def test_growth_bounds_the_error_of_an_open_loop(run):
    want_KD = forward(*run)[jnp.array(KEPT)]
    bank = stack_patches(*run, KEPT, loop="open")
    error = relative_error(patched_forward(*run, bank), want_KD)
    said = float(jnp.max(open_loop_growth(bank.conditioning)))
    assert error < eps("float32") * said
    check_open_loop(bank.conditioning, jnp.float32)


def test_patches_that_grow_a_rounding_to_the_output_are_refused():
    with pytest.raises(ValueError, match=r"index \(0,\).* grows 1\.0e\+08 times.*loop='closed'"):
        check_open_loop(numbers(1e4, 1e4), jnp.bfloat16)
    check_open_loop(numbers(1e4, 1e4), jnp.float64)
    check_open_loop(PLAIN, jnp.float32)


def test_growth_is_the_same_compiled(run):
    bank = stack_patches(*run, KEPT)
    np.testing.assert_array_equal(
        compiled(open_loop_growth)(bank.conditioning), open_loop_growth(bank.conditioning)
    )


def test_every_prompt_of_a_batch_is_looked_at():
    def stacked(*prompts):
        segments = [one.segments for one in prompts]
        return PerLayer(jax.tree.map(lambda *leaves: jnp.stack(leaves), *segments), (1, 1))

    batch = stacked(numbers(1.0, 2.0), numbers(1e4, 1e4))
    np.testing.assert_allclose(open_loop_growth(batch, axis=1), [[6.0], [1.0002e8]], rtol=1e-4)
    with pytest.raises(ValueError, match=r"index \(1, 0\)"):
        check_open_loop(batch, jnp.float32, axis=1)


def test_a_stack_whose_open_loop_would_be_noise_is_refused(run):
    layers, stream_TD = run
    # A scale patch divides by every entry that the norm gives.
    small = (with_a_small_entry(layers), stream_TD, KEPT)
    with pytest.raises(ValueError, match="check_open_loop: .* Use loop='closed'"):
        stack_patches(*small, loop="open", output="scale")
    stack_patches(*small, loop="closed", output="scale")
    stack_patches(*small, loop="open", output="auto")
