"""Patches that do not exist are named by layer and position; wrong arguments are refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import pytest

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Dense
from icl_jax.patches.bank import check_patchable, patchable
from icl_jax.patches.extraction import patched_forward, stack_patches
from icl_jax.stack.layers import stack_layers
from icl_jax.stack.run import forward
from tests.helpers import LAYERS, MLPS, assert_close, compiled, make_model, normal
from tests.patches.test_bank import ATTENTION, RUN

STREAM_TD = ATTENTION.embed(normal(3, 6, 3))


def dead_model(wiring="skip"):
    """A model whose hidden activations are all zero: ReLU under a large negative bias."""
    model = make_model(Block(LAYERS["attention"], Dense(hidden_widths=(16,)), wiring, "none"))
    params = jax.tree.map(lambda leaf: leaf, model.block_params[0])
    params["mlp"]["layer_0"]["bias"] = jnp.full(16, -1e3, jnp.float32)
    return model, (stack_layers(model.blocks, [params]),)


class TestPatchesThatDoNotExist:
    def test_check_patchable_accepts_a_good_bank(self):
        check_patchable(stack_patches(*RUN, STREAM_TD, [5]))

    def zero_input(self):
        """Only the removed tokens say anything: the lone query's MLP input is zero."""
        model = make_model(Block(LAYERS["attention"], MLPS["dense_bias"], "no_skip", "none"))
        stream_TD = normal(0, 4, 8).at[3].set(0.0)
        return (model.layers,), stream_TD

    def test_a_zero_input_is_refused_outside_jit(self):
        run, stream_TD = self.zero_input()
        with pytest.raises(ValueError, match=r"MLP input of layer 0 at index \(0,\) .* length 0"):
            stack_patches(*run, stream_TD, [3])

    def test_check_patchable_names_layer_prompt_and_position(self):
        run, stream_TD = self.zero_input()
        stream_BTD = jnp.stack([normal(1, 4, 8), stream_TD])
        banks = compiled(jax.vmap(lambda stream_TD: stack_patches(*run, stream_TD, [2, 3])))
        # Attention that keeps another token is not zero; at the first position alone it is.
        check_patchable(banks(stream_BTD))
        alone = compiled(jax.vmap(lambda stream_TD: stack_patches(*run, stream_TD, [3])))
        with pytest.raises(ValueError, match=r"input of layer 0 at index \(1, 0\) .* length 0.0"):
            check_patchable(alone(stream_BTD))
        with pytest.raises(ValueError, match=r"at index \(0, 0\) .* has length nan"):
            check_patchable(alone(stream_BTD.at[0].set(jnp.nan)))
        assert patchable(banks(stream_BTD)) and not patchable(alone(stream_BTD))

    def test_dead_hidden_units_have_no_down_patch(self):
        _, run = dead_model()
        stream_TD = normal(0, 4, 8)
        with pytest.raises(ValueError, match=r"hidden activations of layer 0 at index \(0,\)"):
            stack_patches(*run, stream_TD, [3], output="down")
        bank = jax.jit(lambda x: stack_patches(*run, x, [3], output="down"))(stream_TD)
        with pytest.raises(ValueError, match=r"hidden activations of layer 0 at index \(0,\)"):
            check_patchable(bank)

    def test_dead_hidden_units_leave_the_bias_patch_exact(self):
        _, run = dead_model()
        stream_TD = normal(0, 4, 8)
        bank = stack_patches(*run, stream_TD, [3])
        check_patchable(bank)
        assert_close(patched_forward(*run, stream_TD, bank), forward(*run, stream_TD)[3:], 30)

    def test_a_parallel_block_with_a_nan_in_its_patches_is_named(self):
        # Nothing of it reads the context through the MLP: the patch itself has to be looked at.
        model = make_model(Block(LAYERS["attention"], MLPS["dense_bias"], "parallel", "none"), 2)
        bank = stack_patches(model.layers, normal(1, 4, 8), [2, 3])
        check_patchable(bank)
        for value in (jnp.nan, jnp.inf):
            bad = jax.tree.map(lambda leaf, value=value: leaf.at[1, 0].set(value), bank.patches)
            with pytest.raises(ValueError, match=r"layer 1 at index \(0,\) .* not finite"):
                check_patchable(replace(bank, patches=bad))
        # As it comes about: a removed token that is no number, and kept ones that are.
        stream_TD = normal(1, 4, 8).at[0].set(jnp.nan)
        with pytest.raises(ValueError, match=r"patch of layer 0 at index \(0,\) .* not finite"):
            stack_patches(model.layers, stream_TD, [2, 3])

    def test_a_parallel_block_has_no_input_patch_to_fail(self):
        model = make_model(Block(LAYERS["attention"], MLPS["dense_bias"], "parallel", "none"))
        stream_TD = normal(0, 4, 8).at[3].set(0.0)
        bank = stack_patches(model.layers, stream_TD, [3])
        assert bank.patches[0].input is None
        check_patchable(bank)


