"""Contributions of tokens and heads add up to the update, exactly where the theory says so."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.attention import Attention
from icl_jax.blocks.block import Block
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.dynamics.attribution import Attribution, attention_contributions, attribute_block
from icl_jax.dynamics.contributions import (
    contribution_norms,
    contribution_shares,
    contribution_update,
    remainder_share,
    summed_update,
)
from icl_jax.patches.low_rank import as_matrix, frobenius_norm
from icl_jax.patches.token import token_update
from tests.helpers import (
    LAYERS,
    MLPS,
    assert_close,
    assert_trees_close,
    compiled,
    eps,
    kept_sets,
    make_model,
    normal,
    relative_error,
    seeds,
)

ATTENTION = sorted(name for name in LAYERS if "attention" in name or "linear" in name)
LENGTH = 6


def block_of(layer, wiring="skip", norm="none", seed=0):
    model = make_model(Block(LAYERS[layer], MLPS["dense_bias"], wiring, norm), seed=seed)
    return model.blocks[0], model.block_params[0]


def midpoints(block, params, stream_TD, kept):
    """The MLP's input at the kept positions, with everything and alone; one run each."""
    kept_K, positions_T = jnp.asarray(kept), jnp.arange(LENGTH)
    full_TD = block.contextual(params, stream_TD, positions_T=positions_T).mlp_input_TD
    kept_TD = block.contextual(params, stream_TD[kept_K], positions_T=kept_K).mlp_input_TD
    return full_TD[kept_K], kept_TD


def reads_a_removed_token(layer, kept):
    """Whether a kept position reads anything that is removed."""
    return not LAYERS[layer].causal or tuple(kept) != tuple(range(len(kept)))


def row(attribution, index):
    return jax.tree.map(lambda array: array[index], attribution)


