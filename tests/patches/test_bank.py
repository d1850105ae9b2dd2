"""A stack with patches, run on the kept positions alone, is the stack run on everything."""

from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.block import Block
from icl_jax.blocks.functional import functional, with_layers
from icl_jax.blocks.materialise import materialise, position_patch
from icl_jax.blocks.wiring import WIRINGS
from icl_jax.patches.bank import check_patchable
from icl_jax.patches.block import TokenPatch
from icl_jax.patches.extraction import LOOPS, extract, patched_forward, stack_patches
from icl_jax.patches.output import BiasPatch, DownPatch
from icl_jax.stack.run import forward
from tests.helpers import (
    LAYERS,
    MLPS,
    assert_close,
    assert_trees_close,
    cases,
    compiled,
    eps,
    make_model,
    normal,
    relative_error,
)

#: What a control has to miss by: a patch that does nothing useful is wrong in the second digit.
MISS = 1e-2


def only(stream_TD, kept_K):
    """The sequence with NaN wherever it is not kept: nothing may be read there."""
    kept_K = jnp.asarray(kept_K)
    return jnp.full_like(stream_TD, jnp.nan).at[kept_K].set(stream_TD[kept_K])


def with_patches(bank, patches):
    """The bank with another patch in every layer."""
    return replace(bank, patches=bank.patches.rebuilt(patches))


def other_direction(vectors_KD, seed):
    """Random vectors with the norms of the given ones."""
    noise_KD = normal(seed, *vectors_KD.shape, dtype=vectors_KD.dtype)
    lengths_K1 = [jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (vectors_KD, noise_KD)]
    return noise_KD * (lengths_K1[0] / lengths_K1[1])


def random_patch(patch, seed):
    """A rank-1 patch of the same norms in random directions."""
    return jax.tree.map(lambda vectors_KD: other_direction(vectors_KD, seed), patch)


def condition(bank):
    """How many times longer than the result the quantities are that cancel in the patched run."""
    return 1 + max(float(jnp.max(numbers.relative_change)) for numbers in bank.conditioning)


class TestPatchedEqualsFull:
    @given(cases(), st.sampled_from(LOOPS), st.sampled_from(("auto", "down")))
    def test_in_float32_and_float64(self, case, loop, output):
        model = case.model
        run = (model.layers,)
        stream_TD = model.embed(case.tokens())
        if model.blocks[0].norms_output:
            output = "auto"  # A norm on the output takes a down patch's length away.
        bank = stack_patches(*run, stream_TD, case.kept, loop=loop, output=output)
        want_KD = forward(*run, stream_TD)[bank.kept_K]
        got_KD = patched_forward(*run, only(stream_TD, case.kept), bank)
        assert_close(got_KD, want_KD, case.reduction, condition=condition(bank))

        plain_KD = patched_forward(*run, stream_TD, replace(bank, patches=None))
        if LAYERS[case.layer].causal and case.kept == tuple(range(len(case.kept))):
            # The first tokens of a causal model read nothing that is removed.
            assert_close(plain_KD, want_KD, case.reduction)
            return
        if case.wiring == "no_skip" and case.depth > 1:
            return  # Layer upon layer without a skip forgets its input: nothing to miss.
        # No patch, another prompt's, and a random one of the same norm.
        other = stack_patches(*run, model.embed(case.tokens(1)), case.kept, loop=loop)
        noise = random_patch(bank.patches, case.seed)
        shuffled_KD = patched_forward(*run, stream_TD, replace(bank, patches=other.patches))
        random_KD = patched_forward(*run, stream_TD, replace(bank, patches=noise))
        for control_KD in (plain_KD, shuffled_KD, random_KD):
            assert relative_error(control_KD, want_KD) > MISS

    @given(cases(dtypes=("bfloat16",)), st.sampled_from(LOOPS))
    def test_in_bfloat16_to_bfloat16(self, case, loop):
        model = case.model
        run = (model.layers,)
        stream_TD = model.embed(case.tokens())
        bank = stack_patches(*run, stream_TD, case.kept, loop=loop)
        want_KD = forward(*run, stream_TD)[bank.kept_K]
        got_KD = patched_forward(*run, only(stream_TD, case.kept), bank)
        assert got_KD.dtype == jnp.bfloat16
        # Reductions run in float32: only the activations between the layers are rounded, and each
        # of at most 3 layers rounds them a dozen times.
        bound = eps("bfloat16", 1, condition=condition(bank))
        assert relative_error(got_KD, want_KD) < bound
        assert bound < 1 or condition(bank) > 16

    def test_through_a_deep_stack_the_closed_loop_repairs_what_the_open_one_adds_up(self):
        model = make_model(Block(LAYERS["attention"], MLPS["dense"], "pre_norm", "layer"), 12)
        stream_TD = model.embed(normal(1, 6, 3, dtype="float32"))
        run = (model.layers,)

        @compiled
        def errors(stream_TD):
            full_TD = forward(*run, stream_TD)
            banks = [stack_patches(*run, stream_TD, [0, 5], loop=loop) for loop in LOOPS]
            return full_TD[jnp.array([0, 5])], [
                patched_forward(*run, stream_TD, bank) for bank in banks
            ]

        want_KD, (closed_KD, open_KD) = errors(stream_TD)
        assert_close(closed_KD, want_KD, 12 * 30)
        assert_close(open_KD, want_KD, 12 * 30, condition=10)
        assert relative_error(closed_KD, want_KD) <= relative_error(open_KD, want_KD)


