"""The arithmetic of heads: groups against repeated heads, sums against einsum, caps and norms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.heads import (
    centred_heads,
    normed_heads,
    per_query_head,
    row_scores,
    scores,
    soft_capped,
    weighted_sum,
)
from tests.helpers import assert_close, normal, relative_error, seeds


@st.composite
def heads(draw):
    """(A, G, M, T, F): query heads, heads of keys and values, rows, columns, features."""
    groups = draw(st.sampled_from((1, 2, 3)))
    heads = groups * draw(st.sampled_from((1, 2, 3)))
    return heads, groups, *(draw(st.sampled_from(sizes)) for sizes in ((1, 4), (1, 5), (2, 3)))


def repeated(grouped_TGF, num_heads):
    """One head per query head, by a loop: query head a reads group a // (A / G)."""
    share = num_heads // grouped_TGF.shape[1]
    return np.stack([np.asarray(grouped_TGF)[:, a // share] for a in range(num_heads)], axis=1)


class TestGroups:
    @given(heads(), seeds())
    def test_neighbouring_query_heads_share_a_group(self, sizes, seed):
        num_heads, groups, _, length, features = sizes
        grouped_TGF = normal(seed, length, groups, features)
        got_TAF = per_query_head(grouped_TGF, num_heads)
        np.testing.assert_array_equal(got_TAF, repeated(grouped_TGF, num_heads))

    @given(heads(), seeds())
    def test_scores_are_products_with_the_repeated_keys(self, sizes, seed):
        num_heads, groups, rows, length, features = sizes
        query_MAF = normal(seed, rows, num_heads, features)
        key_TGF = normal(seed + 1, length, groups, features)
        want = np.einsum("maf,taf->amt", query_MAF, repeated(key_TGF, num_heads))
        assert_close(scores(query_MAF, key_TGF), want, features, condition=4)

    @given(heads(), seeds())
    def test_row_scores_are_products_with_each_rows_own_key(self, sizes, seed):
        num_heads, groups, rows, _, features = sizes
        query_MAF = normal(seed, rows, num_heads, features)
        key_MGF = normal(seed + 1, rows, groups, features)
        got_AM = row_scores(query_MAF, key_MGF)
        want_AM = np.einsum("maf,maf->am", query_MAF, repeated(key_MGF, num_heads))
        assert_close(got_AM, want_AM, features, condition=4)
        diagonal_AM = jnp.diagonal(scores(query_MAF, key_MGF), axis1=1, axis2=2)
        assert_close(diagonal_AM, got_AM, features, condition=4)

    @given(heads(), seeds())
    def test_weighted_sums_are_those_of_the_repeated_values(self, sizes, seed):
        num_heads, groups, rows, length, features = sizes
        weights_AMT = normal(seed, num_heads, rows, length)
        value_TGF = normal(seed + 1, length, groups, features)
        want = np.einsum("amt,taf->maf", weights_AMT, repeated(value_TGF, num_heads))
        assert_close(weighted_sum(weights_AMT, value_TGF), want, length, condition=4)

    def test_another_assignment_of_heads_to_groups_is_another_result(self):
        query_MAF, key_TGF = normal(0, 3, 4, 2), normal(1, 3, 2, 2)
        interleaved = np.einsum("maf,taf->amt", query_MAF, jnp.tile(key_TGF, (1, 2, 1)))
        assert relative_error(scores(query_MAF, key_TGF), interleaved) > 0.1

    def test_scores_of_low_precision_are_accumulated_in_float32(self):
        # In bfloat16 a sum of 2048 ones stops growing at 256.
        ones = jnp.ones((1, 1, 2048), jnp.bfloat16)
        assert scores(ones, ones).dtype == row_scores(ones, ones).dtype == jnp.float32
        assert float(scores(ones, ones)[0, 0, 0]) == float(row_scores(ones, ones)[0, 0]) == 2048

    def test_weighted_sums_are_in_the_dtype_of_the_values(self):
        weights_AMT, value_TGF = normal(0, 2, 3, 4, dtype="float32"), normal(1, 4, 2, 3)
        for dtype in ("bfloat16", "float32"):
            assert weighted_sum(weights_AMT, value_TGF.astype(dtype)).dtype == dtype


class TestSoftCap:
    @given(st.sampled_from((0.5, 3.0, 50.0)), seeds())
    def test_equals_its_formula_and_stays_within_the_cap(self, cap, seed):
        values = 10 * normal(seed, 4, 5)
        got = soft_capped(values, cap)
        assert_close(got, cap * np.tanh(np.asarray(values) / cap))
        assert np.all(np.abs(got) <= cap)
        assert relative_error(got, values) > 1e-3

    def test_without_a_cap_nothing_changes(self):
        values = normal(0, 4)
        assert soft_capped(values, None) is values

    def test_keeps_order_sign_and_dtype(self):
        values = jnp.linspace(-9, 9, 21, dtype="float32")
        got = soft_capped(values, 5.0)
        assert got.dtype == jnp.float32 and np.all(np.diff(got) > 0)
        np.testing.assert_array_equal(got, -soft_capped(-values, 5.0))

    def test_small_values_pass_through(self):
        # Up to the cube: tanh x = x - x^3 / 3.
        value, cap = jnp.asarray(1e-5), 2.0
        assert_close(soft_capped(value, cap), value - value**3 / (3 * cap**2))
        assert jax.grad(soft_capped)(jnp.asarray(0.0), cap) == 1.0


class TestNormedHeads:
    @given(seeds())
    def test_a_vector_of_gains_norms_each_head_by_itself(self, seed):
        features_TAF, gain_F = normal(seed, 4, 3, 5), normal(seed + 1, 5)
        x = np.asarray(features_TAF)
        want = x / np.sqrt(np.mean(x**2, axis=2, keepdims=True) + 1e-2) * np.asarray(gain_F)
        assert_close(normed_heads(features_TAF, gain_F, 1e-2), want, 5)

    @given(seeds())
    def test_a_matrix_of_gains_norms_all_heads_together(self, seed):
        features_TAF, gain_AF = normal(seed, 4, 3, 5), normal(seed + 1, 3, 5)
        x = np.asarray(features_TAF)
        want = x / np.sqrt(np.mean(x**2, axis=(1, 2), keepdims=True) + 1e-2) * np.asarray(gain_AF)
        assert_close(normed_heads(features_TAF, gain_AF, 1e-2), want, 15)
        alone = normed_heads(features_TAF, gain_AF[0], 1e-2)
        assert relative_error(alone, want) > 0.1

    def test_the_two_are_one_for_one_head(self):
        features_TAF, gain_AF = normal(0, 4, 1, 5), normal(1, 1, 5)
        got = normed_heads(features_TAF, gain_AF, 1e-6)
        assert_close(got, normed_heads(features_TAF, gain_AF[0], 1e-6), 5)

    @given(seeds())
    def test_centred_heads_are_layer_norms_with_gains_of_their_own(self, seed):
        features_TAF, gain_AF = 3 + normal(seed, 4, 3, 5), normal(seed + 1, 3, 5)
        x = np.asarray(features_TAF)
        x = x - x.mean(axis=2, keepdims=True)
        want = x / np.sqrt(np.mean(x**2, axis=2, keepdims=True) + 1e-2) * np.asarray(gain_AF)
        assert_close(centred_heads(features_TAF, gain_AF, 1e-2), want, 5, condition=4)

    @pytest.mark.parametrize("axes", (1, 2))
    def test_lengths_do_not_matter(self, axes):
        features_TAF, gain = normal(0, 4, 2, 5), normal(1, *(2, 5)[2 - axes :])
        got = normed_heads(1e4 * features_TAF, gain, 0.0)
        assert_close(got, normed_heads(features_TAF, gain, 0.0), 10)

    def test_statistics_of_low_precision_are_taken_in_float32(self):
        features_TAF = jnp.full((1, 1, 2048), 3.0, jnp.bfloat16)
        got = normed_heads(features_TAF, jnp.ones(2048, jnp.float32), 0.0)
        assert got.dtype == jnp.bfloat16
        np.testing.assert_array_equal(got, jnp.ones_like(got))