class TestContributionsAddUp:
    @pytest.mark.wide(18)
    @pytest.mark.parametrize("dtype, promised", (("float32", 1e-5), ("float64", 1e-12)))
    @pytest.mark.parametrize("layer", ATTENTION)
    def test_to_the_change_of_the_input_for_the_lone_query(self, layer, dtype, promised):
        block, params = block_of(layer, "no_skip")
        stream_TD = normal(1, LENGTH, 8, dtype=dtype)
        attribution = attribute_block(block, params, stream_TD, [LENGTH - 1])
        full_KD, kept_KD = midpoints(block, params, stream_TD, [LENGTH - 1])
        total_D = jnp.sum(attribution.contributions_ATD[0], axis=(0, 1))
        assert relative_error(total_D, (full_KD - kept_KD)[0]) < promised
        assert_close(total_D, (full_KD - kept_KD)[0], 60, condition=10)
        # No norm in between: nothing remains, and not merely a little.
        assert not np.any(attribution.remainder_D)

    @given(st.sampled_from(ATTENTION), kept_sets(LENGTH), seeds())
    def test_for_any_kept_set(self, layer, kept, seed):
        block, params = block_of(layer, seed=seed)
        stream_TD = normal(seed, LENGTH, 8)
        attribution = attribute_block(block, params, stream_TD, kept)
        full_KD, kept_KD = midpoints(block, params, stream_TD, kept)
        totals_KD = jnp.sum(attribution.contributions_ATD, axis=(1, 2))
        bound = eps("float64", 60, condition=10) * float(jnp.linalg.norm(full_KD))
        assert jnp.linalg.norm(totals_KD - (full_KD - kept_KD)) <= bound
        # Kept tokens, and in a causal layer later ones, contribute nothing at all.
        assert not np.any(attribution.contributions_ATD[:, :, jnp.asarray(kept)])
        if LAYERS[layer].causal:
            for index, position in enumerate(kept):
                assert not np.any(attribution.contributions_ATD[index, :, position:])
        # Another prompt's weights do not add up to it.
        if reads_a_removed_token(layer, kept):
            other_TD = normal(seed + 1, LENGTH, 8)
            other = attribute_block(block, params, other_TD, kept)
            wrong_KD = jnp.sum(other.contributions_ATD, axis=(1, 2))
            assert relative_error(wrong_KD, full_KD - kept_KD) > 1e-2

    def test_contributions_from_another_prompts_weights_do_not(self):
        block, params = block_of("attention")
        stream_TD, other_TD = normal(1, LENGTH, 8), normal(2, LENGTH, 8)
        kept_T = jnp.arange(LENGTH) == LENGTH - 1
        full_KD, kept_KD = midpoints(block, params, stream_TD, [LENGTH - 1])
        weights_ATT, passed_ATD, _ = block.parts(params, stream_TD)
        wrong_ATT, _, _ = block.parts(params, other_TD)
        for weights, fits in ((weights_ATT, True), (wrong_ATT, False)):
            parts_ATD = attention_contributions(weights[:, -1], passed_ATD, kept_T, normalised=True)
            error = relative_error(jnp.sum(parts_ATD, axis=(0, 1)), (full_KD - kept_KD)[0])
            assert error < 1e-12 if fits else error > 1e-2

    def test_for_the_lone_query_it_is_the_formula_of_the_theory(self):
        # weight_j (W_OV c_j - W_OV x), head by head.
        block, params = block_of("attention")
        stream_TD = normal(1, LENGTH, 8)
        attribution = attribute_block(block, params, stream_TD, [LENGTH - 1])
        weights_ATT, passed_ATD, _ = block.parts(params, stream_TD)
        for head in range(2):
            for token in range(LENGTH - 1):
                difference_D = passed_ATD[head, token] - passed_ATD[head, -1]
                want_D = weights_ATT[head, -1, token] * difference_D
                got_D = attribution.contributions_ATD[0, head, token]
                assert_close(got_D, want_D, 8, condition=10)

    def test_normalised_and_plain_sums_are_told_apart(self):
        weights_AT, passed_ATD = jnp.full((1, 3), 1 / 3), normal(0, 1, 3, 8)
        kept_T = jnp.array([False, False, True])
        plain_ATD = attention_contributions(weights_AT, passed_ATD, kept_T, normalised=False)
        want_D = (passed_ATD[0, 0] + passed_ATD[0, 1]) / 3
        assert_close(jnp.sum(plain_ATD, axis=(0, 1)), want_D, 3)
        soft_ATD = attention_contributions(weights_AT, passed_ATD, kept_T, normalised=True)
        want_D = jnp.mean(passed_ATD[0], axis=0) - passed_ATD[0, 2]
        assert_close(jnp.sum(soft_ATD, axis=(0, 1)), want_D, 3, condition=4)

    def test_a_context_token_equal_to_the_query_contributes_nothing(self):
        block, params = block_of("attention")
        stream_TD = normal(1, LENGTH, 8)
        stream_TD = stream_TD.at[2].set(stream_TD[-1])
        attribution = attribute_block(block, params, stream_TD, [LENGTH - 1])
        assert not np.any(attribution.contributions_ATD[0, :, 2])

    def test_padding_contributes_nothing(self):
        block, params = block_of("attention_bidirectional")
        stream_TD = normal(1, LENGTH, 8)
        present_T = jnp.array([True, False, True, True, False, True])
        padded = attribute_block(block, params, stream_TD, [5], present_T=present_T)
        there = jnp.array([0, 2, 3, 5])
        short = attribute_block(block, params, stream_TD[there], [3], positions_T=there)
        assert_close(padded.contributions_ATD[:, :, there], short.contributions_ATD, 60)
        assert not np.any(padded.contributions_ATD[:, :, jnp.array([1, 4])])


class TestThroughANorm:
    @pytest.mark.wide(6)
    @pytest.mark.parametrize("wiring", ("pre_norm", "post_norm", "sandwich", "reordered_norm"))
    @pytest.mark.parametrize("norm", ("layer", "rms"))
    @pytest.mark.parametrize("layer", ("attention", "linear_attention"))
    def test_contributions_and_remainder_add_up(self, layer, norm, wiring):
        block, params = block_of(layer, wiring, norm)
        stream_TD, kept = normal(1, LENGTH, 8), [0, 3, 5]
        attribution = attribute_block(block, params, stream_TD, kept)
        full_KD, kept_KD = midpoints(block, params, stream_TD, kept)
        totals_KD = jnp.sum(attribution.contributions_ATD, axis=(1, 2))
        changes_KD = full_KD - kept_KD
        assert_close(totals_KD + attribution.remainder_D, changes_KD, 60, condition=10)
        # The remainder is real: without it the contributions miss.
        for index in (1, 2):
            assert relative_error(totals_KD[index], changes_KD[index]) > 1e-3
            assert np.linalg.norm(attribution.remainder_D[index]) > 1e-3

    @pytest.mark.parametrize("wiring, name", (("pre_norm", "norm_2"), ("post_norm", "norm_1")))
    def test_the_remainder_is_what_the_denominators_leave(self, wiring, name):
        # rms: norm(x) - norm(y) - frozen(x - y, x) = (1/d_x - 1/d_y) gain y.
        block, params = block_of("attention", wiring, "rms")
        stream_TD = normal(1, LENGTH, 8)
        attribution = attribute_block(block, params, stream_TD, [5])
        full_D = block.parts(params, stream_TD)[2][1][-1]
        kept_D = block.parts(params, stream_TD[-1:], positions_T=jnp.array([5]))[2][1][-1]
        inverses = [1 / jnp.sqrt(jnp.mean(x_D**2) + 1e-6) for x_D in (full_D, kept_D)]
        gain_D = params[name]["scale"].astype(jnp.float64)
        want_D = (inverses[0] - inverses[1]) * gain_D * kept_D
        assert_close(attribution.remainder_D[0], want_D, 60, condition=100)

    def test_a_norm_that_is_none_leaves_no_remainder(self):
        block, params = block_of("attention", "pre_norm", "none")
        attribution = attribute_block(block, params, normal(1, LENGTH, 8), [5])
        assert not np.any(attribution.remainder_D)