class TestLiterally:
    """The matrices go into the parameter tree, and the ordinary model runs on the query alone."""

    @pytest.mark.wide(36)
    @pytest.mark.parametrize("wiring", WIRINGS)
    @pytest.mark.parametrize(
        "mlp, output",
        (("gated", "down"), ("deep_bias", "bias"), ("linear", "down"), ("experts", "down")),
    )
    def test_the_patched_model_needs_no_library(self, wiring, mlp, output):
        if (mlp, wiring) == ("experts", "parallel"):
            pytest.skip("the patch of a parallel block does not say which experts the token has")
        output = "auto" if wiring in ("sandwich", "reordered_norm") else output
        model = make_model(Block(LAYERS["attention"], MLPS[mlp], wiring, "rms"), depth=2)
        params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.params)
        tokens_TC = normal(5, 6, 3)
        stream_TD = model.embed(tokens_TC)
        layers = functional(model.stack, params)
        bank = stack_patches(layers, stream_TD, [5], output=output)
        pairs = zip(layers, bank.patches, strict=True)
        trees = [materialise(*layer, position_patch(patch, 0)) for layer, patch in pairs]
        patched = with_layers(params, layers.params.rebuilt(trees))

        want = model.stack.apply({"params": params}, tokens_TC)[-1:]
        got = model.stack.apply({"params": patched}, tokens_TC[-1:])
        assert_close(got, want, 60, condition=10 * condition(bank))
        unpatched = model.stack.apply({"params": params}, tokens_TC[-1:])
        assert relative_error(unpatched, want) > MISS

    def test_the_first_patch_without_the_second_is_not_enough(self):
        model = make_model(Block(LAYERS["attention"], MLPS["dense"], "pre_norm", "rms"), depth=2)
        stream_TD = model.embed(normal(5, 6, 3))
        run = (model.layers,)
        bank = stack_patches(*run, stream_TD, [5])
        want_KD = forward(*run, stream_TD)[-1:]
        for layer in range(2):
            half = [jax.tree.map(jnp.zeros_like, patch) for patch in bank.patches]
            half[layer] = bank.patches[layer]
            got_KD = patched_forward(*run, stream_TD, with_patches(bank, half))
            assert relative_error(got_KD, want_KD) > MISS
        for part in ("input", "output"):
            half = tuple(
                replace(p, **{part: jax.tree.map(jnp.zeros_like, getattr(p, part))})
                for p in bank.patches
            )
            got_KD = patched_forward(*run, stream_TD, with_patches(bank, half))
            assert relative_error(got_KD, want_KD) > MISS


ATTENTION = make_model(Block(LAYERS["attention_rotary"], MLPS["dense_bias"], "pre_norm"), depth=2)
RUN = (ATTENTION.layers,)


