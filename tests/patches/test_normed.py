"""Patches that go through a norm on the MLP's output: exact, conditioned, and refused where not."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.block import Block
from icl_jax.patches.bank import check_patchable, compact_bank
from icl_jax.patches.extraction import LOOPS, patched_forward, stack_patches
from icl_jax.patches.normed import (
    OutputNorm,
    amplification,
    apply_normed,
    balanced_patch,
    change_to,
    gain_change,
    normed_sum,
    scale_patch,
    smallest_normed,
    with_remainder,
)
from icl_jax.patches.output import down_update, wide
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


def balanced(output_D, hidden_H, change_D, norm, remainder):
    """A balanced patch; its remainder is of a block without a stream, to whose output it aims."""
    patch = balanced_patch(output_D, hidden_H, change_D, norm)
    if not remainder:
        return patch
    zeros_D = jnp.zeros_like(patch.gain_delta_D)
    target_D = jnp.asarray(plain(output_D, norm) + np.asarray(change_D), zeros_D.dtype)
    return with_remainder(patch, output_D, hidden_H, norm, zeros_D, target_D)


class TestOneToken:
    @given(seeds(), st.sampled_from(("float32", "float64")), st.booleans())
    def test_the_balanced_patch_adds_the_change(self, seed, dtype, remainder):
        output_D, hidden_H, change_D, norm = case(seed, dtype=dtype)
        patch = balanced(output_D, hidden_H, change_D, norm, remainder)
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

    def test_the_balanced_patch_asks_of_every_entry_its_share_at_its_size(self):
        output_D, hidden_H, change_D, norm = case(5)
        patch = balanced_patch(output_D, hidden_H, change_D, norm)
        wanted_D = (change_D + plain(output_D, norm)) / norm.gain_D
        moved_D = output_D + patch.down.delta_D
        assert_close(moved_D, wanted_D * jnp.sqrt(jnp.mean(output_D**2)), 20)
        # One ratio for the whole gain: nothing is divided by entries of the output.
        assert not np.any(patch.gain_delta_D)

    @pytest.mark.parametrize("remainder", (False, True))
    @pytest.mark.parametrize("small", (0.0, 1e-30, 1e-6, 1e-2))
    def test_a_gain_near_zero_costs_the_other_entries_nothing(self, small, remainder):
        """One entry of the gain of a real norm is 1e-4 of the others, or none at all."""
        output_D, hidden_H, change_D, norm = case(17, width=64, dtype=jnp.float32)
        norm = replace(norm, gain_D=norm.gain_D.at[3].set(small))
        want_D = (plain(output_D, norm) + np.asarray(change_D, np.float64)).astype(np.float32)
        patch = balanced(output_D, hidden_H, change_D, norm, remainder)
        got_D = apply_normed(output_D, hidden_H, norm, patch)
        assert_close(got_D, want_D, 4)
        others = jnp.arange(64) != 3
        assert_close(got_D[others], want_D[others], 4)

    @pytest.mark.parametrize("small", (0.0, 1e-2))
    def test_an_output_that_is_off_by_a_rounding_is_forgiven(self, small):
        output_D, hidden_H, change_D, norm = case(19, width=64, dtype=jnp.float32)
        norm = replace(norm, gain_D=norm.gain_D.at[3].set(small))
        output_D = output_D.at[3].set(1e-5).at[5].set(1e-5)
        off_D = output_D + jnp.finfo(jnp.float32).eps * normal(20, 64, dtype=jnp.float32)
        errors = {}
        for name, patch in {
            "balanced": balanced(output_D, hidden_H, change_D, norm, True),
            "scale": scale_patch(output_D, change_D, norm),
        }.items():
            want_D = plain(output_D, norm) + np.asarray(change_D, np.float64)
            got_D = apply_normed(off_D, hidden_H, norm, patch)
            errors[name] = relative_error(got_D, want_D)
            # What the numbers say before the patch is used: here the block's output is the norm's.
            said = float(amplification(output_D, norm, patch, jnp.asarray(want_D, jnp.float32)))
            assert errors[name] < 4 * eps("float32") / 8 * max(1.0, said)
            assert said * eps("float32") / 16 < errors[name]
        assert errors["balanced"] < eps("float32") < 1e-4 < errors["scale"]

    def test_an_output_of_zero_has_a_balanced_patch(self):
        output_D, hidden_H, change_D, norm = case(21)
        patch = balanced(0 * output_D, hidden_H, change_D, norm, True)
        got_D = apply_normed(0 * output_D, hidden_H, norm, patch)
        assert_close(got_D, change_D, 20)

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
        patch = balanced_patch(output_D, hidden_H, change_D, norm)
        assert float(smallest_normed(output_D)) < 1e-8
        assert np.max(np.abs(gain_change(scale, norm))) > 1e7
        assert np.max(np.abs(gain_change(patch, norm))) < 10

    @pytest.mark.parametrize("remainder", (False, True))
    def test_a_stream_of_bfloat16_loses_nothing_before_the_sum(self, remainder):
        output_D, hidden_H, change_D, norm = case(11, dtype=jnp.bfloat16)
        norm = OutputNorm(norm.gain_D.astype(jnp.float32), norm.epsilon)
        want_D = plain(output_D, norm) + np.asarray(change_D, np.float64)
        patch = balanced(output_D, hidden_H, change_D, norm, remainder)
        zeros_D = jnp.zeros_like(output_D)
        got_D = sum(normed_sum(zeros_D, output_D, hidden_H, norm, patch))
        assert got_D.dtype == jnp.float32
        assert relative_error(got_D, want_D) < eps("float32") < 1e-5
        assert relative_error(apply_normed(output_D, hidden_H, norm, patch), want_D) < eps(
            "bfloat16"
        )

    def test_the_remainder_takes_what_rounding_leaves(self):
        output_D, hidden_H, change_D, norm = case(11, width=64, dtype=jnp.float32)
        want_D = plain(output_D, norm) + np.asarray(change_D, np.float64)

        def error(remainder):
            patch = balanced(output_D, hidden_H, change_D, norm, remainder)
            return relative_error(apply_normed(output_D, hidden_H, norm, patch), want_D)

        assert error(True) < 0.75 * error(False) < eps("float32")

    @given(seeds(), st.sampled_from(("bfloat16", "float32")), st.sampled_from((1e-2, 1.0, 1e2)))
    def test_the_sum_is_rounded_once_to_what_the_full_run_stored(self, seed, dtype, size):
        output_D, hidden_H, _, norm = case(seed, width=64, dtype=dtype)
        norm = replace(norm, gain_D=wide(norm.gain_D))
        residual_D = (size * normal(seed + 4, 64, dtype="float32")).astype(dtype)
        target_D = (size * normal(seed + 5, 64, dtype="float32")).astype(dtype)
        change_D = change_to(wide(target_D) - wide(residual_D), output_D, norm)
        first = balanced_patch(output_D, hidden_H, change_D, norm)
        patch = jax.jit(with_remainder)(first, output_D, hidden_H, norm, residual_D, target_D)

        @jax.jit
        def reached(patch):
            total_D, low_D = normed_sum(residual_D, output_D, hidden_H, norm, patch)
            assert total_D.dtype == jnp.float32
            return (total_D + low_D).astype(dtype)

        np.testing.assert_array_equal(reached(patch), target_D)
        if dtype == "float32":  # Without the remainder a rounding is left, somewhere.
            assert np.any(reached(first) != target_D)

    def test_the_update_of_the_down_kernel_is_rank_one(self):
        output_D, hidden_H, change_D, norm = case(13)
        patch = balanced_patch(output_D, hidden_H, change_D, norm)
        assert down_update(patch.down).left_RD.shape == (1, 10)


class TestStacks:
    @pytest.mark.wide(6)
    @pytest.mark.parametrize("wiring", ("sandwich", "reordered_norm"))
    @pytest.mark.parametrize("output", ("balanced", "balanced+remainder", "scale"))
    def test_every_policy_is_exact(self, wiring, output):
        model = make_model(Block(LAYERS["attention_grouped"], MLPS["gated"], wiring, "rms"), 2)
        stream_TD = model.embed(normal(3, 6, 3))
        run = (model.layers,)
        bank = stack_patches(*run, stream_TD, [2, 5], output=output)
        want_KD = forward(*run, stream_TD)[jnp.array([2, 5])]
        hardest = max(float(c.max_gain_change.max()) for c in bank.conditioning)
        for one in (bank, compact_bank(bank)):
            got_KD = patched_forward(*run, stream_TD, one)
            assert_close(got_KD, want_KD, 100, condition=10 * (1 + hardest))
        alone_KD = forward(*run, stream_TD[jnp.array([2, 5])], positions_T=jnp.array([2, 5]))
        assert relative_error(alone_KD, want_KD) > 1e-2

    @pytest.mark.wide(4)
    @pytest.mark.parametrize("loop", LOOPS)
    @pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
    def test_gains_of_every_size_are_no_worse_than_others(self, loop, dtype):
        """As in trained models: of 8 entries one is zero, others are 1e-3 and 1e2."""
        model = make_model(Block(LAYERS["attention"], MLPS["gated"], "sandwich", "rms"), 4)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), model.block_params)
        for layer, one in enumerate(params):
            gain_D = one["norm_2_out"]["scale"].astype(jnp.float32)
            spread_D = jnp.roll(jnp.array([0, 1e-3, 1e2, 1e-2, 1, 1, 1, 1], jnp.float32), layer)
            one["norm_2_out"]["scale"] = gain_D * spread_D
        stream_TD = model.embed(normal(3, 6, 3, dtype=jnp.float32)).astype(dtype)
        kept_K = jnp.array([0, 5])
        want_KD = forward(stack_layers(model.blocks, params), stream_TD)[kept_K]
        bank = stack_patches(stack_layers(model.blocks, params), stream_TD, kept_K, loop=loop)
        for one in (bank, compact_bank(bank)):
            got_KD = patched_forward(stack_layers(model.blocks, params), stream_TD, one)
            assert_close(got_KD, want_KD, 4 * (6 + 8 + 16))
        alone_KD = forward(
            stack_layers(model.blocks, params), stream_TD[kept_K], positions_T=kept_K
        )
        assert relative_error(alone_KD, want_KD) > 0.1

    def test_conditioning_tells_the_policies_apart(self):
        model = make_model(Block(LAYERS["attention"], MLPS["gated"], "sandwich", "rms"), 2)
        stream_TD = model.embed(normal(3, 6, 3))
        run = (model.layers, stream_TD, [5])
        balanced, scale = (stack_patches(*run, output=o) for o in ("balanced", "scale"))
        for one, other in zip(balanced.conditioning, scale.conditioning, strict=True):
            assert float(one.max_gain_change[0]) < float(other.max_gain_change[0])
            assert float(one.amplification[0]) < float(other.amplification[0])

    def test_a_compact_bank_holds_vectors_of_the_models_width_only(self):
        model = make_model(Block(LAYERS["attention"], MLPS["gated"], "sandwich", "rms"), 2)
        stream_TD = model.embed(normal(3, 6, 3))
        bank = compact_bank(stack_patches(model.layers, stream_TD, [5]))
        assert {leaf.shape[2:] for leaf in jax.tree.leaves(bank.patches)} == {(), (8,)}
        with pytest.raises(ValueError, match="compact"):
            down_update(jax.tree.map(lambda leaf: leaf[0], bank.patches[0].output.down))

    def test_a_scale_patch_that_divides_by_zero_is_named(self):
        model = make_model(Block(LAYERS["attention"], MLPS["gated"], "sandwich", "rms"))
        stream_TD = model.embed(normal(3, 6, 3))
        params = list(model.block_params)
        down_HD = params[0]["mlp"]["down"]["kernel"]
        params[0]["mlp"]["down"]["kernel"] = down_HD.at[:, 3].set(0.0)
        layers = stack_layers(model.blocks, params)
        with pytest.raises(ValueError, match="layer 0 at index .0,.* Use output='balanced'"):
            stack_patches(layers, stream_TD, [5], output="scale")
        bank = jax.jit(lambda x: stack_patches(layers, x, [5], output="scale"))(stream_TD)
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