class TestUpdates:
    stream_TD = normal(1, LENGTH, 8)
    kernel_DH = normal(2, 8, 12)

    @pytest.mark.parametrize("wiring, norm", (("skip", "none"), ("pre_norm", "layer")))
    def test_everything_together_is_the_token_update(self, wiring, norm):
        block, params = block_of("attention", wiring, norm)
        attribution = attribute_block(block, params, self.stream_TD, [2, 5])
        full_KD, kept_KD = midpoints(block, params, self.stream_TD, [2, 5])
        for index in range(2):
            want_DH = as_matrix(token_update(full_KD[index], kept_KD[index], self.kernel_DH))
            one = row(attribution, index)
            assert_close(as_matrix(summed_update(one, self.kernel_DH)), want_DH, 60, condition=10)
            # Term by term, as matrices.
            terms_ATDH = jnp.stack(
                [
                    jnp.stack(
                        [
                            as_matrix(contribution_update(one, head, token, self.kernel_DH))
                            for token in range(LENGTH)
                        ]
                    )
                    for head in range(2)
                ]
            )
            rest_DH = jnp.outer(one.v_D, one.remainder_D @ self.kernel_DH)
            total_DH = jnp.sum(terms_ATDH, axis=(0, 1)) + rest_DH
            assert_close(total_DH, want_DH, 60, condition=10)
            norms_AT = jnp.linalg.norm(terms_ATDH.reshape(2, LENGTH, -1), axis=-1)
            assert_close(contribution_norms(one, self.kernel_DH), norms_AT, 96)
            shares_AT = jnp.einsum("atdh,dh->at", terms_ATDH, want_DH) / jnp.sum(want_DH**2)
            assert_close(contribution_shares(one, self.kernel_DH), shares_AT, 96, condition=10)
            share = jnp.sum(rest_DH * want_DH) / jnp.sum(want_DH**2)
            got = remainder_share(one, self.kernel_DH)
            assert abs(got - share) < eps("float64", 96)
            assert (got == 0) == (norm == "none")

    def test_norms_and_shares_of_bfloat16_are_computed_wide(self):
        wide = Attribution(normal(0, 64), normal(1, 2, 5, 64), normal(2, 64))
        kernel_DH = normal(3, 64, 96, dtype="bfloat16")
        narrow = jax.tree.map(lambda leaf: leaf.astype("bfloat16"), wide)
        # The oracle: the same numbers, widened before anything is done with them.
        wide = jax.tree.map(lambda leaf: leaf.astype("float64"), narrow)
        wide_DH = kernel_DH.astype("float64")
        for measure in (contribution_norms, contribution_shares, remainder_share):
            got, want = measure(narrow, kernel_DH), measure(wide, wide_DH)
            assert got.dtype == jnp.float32
            assert_close(got, want.astype("float32"), 160, condition=4)
        one = contribution_update(narrow, 1, 3, kernel_DH)
        assert one.right_RH.dtype == jnp.bfloat16
        error = relative_error(frobenius_norm(one), contribution_norms(narrow, kernel_DH)[1, 3])
        assert error < 2e-4  # One rounding of 96 numbers, where the norm itself is not rounded.

    def test_the_gradient_of_norms_is_finite_where_nothing_was_contributed(self):
        changes_ATD = normal(1, 2, 5, 8).at[:, 2].set(0.0)
        kernel_DH = normal(3, 8, 12)

        def total(changes_ATD):
            attribution = Attribution(normal(0, 8), changes_ATD, jnp.zeros(8))
            return jnp.sum(contribution_norms(attribution, kernel_DH))

        gradient_ATD = jax.grad(total)(changes_ATD)
        assert np.all(gradient_ATD[:, 2] == 0)
        mapped_H = changes_ATD[1, 3] @ kernel_DH
        want_D = kernel_DH @ mapped_H / np.linalg.norm(mapped_H) * np.linalg.norm(normal(0, 8))
        assert_close(gradient_ATD[1, 3], want_D, 20)

    @given(st.sampled_from(ATTENTION), st.sampled_from(("skip", "pre_norm", "post_norm")), seeds())
    def test_shares_sum_to_one(self, layer, wiring, seed):
        block, params = block_of(layer, wiring, "layer", seed)
        attribution = row(attribute_block(block, params, normal(seed, LENGTH, 8), [5]), 0)
        shares_AT = contribution_shares(attribution, self.kernel_DH)
        total = jnp.sum(shares_AT) + remainder_share(attribution, self.kernel_DH)
        scale = jnp.sum(jnp.abs(shares_AT)) + 1
        assert abs(total - 1) < eps("float64", 96) * scale

    def test_vmap_is_a_loop_and_neighbours_do_not_matter(self):
        block, params = block_of("attention", "pre_norm", "layer")
        stream_BTD = normal(3, 3, LENGTH, 8)

        def attribute(stream_TD, kept_K):
            return attribute_block(block, params, stream_TD, kept_K)

        kept_BK = jnp.array([[1, 5], [0, 4], [2, 3]], jnp.int32)
        batched = compiled(jax.vmap(attribute))
        together = batched(stream_BTD, kept_BK)
        # Compared as a whole: a contribution of exactly zero may be rounding on either side.
        for b in range(3):
            alone = attribute(stream_BTD[b], kept_BK[b])
            assert_trees_close(row(together, b), alone, 60, condition=100)
        spoilt = batched(stream_BTD.at[1:].set(jnp.nan), kept_BK)
        for got, want in zip(jax.tree.leaves(spoilt), jax.tree.leaves(together), strict=True):
            np.testing.assert_array_equal(got[0], want[0])