class TestPositionsAndPadding:
    stream_TD = ATTENTION.embed(normal(3, 6, 3))

    def test_kept_tokens_keep_their_position_ids(self):
        kept = [0, 2, 5]
        bank = stack_patches(*RUN, self.stream_TD, kept)
        want_KD = forward(*RUN, self.stream_TD)[jnp.array(kept)]
        assert_close(patched_forward(*RUN, self.stream_TD, bank), want_KD, 60, condition=10)
        wrong_K = jnp.arange(3, dtype=jnp.int32)
        wrong_KD = forward(
            *RUN, self.stream_TD[jnp.array(kept)], patches=bank.patches, positions_T=wrong_K
        )
        assert relative_error(wrong_KD, want_KD) > MISS

    def test_position_ids_of_ones_own_are_used(self):
        positions_T, kept = jnp.array([3, 4, 7, 20, 21, 30]), [1, 4]
        bank = stack_patches(*RUN, self.stream_TD, kept, positions_T=positions_T)
        want_KD = forward(*RUN, self.stream_TD, positions_T=positions_T)[jnp.array(kept)]
        np.testing.assert_array_equal(bank.positions_K, positions_T[jnp.array(kept)])
        got_KD = patched_forward(*RUN, self.stream_TD, bank)
        assert_close(got_KD, want_KD, 60, condition=10)
        wrong = replace(bank, positions_K=bank.kept_K)
        assert relative_error(patched_forward(*RUN, self.stream_TD, wrong), want_KD) > MISS

    @pytest.mark.wide(2)
    @pytest.mark.parametrize("layer", ("attention_bidirectional", "linear_bidirectional"))
    def test_a_kept_padding_token_is_read_by_nobody(self, layer):
        # Not causal, and the last kept position is padding: it must not weigh on the other two.
        model = make_model(Block(LAYERS[layer], MLPS["dense_bias"], "post_norm"))
        run = (model.layers, model.embed(normal(3, 10, 3)))
        present_T = jnp.arange(10) < 8
        bank = stack_patches(*run, [4, 6, 8], present_T=present_T)
        want_KD = forward(*run, present_T=present_T)[jnp.array([4, 6])]
        got_KD = patched_forward(*run, bank, present_T=present_T)[:2]
        assert_close(got_KD, want_KD, 60, condition=10)
        # The same patches as without it, and others where it is taken for a token.
        short = stack_patches(*run, [4, 6], present_T=present_T)
        first = jax.tree.map(lambda leaf: leaf[:, :2], bank.patches)
        assert_trees_close(first, short.patches, 60, condition=10)
        blind = extract(*run, jnp.array([4, 6, 8]), loop="closed", output="auto")
        blind_KD = patched_forward(*run, blind, present_T=present_T)[:2]
        assert relative_error(blind_KD, want_KD) > MISS

    @pytest.mark.wide(3)
    @pytest.mark.parametrize("layer", ("attention_bidirectional", "linear_attention", "recurrent"))
    def test_padding_is_as_good_as_absent(self, layer):
        model = make_model(Block(LAYERS[layer], MLPS["dense_bias"], "post_norm"))
        run = (model.layers,)
        tokens_TC, present_T = normal(3, 6, 3), jnp.array([True, False, True, True, False, True])
        there = jnp.array([0, 2, 3, 5])
        stream_TD = model.embed(tokens_TC)
        noisy_TD = stream_TD.at[jnp.array([1, 4])].set(100.0)
        padded = stack_patches(*run, noisy_TD, [0, 5], present_T=present_T)
        short = stack_patches(*run, stream_TD[there], [0, 3], positions_T=there)
        assert_trees_close(padded.patches, short.patches, 30, condition=10)
        got_KD = patched_forward(*run, noisy_TD, padded, present_T=present_T)
        want_KD = forward(*run, stream_TD[there], positions_T=there)[jnp.array([0, 3])]
        assert_close(got_KD, want_KD, 30, condition=10)

    def test_the_smallest_sequence_keeps_one_of_two(self):
        for kept in ([0], [1]):
            bank = stack_patches(*RUN, self.stream_TD[:2], kept)
            want_KD = forward(*RUN, self.stream_TD[:2])[jnp.array(kept)]
            assert_close(patched_forward(*RUN, self.stream_TD[:2], bank), want_KD, 60, condition=10)

    def test_a_query_that_equals_every_context_token_needs_no_patch(self):
        model = make_model(Block(LAYERS["attention"], MLPS["dense_bias"], "skip", "none"))
        stream_TD = jnp.tile(model.embed(normal(3, 1, 3)), (5, 1))
        bank = stack_patches(model.layers, stream_TD, [4])
        scale = jnp.max(jnp.abs(stream_TD))
        for vector in (bank.patches[0].input.delta_D, bank.patches[0].output.delta_D):
            assert jnp.max(jnp.abs(vector)) < eps("float64", 30) * scale


