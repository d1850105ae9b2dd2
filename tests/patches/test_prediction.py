"""What is said of a bank before it is used, beside what happens when it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.patches.bank import forward, patched_forward, stack_patches
from icl_jax.patches.prediction import (
    check_finite_logits,
    check_finite_patches,
    check_open_loop,
    open_loop_growth,
)
from icl_jax.patches.token import Conditioning
from tests.helpers import LAYERS, MLPS, compiled, eps, make_model, normal, relative_error

KEPT = [0, 5]


@pytest.fixture(scope="module")
def run():
    model = make_model(Block(LAYERS["attention"], MLPS["gated"], "sandwich", "rms"), 3)
    hidden_TD = model.embed(normal(3, 6, 3, dtype=jnp.float32))
    return model.layers, hidden_TD


def numbers(*sizes):
    """Conditioning of a layer for every size, with one kept position."""
    one_K = jnp.ones((1,), jnp.float32)
    return [Conditioning(one_K, one_K, amplification=size * one_K) for size in sizes]


def test_growth_is_the_product_over_the_layers():
    assert open_loop_growth(numbers(1.0, 3.0, 0.5)) == pytest.approx(12.0)
    assert open_loop_growth([Conditioning(jnp.ones(1), jnp.ones(1))]) is None


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
    check_open_loop([Conditioning(jnp.ones(1), jnp.ones(1))], jnp.float32)


def test_growth_is_the_same_compiled(run):
    bank = stack_patches(*run, KEPT)
    np.testing.assert_array_equal(
        compiled(open_loop_growth)(bank.conditioning), open_loop_growth(bank.conditioning)
    )


def test_a_number_that_is_none_is_named_with_its_layer_and_part(run):
    bank = stack_patches(*run, KEPT)
    check_finite_patches(bank.patches)
    first, second, *rest = bank.patches
    gain_KD = second.output.gain_delta_D.at[1, 2].set(jnp.nan)
    second = dataclasses.replace(
        second, output=dataclasses.replace(second.output, gain_delta_D=gain_KD)
    )
    with pytest.raises(ValueError, match=r"output\.gain_delta_D of layer 1 holds nan at index"):
        check_finite_patches([first, second, *rest])
    infinite = jax.tree.map(lambda leaf: leaf / 0 if leaf.ndim == 2 else leaf, bank.patches)
    with pytest.raises(ValueError, match="of layer 0 holds inf"):
        check_finite_patches(infinite)


def test_logits_of_nan_are_refused_and_masked_ones_are_not():
    check_finite_logits("here", jnp.array([[0.0, -jnp.inf], [1.0, 2.0]]))
    for bad in ([jnp.nan, 0.0], [jnp.inf, 0.0], [-jnp.inf, -jnp.inf]):
        with pytest.raises(ValueError, match=r"here: the logits of row \(1,\) are not finite"):
            check_finite_logits("here", jnp.array([[0.0, 1.0], bad]))
