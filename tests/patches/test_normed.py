"""Patches that go through a norm on the MLP's output: exact, conditioned, and refused where not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.block import Block
from icl_jax.patches.bank import check_patchable, compact_bank, patched_forward, stack_patches
from icl_jax.patches.normed import (
    OutputNorm,
    apply_normed,
    balanced_patch,
    gain_change,
    scale_patch,
    smallest_normed,
)
from icl_jax.patches.output import apply_output, down_update
from icl_jax.stack.layers import stack_layers
from icl_jax.stack.run import forward
from tests.helpers import LAYERS, MLPS, assert_close, eps, make_model, normal, relative_error, seeds


def plain(output_D, norm):
    """``s o / sqrt(mean(o^2) + eps)`` in NumPy."""
    output_D = np.asarray(output_D, np.float64)
    return np.asarray(norm.gain_D) * output_D / np.sqrt(np.mean(output_D**2) + norm.epsilon)


def case(seed, width=6, hidden=10, dtype=jnp.float64):
    output_D, change_D = normal(seed, width, dtype=dtype), normal(seed + 1, width, dtype=dtype)
    gain_D = 1 + normal(seed + 3, width, dtype=dtype) / 4
    return output_D, normal(seed + 2, hidden, dtype=dtype), change_D, OutputNorm(gain_D, 1e-6)


class TestOneToken:
    @given(seeds(), st.sampled_from(("float32", "float64")), st.booleans())
    def test_the_balanced_patch_adds_the_change(self, seed, dtype, remainder):
        output_D, hidden_H, change_D, norm = case(seed, dtype=dtype)
        patch = balanced_patch(output_D, hidden_H, change_D, norm, remainder=remainder)
        got_D = apply_normed(output_D, hidden_H, norm, patch)
        want_D = (plain(output_D, norm) + np.asarray(change_D)).astype(dtype)
        assert_close(got_D, want_D, 20, condition=4)
        assert relative_error(plain(output_D, norm), want_D) > 1e-2

    @given(seeds())
    def test_the_scale_patch_adds_the_change(self, seed):
        output_D, hidden_H, change_D, norm = case(seed)
        patch = scale_patch(output_D, change_D, norm)
        got_D = apply_normed(output_D, hidden_H, norm, patch)
        assert_close(got_D, plain(output_D, norm) + change_D, 20)

    def test_the_balanced_patch_keeps_the_length_that_the_norm_reads(self):
        output_D, hidden_H, change_D, norm = case(5)
        patch = balanced_patch(output_D, hidden_H, change_D, norm)
        moved_D = output_D + patch.down.delta_D
        assert_close(jnp.linalg.norm(moved_D), jnp.linalg.norm(output_D), 20)
        # One ratio for the whole gain: nothing is divided by entries of the output.
        assert not np.any(patch.gain_delta_D)

    def test_entries_of_the_gain_that_are_zero_get_a_step_of_their_own(self):
        output_D, hidden_H, change_D, norm = case(7)
        norm = replace(norm, gain_D=norm.gain_D.at[2].set(0.0))
        patch = balanced_patch(output_D, hidden_H, change_D, norm)
        assert np.flatnonzero(patch.gain_delta_D).tolist() == [2]
        got_D = apply_normed(output_D, hidden_H, norm, patch)
        assert_close(got_D, plain(output_D, norm) + change_D, 20, condition=4)

    def test_an_output_near_zero_breaks_the_scale_patch_and_not_the_balanced_one(self):
        output_D, hidden_H, change_D, norm = case(9)
        output_D = output_D.at[0].set(1e-9)
        scale = scale_patch(output_D, change_D, norm)
        balanced = balanced_patch(output_D, hidden_H, change_D, norm)
        assert float(smallest_normed(output_D)) < 1e-8
        assert np.max(np.abs(gain_change(scale, norm))) > 1e7
        assert np.max(np.abs(gain_change(balanced, norm))) < 10

    def test_the_remainder_takes_what_rounding_leaves(self):
        output_D, hidden_H, change_D, norm = case(11, dtype=jnp.bfloat16)
        norm = OutputNorm(norm.gain_D.astype(jnp.float32), norm.epsilon)
        want_D = plain(output_D, norm) + np.asarray(change_D, np.float64)

        def error(remainder):
            patch = balanced_patch(output_D, hidden_H, change_D, norm, remainder=remainder)
            patched_D = apply_output(output_D, hidden_H, patch.down)  # Rounded, as the model does.
            gain_D = np.asarray(norm.gain_D * patch.gain_ratio + patch.gain_delta_D)
            return relative_error(plain(patched_D, replace(norm, gain_D=gain_D)), want_D)

        assert error(True) < 1e-5 < error(False) < eps("bfloat16")

    def test_the_update_of_the_down_kernel_is_rank_one(self):
        output_D, hidden_H, change_D, norm = case(13)
        patch = balanced_patch(output_D, hidden_H, change_D, norm)
        assert down_update(patch.down).left_RD.shape == (1, 10)


class TestStacks:
    @pytest.mark.parametrize("wiring", ("sandwich", "output_norm"))
    @pytest.mark.parametrize("output", ("balanced", "balanced+remainder", "scale"))
    def test_every_policy_is_exact(self, wiring, output):
        model = make_model(Block(LAYERS["attention_grouped"], MLPS["gated"], wiring, "rms"), 2)
        hidden_TD = model.embed(normal(3, 6, 3))
        run = (model.layers,)
        bank = stack_patches(*run, hidden_TD, [2, 5], output=output)
        want_KD = forward(*run, hidden_TD)[jnp.array([2, 5])]
        hardest = max(float(c.max_gain_change.max()) for c in bank.conditioning)
        for one in (bank, compact_bank(bank)):
            got_KD = patched_forward(*run, hidden_TD, one)
            assert_close(got_KD, want_KD, 100, condition=10 * (1 + hardest))
        alone_KD = forward(*run, hidden_TD[jnp.array([2, 5])], positions_T=jnp.array([2, 5]))
        assert relative_error(alone_KD, want_KD) > 1e-2

    def test_conditioning_tells_the_policies_apart(self):
        model = make_model(Block(LAYERS["attention"], MLPS["gated"], "sandwich", "rms"), 2)
        hidden_TD = model.embed(normal(3, 6, 3))
        run = (model.layers, hidden_TD, [5])
        balanced, scale = (stack_patches(*run, output=o) for o in ("balanced", "scale"))
        for one, other in zip(balanced.conditioning, scale.conditioning, strict=True):
            assert float(one.max_gain_change[0]) < float(other.max_gain_change[0])

    def test_a_compact_bank_holds_vectors_of_the_models_width_only(self):
        model = make_model(Block(LAYERS["attention"], MLPS["gated"], "sandwich", "rms"), 2)
        hidden_TD = model.embed(normal(3, 6, 3))
        bank = compact_bank(stack_patches(model.layers, hidden_TD, [5]))
        assert {leaf.shape[2:] for leaf in jax.tree.leaves(bank.patches)} == {(), (8,)}
        with pytest.raises(ValueError, match="compact"):
            down_update(jax.tree.map(lambda leaf: leaf[0], bank.patches[0].output.down))

    def test_a_scale_patch_that_divides_by_zero_is_named(self):
        model = make_model(Block(LAYERS["attention"], MLPS["gated"], "sandwich", "rms"))
        hidden_TD = model.embed(normal(3, 6, 3))
        params = list(model.block_params)
        down_HD = params[0]["mlp"]["down"]["kernel"]
        params[0]["mlp"]["down"]["kernel"] = down_HD.at[:, 3].set(0.0)
        layers = stack_layers(model.blocks, params)
        with pytest.raises(ValueError, match="layer 0 at index .0,.* Use output='balanced'"):
            stack_patches(layers, hidden_TD, [5], output="scale")
        bank = jax.jit(lambda x: stack_patches(layers, x, [5], output="scale"))(hidden_TD)
        with pytest.raises(ValueError, match="layer 0 at index .0,.* Use output='balanced'"):
            check_patchable(bank)


def test_the_gain_change_is_what_the_gain_gains():
    output_D, hidden_H, change_D, norm = case(15)
    patch = balanced_patch(output_D, hidden_H, change_D, norm)
    want_D = norm.gain_D * patch.gain_ratio + patch.gain_delta_D - norm.gain_D
    assert_close(gain_change(patch, norm), want_D, 4, condition=4)
    assert jax.tree.structure(
        jax.vmap(lambda h: balanced_patch(output_D, h, change_D, norm))(
            jnp.stack([hidden_H, hidden_H])
        )
    ) == jax.tree.structure(patch)