class TestErrors:
    def test_kept_positions_are_checked(self):
        with pytest.raises(ValueError, match="stack_patches: kept position 6 is outside the sequ"):
            stack_patches(*RUN, STREAM_TD, [0, 6])
        with pytest.raises(ValueError, match="stack_patches: the removed set is empty"):
            stack_patches(*RUN, STREAM_TD, range(6))
        with pytest.raises(TypeError, match="stack_patches: kept_K must hold integer positions"):
            stack_patches(*RUN, STREAM_TD, [0.5])

    def test_loop_and_policy_are_checked(self):
        with pytest.raises(ValueError, match="loop must be one of 'closed', 'open', got 'ajar'"):
            stack_patches(*RUN, STREAM_TD, [5], loop="ajar")
        with pytest.raises(ValueError, match="output must be one of 'auto', 'bias', .* got 'up'"):
            stack_patches(*RUN, STREAM_TD, [5], output="up")

    @pytest.mark.parametrize("output", ("scale", "balanced", "balanced+remainder"))
    def test_a_gain_patch_needs_a_norm_on_the_output(self, output):
        with pytest.raises(ValueError, match="needs a root-mean-square norm on the MLP's output"):
            stack_patches(*RUN, STREAM_TD, [5], output=output)

    def test_a_down_patch_cannot_go_through_a_norm(self):
        model = make_model(Block(LAYERS["attention"], MLPS["gated"], "sandwich", "rms"))
        with pytest.raises(ValueError, match="output='down' cannot restore the residual stream"):
            stack_patches(model.layers, STREAM_TD, [5], output="down")

    def test_a_bias_patch_needs_a_bias(self):
        model = make_model(Block(LAYERS["attention"], MLPS["dense"], "skip", "none"))
        with pytest.raises(ValueError, match="output='bias' needs a block that ends in a bias"):
            stack_patches(model.layers, STREAM_TD, [5], output="bias")

    def test_the_sequence_is_checked(self):
        with pytest.raises(ValueError, match=r"stream_TD must have 2 axes \(T, D\), got 3 axes"):
            stack_patches(*RUN, STREAM_TD[None], [5])
        with pytest.raises(TypeError, match="stream_TD must be floating point, got int32"):
            stack_patches(*RUN, jnp.ones((6, 8), jnp.int32), [5])

    def test_layers_and_parameters_are_counted(self):
        with pytest.raises(ValueError, match="stack is empty; a stack has at least one layer"):
            stack_patches(stack_layers((), ()), STREAM_TD, [5])
        with pytest.raises(TypeError, match="layers must be a Layers, got tuple. Make one with"):
            stack_patches((), STREAM_TD, [5])
        with pytest.raises(ValueError, match="of each of the 2 blocks, got 1 trees"):
            stack_layers(ATTENTION.blocks, ATTENTION.block_params[:1])
        first = stack_patches(ATTENTION.layers[:1], STREAM_TD, [5])
        with pytest.raises(ValueError, match=r"one patch per layer \(2\), got 1"):
            forward(*RUN, STREAM_TD[5:], patches=first.patches)

    def test_the_kept_rows_alone_are_not_the_sequence(self):
        # JAX clamps indices: row 5 of two rows would quietly be row 1.
        bank = stack_patches(*RUN, STREAM_TD, [0, 5])
        with pytest.raises(ValueError, match="patched_forward: the removed set is empty"):
            patched_forward(*RUN, STREAM_TD[jnp.array([0, 5])], bank)
        with pytest.raises(ValueError, match="patched_forward: kept position 5 is outside"):
            patched_forward(*RUN, STREAM_TD[:4], bank)
