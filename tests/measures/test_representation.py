"""Similarities of attention outputs and maps, against NumPy and SciPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.spatial
import scipy.stats

from icl_jax.measures.representation import (
    attention_similarity,
    kendall_tau,
    update_similarity,
    vector_cosine,
)
from tests.helpers import assert_close, normal

PAIRS = (vector_cosine, attention_similarity, kendall_tau)


def test_vector_cosine_by_hand():
    np.testing.assert_allclose(
        vector_cosine(jnp.array([3.0, 0.0]), jnp.array([1.0, 1.0])), 0.5**0.5
    )
    assert jnp.isnan(vector_cosine(jnp.zeros(2), jnp.ones(2)))


def test_vector_cosine_neither_under_nor_overflows():
    vector = jnp.array([3.0, 4.0], jnp.float32)
    assert_close(vector_cosine(vector * 1e-30, vector * 1e30), jnp.float32(1))


def test_update_similarity_by_hand():
    zero_shot = jnp.array([1.0, 0.0])
    in_context, finetuned = jnp.array([0.0, 2.0]), jnp.array([3.0, 0.0]) + jnp.array([0.0, 4.0])
    # The unit vectors are (1, 0), (0, 1) and (0.6, 0.8): changes (-1, 1) and (-0.4, 0.8).
    expected = 1.2 / np.sqrt(2 * 0.8)
    np.testing.assert_allclose(update_similarity(in_context, finetuned, zero_shot), expected)
    # As they are, the changes are (-1, 2) and (2, 4).
    raw = update_similarity(in_context, finetuned, zero_shot, normalise=False)
    np.testing.assert_allclose(raw, 6 / np.sqrt(5 * 20))


def test_update_similarity_is_the_cosine_of_the_changes():
    outputs = normal(0, 3, 7)
    a, b, c = (x / np.linalg.norm(x) for x in np.asarray(outputs))
    expected = 1 - scipy.spatial.distance.cosine(a - c, b - c)
    assert_close(update_similarity(*outputs), np.float64(expected), 7, condition=10)


def test_an_output_that_did_not_change_has_no_direction():
    first, second = normal(0, 2, 5)
    assert jnp.isnan(update_similarity(first, second, first))


def test_normalised_updates_do_not_see_the_length_of_an_output():
    a, b, c = normal(1, 3, 6)
    np.testing.assert_allclose(update_similarity(7 * a, b, c), update_similarity(a, b, c))
    raw = update_similarity(7 * a, b, c, normalise=False)
    assert not np.isclose(raw, update_similarity(a, b, c, normalise=False))


def test_attention_similarity_is_the_cosine():
    first, second = normal(2, 2, 9)
    expected = 1 - scipy.spatial.distance.cosine(np.asarray(first), np.asarray(second))
    assert_close(attention_similarity(first, second), np.float64(expected), 9, condition=10)


def test_kendall_tau_by_hand():
    # Of three pairs two agree and one does not.
    np.testing.assert_allclose(
        kendall_tau(jnp.array([1.0, 2.0, 3.0]), jnp.array([1.0, 3.0, 2.0])), 1 / 3
    )
    # One pair is tied on the left: 2 agree of 2 and 3 that are ordered.
    tied = kendall_tau(jnp.array([1.0, 1.0, 2.0]), jnp.array([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(tied, 2 / np.sqrt(2 * 3))


@pytest.mark.parametrize("levels", [3, 1000])
def test_kendall_tau_is_scipys_with_and_without_ties(levels):
    rng = np.random.default_rng(levels)
    measure = jax.jit(kendall_tau)
    for _ in range(20):
        first, second = rng.integers(levels, size=(2, 30)).astype(np.float64)
        expected = scipy.stats.kendalltau(first, second, variant="b").statistic
        np.testing.assert_allclose(measure(first, second), expected, rtol=1e-13, atol=1e-15)


def test_kendall_tau_of_the_tokens_that_count():
    first, second = normal(0, 9), normal(1, 9)
    present = jnp.array([1, 1, 0, 1, 0, 1, 1, 0, 1], bool)
    spoilt = jnp.where(present, second, 7.0)
    got = kendall_tau(jnp.where(present, first, 5.0), spoilt, present_T=present)
    np.testing.assert_allclose(got, kendall_tau(first[present], second[present]), rtol=1e-12)
    assert abs(got - kendall_tau(first, second)) > 0.01


def test_kendall_tau_without_an_order_is_nan():
    rising = jnp.arange(4.0)
    assert jnp.isnan(kendall_tau(jnp.ones(4), rising))
    assert jnp.isnan(kendall_tau(rising.at[1].set(jnp.nan), rising))


def test_narrow_inputs_are_compared_wide():
    first, second = normal(3, 2, 16, dtype="bfloat16")
    for measure in PAIRS:
        assert measure(first, second).dtype == jnp.float32
    assert update_similarity(first, second, second + 1).dtype == jnp.float32


def test_a_batch_is_a_loop_and_compiled_is_eager():
    first, second = normal(4, 5, 8), normal(5, 5, 8)
    for measure in PAIRS:
        loop = jnp.stack([measure(a, b) for a, b in zip(first, second, strict=True)])
        np.testing.assert_allclose(jax.jit(jax.vmap(measure))(first, second), loop, rtol=1e-13)


def test_shapes_and_dtypes_are_checked():
    for measure in PAIRS:
        with pytest.raises(ValueError, match=f"{measure.__name__}: first_[DT] must have 1 axes"):
            measure(jnp.ones((2, 3)), jnp.ones((2, 3)))
        with pytest.raises(ValueError, match="share one shape"):
            measure(jnp.ones(3), jnp.ones(4))
        with pytest.raises(TypeError, match="share one dtype"):
            measure(jnp.ones(3), jnp.ones(3, jnp.float32))
        with pytest.raises(TypeError, match="must be floating point"):
            measure(jnp.arange(3), jnp.arange(3))
    with pytest.raises(ValueError, match="update_similarity: .* share one shape"):
        update_similarity(jnp.ones(3), jnp.ones(3), jnp.ones(4))
