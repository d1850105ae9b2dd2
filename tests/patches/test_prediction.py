"""What is said of a bank before it is used, beside what happens when it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.patches.extraction import patched_forward, stack_patches
from icl_jax.patches.prediction import check_open_loop, open_loop_growth, open_loop_rounding
from icl_jax.patches.token import Conditioning
from icl_jax.stack.layers import PerLayer
from icl_jax.stack.run import forward
from tests.helpers import LAYERS, MLPS, compiled, eps, make_model, normal, relative_error

KEPT = [0, 5]


@pytest.fixture(scope="module")
def run():
    model = make_model(Block(LAYERS["attention"], MLPS["gated"], "sandwich", "rms"), 3)
    stream_TD = model.embed(normal(3, 6, 3, dtype=jnp.float32))
    return model.layers, stream_TD


def numbers(*sizes, normed=True):
    """Conditioning of a layer for every size, with one kept position; two segments."""

    def layers(*of):
        of_RK = jnp.array(of, jnp.float32)[:, None]
        gain = 0 * of_RK if normed else None
        return (Conditioning(of_RK, of_RK, max_gain_change=gain, amplification=of_RK),)

    return PerLayer((layers(sizes[0]), layers(*sizes[1:])), (1, len(sizes) - 1))


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


def test_a_tenth_of_what_down_patches_grow_is_counted():
    """A real model without its first token: 5e3 times."""
    hard = numbers(4.0, 999.0, normed=False)
    check_open_loop(hard, jnp.float32)
    with pytest.raises(ValueError, match="5.0e.03 times .* roundings of bfloat16, .* wider dtype"):
        check_open_loop(hard, jnp.bfloat16)
    check_open_loop(numbers(4.0, 999.0), jnp.float32)
    check_open_loop(numbers(4.0, 99.0, normed=False), jnp.bfloat16)


@pytest.mark.parametrize(
    ("wiring", "norm", "left"),
    (
        ("pre_norm", "rms", "float32"),
        ("sandwich", "rms", "float32"),
        ("no_skip", "none", "float32"),
        ("post_norm", "rms", "bfloat16"),
    ),
)
def test_a_patch_that_reaches_what_is_stored_leaves_roundings_of_float32(wiring, norm, left):
    layers = make_model(Block(LAYERS["attention"], MLPS["gated"], wiring, norm), 2).layers
    assert open_loop_rounding(layers, jnp.bfloat16) == left
    assert open_loop_rounding(layers, jnp.float64) == "float64"


def test_in_bfloat16_an_open_loop_of_down_patches_is_the_full_run_to_the_bit():
    model = make_model(Block(LAYERS["attention"], MLPS["gated"], "pre_norm", "rms"), 3)
    layers = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.layers)
    stream_TD = model.embed(normal(3, 6, 3, dtype=jnp.float32)).astype(jnp.bfloat16)
    bank = stack_patches(layers, stream_TD, KEPT, loop="open", output="down")
    got_KD = patched_forward(layers, stream_TD, bank)
    np.testing.assert_array_equal(got_KD, forward(layers, stream_TD)[jnp.array(KEPT)])
    alone_KD = forward(layers, stream_TD[jnp.array(KEPT)], positions_T=jnp.array(KEPT))
    assert relative_error(alone_KD, got_KD) > 0.01


def test_without_a_norm_growth_is_what_the_down_patches_add():
    model = make_model(Block(LAYERS["attention"], MLPS["gated"], "pre_norm", "rms"), 3)
    stream_TD = 1e-3 * model.embed(normal(3, 6, 3, dtype=jnp.float32))  # Small beside its changes.
    bank = stack_patches(model.layers, stream_TD, KEPT, loop="open")
    for layer in range(3):
        patch, numbers = bank.layer(layer), bank.conditioning.layer(layer)
        assert numbers.max_gain_change is None
        sizes_K = jnp.linalg.norm(patch.output.delta_D, axis=-1)
        assert np.all(sizes_K[1:] > 0)
        full_KD = residual_of(model, stream_TD, layer)
        want_K = sizes_K / jnp.linalg.norm(full_KD, axis=-1)
        np.testing.assert_allclose(numbers.amplification, want_K, rtol=1e-5)
    want_KD = forward(model.layers, stream_TD)[jnp.array(KEPT)]
    error = relative_error(patched_forward(model.layers, stream_TD, bank), want_KD)
    assert error < eps("float32") * float(jnp.max(open_loop_growth(bank.conditioning)))


def residual_of(model, stream_TD, last):
    """The residual stream of the full run at the kept positions, behind a layer's attention."""
    below_TD = forward(model.layers[:last], stream_TD) if last else stream_TD
    block, params = model.layers[last]
    return block.contextual(params, below_TD).residual_TD[jnp.array(KEPT)]


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