class TestErrors:
    stream_TD = normal(1, LENGTH, 8)

    def test_a_parallel_block_has_nothing_to_attribute(self):
        block, params = block_of("attention", "parallel", "layer")
        with pytest.raises(ValueError, match="a parallel block's MLP reads nothing of the context"):
            attribute_block(block, params, self.stream_TD, [5])

    def test_a_recurrent_layer_is_no_sum(self):
        block, params = block_of("recurrent")
        with pytest.raises(TypeError, match="GatedRecurrent is not a sum over heads and tokens"):
            attribute_block(block, params, self.stream_TD, [5])

    def test_a_layer_of_ones_own_is_exact_where_it_says_what_its_sum_is(self):
        class Cooler(Attention):  # None of the library's classes that weigh.
            normalised = True

            def weigh(self, scores_AMT, sees_MT):
                seen_AMT = jnp.where(sees_MT, scores_AMT / 3, -jnp.inf)
                powers_AMT = jnp.exp(seen_AMT - seen_AMT.max(axis=-1, keepdims=True))
                return powers_AMT / powers_AMT.sum(axis=-1, keepdims=True)

        model = make_model(Block(Cooler(num_heads=2), MLPS["dense_bias"], "skip", "none"))
        run = (model.blocks[0], model.block_params[0], self.stream_TD)
        found = attribute_block(*run, [0, 3, 5])
        full_KD, kept_KD = midpoints(*run, [0, 3, 5])
        totals_KD = jnp.sum(found.contributions_ATD, axis=(1, 2))
        assert_close(totals_KD, full_KD - kept_KD, 60, condition=10)
        assert not np.any(found.remainder_D)
        # The layer is another than the library's, with the same parameters.
        other, _ = block_of("attention")
        other_KD = midpoints(other, *run[1:], [0, 3, 5])[0]
        assert relative_error(other_KD[1:], full_KD[1:]) > 1e-3

    def test_a_layer_of_ones_own_that_does_not_say_so_is_refused(self):
        class Silent(SoftmaxAttention):
            @property
            def normalised(self):
                return None

        model = make_model(Block(Silent(num_heads=2), MLPS["dense_bias"], "skip", "none"))
        with pytest.raises(ValueError, match="does not say whether its weights add up to 1.*norm"):
            attribute_block(model.blocks[0], model.block_params[0], self.stream_TD, [0, 3, 5])

    def test_kept_positions_are_checked(self):
        block, params = block_of("attention")
        with pytest.raises(ValueError, match="attribute_block: kept position 6 is outside"):
            attribute_block(block, params, self.stream_TD, [6])

    @pytest.mark.parametrize(
        ("given", "error", "message"),
        (
            ({"positions_T": jnp.arange(6)[::-1]}, ValueError, "positions_T must be non-negative"),
            ({"positions_T": jnp.arange(5)}, ValueError, "axis 0 of positions_T must have 6"),
            ({"present_T": jnp.full(6, 2)}, TypeError, "present_T must be a boolean mask, got"),
            ({"present_K": jnp.ones(2)}, TypeError, "present_K must be a boolean mask, got dtype"),
            ({"rows_X": jnp.array([2])}, ValueError, r"rows_X must number the 2 kept.*got \[2\]"),
            ({"rows_X": jnp.array([-1])}, ValueError, "rows_X must number the 2 kept positions"),
            ({"rows_X": jnp.array([0.5])}, TypeError, "rows_X must be integers, got float64"),
        ),
    )
    def test_what_is_said_of_positions_is_checked(self, given, error, message):
        block, params = block_of("attention")
        with pytest.raises(error, match=f"attribute_block: {message}"):
            attribute_block(block, params, self.stream_TD, [2, 5], **given)

    def test_a_part_is_of_one_position_and_one_kernel(self):
        block, params = block_of("attention")
        both = attribute_block(block, params, self.stream_TD, [2, 5])
        one, kernel_DH = jax.tree.map(lambda leaf: leaf[1], both), normal(3, 8, 4)
        heads, length = one.contributions_ATD.shape[:2]
        for index, name in (((heads, 0), "head"), ((0, length), "token"), ((-1, 0), "head")):
            with pytest.raises(ValueError, match=f"contribution_update: {name} must be from 0 to"):
                contribution_update(one, *index, kernel_DH)
        for measure in (contribution_norms, contribution_shares, remainder_share, summed_update):
            # Of two positions at once the sums would run over heads of one and of the other.
            with pytest.raises(ValueError, match=f"{measure.__name__}: contributions_ATD must hav"):
                measure(both, kernel_DH)
            with pytest.raises(ValueError, match=f"{measure.__name__}: axis 0 of kernel_DH must"):
                measure(one, kernel_DH[:7])

    def test_a_zero_input_is_refused_outside_jit(self):
        block, params = block_of("linear_attention")
        stream_TD = self.stream_TD.at[5].set(0.0)
        with pytest.raises(ValueError, match="attribute_block: the MLP's input has length zero"):
            attribute_block(block, params, stream_TD, [5])

    def test_the_parts_are_checked(self):
        weights_AT, passed_ATD = jnp.ones((2, 3)), jnp.ones((2, 3, 8))
        kept_T = jnp.array([False, False, True])

        def call(weights_AT=weights_AT, passed_ATD=passed_ATD, kept_T=kept_T):
            return attention_contributions(weights_AT, passed_ATD, kept_T, normalised=True)

        with pytest.raises(ValueError, match=r"weights_AT must have 2 axes \(A, T\)"):
            call(weights_AT=weights_AT[0])
        with pytest.raises(ValueError, match=r"passed_ATD must have 3 axes \(A, T, D\)"):
            call(passed_ATD=passed_ATD[0])
        with pytest.raises(ValueError, match=r"weights: \(2, 3\), passed: \(2, 2\)"):
            call(passed_ATD=passed_ATD[:, :2])
        with pytest.raises(ValueError, match="axis 0 of kept_T must have 3 entries"):
            call(kept_T=kept_T[:2])
        with pytest.raises(TypeError, match="kept_T must be a boolean mask, got dtype"):
            call(kept_T=jnp.array([0, 0, 1]))


def test_an_attribution_is_a_pytree_without_matrices():
    block, params = block_of("attention")
    attribution = attribute_block(block, params, normal(1, LENGTH, 8), [2, 5])
    assert isinstance(replace(attribution), Attribution)
    shapes = [leaf.shape for leaf in jax.tree.leaves(attribution)]
    assert shapes == [(2, 8), (2, 2, LENGTH, 8), (2, 8)]