class TestBatches:
    stream_BTD = jax.vmap(ATTENTION.embed)(normal(4, 3, 6, 3))
    kept_BK = jnp.array([[0, 5], [2, 3], [1, 4]], jnp.int32)

    @staticmethod
    def patched(stream_TD, kept_K):
        bank = stack_patches(*RUN, stream_TD, kept_K)
        return bank, patched_forward(*RUN, stream_TD, bank), forward(*RUN, stream_TD)[kept_K]

    def test_each_prompt_may_keep_its_own_positions(self):
        batch = compiled(jax.vmap(self.patched))(self.stream_BTD, self.kept_BK)
        bank, got_BKD, want_BKD = batch
        check_patchable(bank)
        assert_close(got_BKD, want_BKD, 60, condition=10)
        alone = [self.patched(self.stream_BTD[b], self.kept_BK[b]) for b in range(3)]
        stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *alone)
        assert_trees_close(batch, stacked, 60, condition=10)
        # Another prompt's patches, at the same rows, miss.
        wrong = jax.tree.map(lambda rows: jnp.roll(rows, 1, axis=0), bank.patches)
        shuffled_BKD = jax.vmap(lambda h, b: patched_forward(*RUN, h, b))(
            self.stream_BTD, replace(bank, patches=wrong)
        )
        for b in range(3):
            assert relative_error(shuffled_BKD[b], want_BKD[b]) > MISS

    def test_other_prompts_in_the_batch_do_not_matter(self):
        function = compiled(jax.vmap(self.patched))
        _, got_BKD, _ = function(self.stream_BTD, self.kept_BK)
        _, spoilt_BKD, _ = function(self.stream_BTD.at[1:].set(jnp.nan), self.kept_BK)
        np.testing.assert_array_equal(got_BKD[0], spoilt_BKD[0])

    def test_gradients_flow_through_the_patched_run(self):
        def loss(stream_TD, function):
            return jnp.sum(function(stream_TD) ** 2)

        def patched(stream_TD):
            return self.patched(stream_TD, jnp.array([0, 5]))[1]

        def full(stream_TD):
            return forward(*RUN, stream_TD)[jnp.array([0, 5])]

        gradient = compiled(jax.grad(loss), static_argnums=1)
        # The two runs are the same function of the prompt, so their gradients agree as well.
        got, want = (gradient(self.stream_BTD[0], function) for function in (patched, full))
        assert_close(got, want, 60, condition=100)

    def test_the_layers_are_static_arguments_that_trace_once(self):
        chex.clear_trace_counter()

        @chex.assert_max_traces(n=1)
        def banks(layers, stream_TD, kept_K):
            return stack_patches(layers, stream_TD, kept_K)

        jitted = jax.jit(banks)
        for seed in range(3):
            # Built anew each time: equal modules are equal static arguments.
            block = Block(LAYERS["attention_rotary"], MLPS["dense_bias"], "pre_norm")
            model = make_model(block, depth=2, seed=seed)
            stream_TD = model.embed(normal(seed, 6, 3))
            kept_K = jnp.array([seed, 5], jnp.int32)
            jitted(model.layers, stream_TD, kept_K)


def test_a_bank_is_two_vectors_per_side_position_and_layer():
    stream_TD = TestPositionsAndPadding.stream_TD
    for output, kind, width in (("auto", BiasPatch, None), ("down", DownPatch, 16)):
        bank = stack_patches(*RUN, stream_TD, [0, 5], output=output)
        assert len(bank.patches) == 2
        for patch in bank.patches:
            assert isinstance(patch, TokenPatch) and isinstance(patch.output, kind)
            assert patch.input.v_D.shape == patch.input.delta_D.shape == (2, 8)
            assert width is None or patch.output.v_H.shape == (2, width)
