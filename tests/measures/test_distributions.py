"""Distances between next-token distributions against sums by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.measures.distributions import (
    kl_divergence,
    same_top1,
    top_k_overlap,
    total_variation,
)
from tests.helpers import assert_close, normal


def test_kl_is_the_mean_log_ratio():
    expected, actual = normal(0, 3, 5), normal(1, 3, 5)
    p, q = (
        np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in map(np.asarray, (expected, actual))
    )
    assert_close(kl_divergence(expected, actual), (p * np.log(p / q)).sum(-1), 10, condition=10)
    assert np.all(np.abs(kl_divergence(expected, expected + 3.0)) < 1e-12)


def test_kl_of_narrow_logits_is_computed_wide():
    logits = normal(0, 5, dtype="bfloat16")
    assert kl_divergence(logits, logits).dtype == jnp.float32


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_token_that_both_exclude_counts_for_nothing(dtype):
    # p = (1 - s, s, 0) and q = (s, 1 - s, 0) with s = 1 / (1 + e): (2 s - 1) nats, by hand.
    expected = jnp.array([0.0, 1.0, -jnp.inf], dtype)
    actual = jnp.array([1.0, 0.0, -jnp.inf], dtype)
    want = np.tanh(0.5).astype(dtype)
    assert_close(kl_divergence(expected, actual), want, 3)
    assert round(float(want), 4) == 0.4621
    # Excluded on one side only: free of charge by p, infinitely wrong by q.
    everything = jnp.array([0.0, 1.0, 0.5], dtype)
    p, q = np.exp([0.0, 1.0]) / (1 + np.e), np.exp([0.0, 1.0, 0.5])
    q = (q / q.sum())[:2]
    assert_close(kl_divergence(expected, everything), (p * np.log(p / q)).sum().astype(dtype), 3)
    assert kl_divergence(everything, expected) == np.inf
    gradient = jax.grad(kl_divergence, argnums=1)(expected, actual)
    assert bool(jnp.all(jnp.isfinite(gradient)))


@pytest.mark.parametrize("spread", [0.0, 1e-7, 1e-4, 1e-2, 1.0, 30.0])
def test_kl_is_never_negative_and_keeps_its_digits_between_near_models(spread):
    logits = 5 * normal(12, 40, 200)
    other = logits + spread * normal(13, 40, 200)
    narrow = np.asarray(kl_divergence(logits.astype("float32"), other.astype("float32")))
    assert np.all(narrow >= 0)
    assert np.all(np.asarray(kl_divergence(logits, logits + 0.1)) < 1e-28)
    if spread:
        log_p, log_q = (
            np.float64(x.astype("float32")) - _log_sum_exp(np.float64(x.astype("float32")))
            for x in (logits, other)
        )
        want = (np.exp(log_p) * (log_p - log_q)).sum(-1)
        # A log-probability of 20 is rounded by 1e-6, its share of the sum by that times its ratio.
        assert np.all(np.abs(narrow - want) <= 4e-6 * np.sqrt(np.abs(want)) + 1e-11)


def _log_sum_exp(x):
    return np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) + x.max(
        -1, keepdims=True
    )


def test_a_nan_is_no_agreement():
    logits = jnp.array([0.0, 1.0, 2.0])
    broken = logits.at[1].set(jnp.nan)
    assert np.isnan(kl_divergence(broken, logits)) and np.isnan(kl_divergence(logits, broken))


def test_top1_compares_the_largest_entries():
    expected = jnp.array([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    actual = jnp.array([[0.0, 1.5, 1.0], [1.0, 2.0, 1.0]])
    assert same_top1(expected, actual).tolist() == [True, False]


def test_shapes_are_checked():
    overlap = functools.partial(top_k_overlap, k=2)
    for measure in (kl_divergence, same_top1, total_variation, overlap):
        with pytest.raises(ValueError, match="expected"):
            measure(jnp.zeros((2, 3)), jnp.zeros((2, 4)))


def test_total_variation_by_hand():
    # Probabilities (1/2, 1/2, 0) and (1/4, 1/4, 1/2); and no overlap at all.
    expected = jnp.log(jnp.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    actual = jnp.log(jnp.array([[0.25, 0.25, 0.5], [0.0, 0.0, 1.0]]))
    np.testing.assert_allclose(total_variation(expected, actual), [0.5, 1.0], rtol=1e-12)


def test_total_variation_is_the_largest_gap_over_all_events():
    expected, actual = normal(2, 5), normal(3, 5)
    p, q = (np.exp(x) / np.exp(x).sum() for x in map(np.asarray, (expected, actual)))
    events = (np.arange(32)[:, None] >> np.arange(5)) & 1
    assert_close(total_variation(expected, actual), np.max(events @ (p - q)), 5, condition=10)


def test_total_variation_obeys_pinsker():
    expected, actual = normal(4, 50, 7), normal(5, 50, 7)
    bound = jnp.sqrt(kl_divergence(expected, actual) / 2)
    assert bool(jnp.all(total_variation(expected, actual) <= bound))
    assert np.all(total_variation(expected, expected - 2.0) < 1e-15)


def test_top_k_overlap_by_hand():
    expected, actual = jnp.array([4.0, 3.0, 2.0, 1.0]), jnp.array([3.0, 1.0, 4.0, 2.0])
    # The most probable tokens in order: 0 1 2 3 and 2 0 3 1.
    shares = [float(top_k_overlap(expected, actual, k=k)) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(shares, [0, 1 / 2, 2 / 3, 1])


def test_top_k_overlap_is_that_of_the_sorted_sets():
    expected, actual = normal(6, 20, 30), normal(7, 20, 30)
    first, second = (np.argsort(-np.asarray(x), axis=-1)[:, :8] for x in (expected, actual))
    shares = [len(set(a) & set(b)) / 8 for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(top_k_overlap(expected, actual, k=8), shares)


def test_top_1_overlap_is_same_top1():
    expected, actual = normal(8, 40, 3), normal(9, 40, 3)
    overlap = top_k_overlap(expected, actual, k=1)
    np.testing.assert_array_equal(overlap == 1, same_top1(expected, actual))


def test_nan_agrees_with_nothing():
    bad, good = jnp.array([jnp.nan, 1.0, 0.0]), jnp.array([2.0, 1.0, 0.0])
    for pair in ((bad, bad), (bad, good), (good, bad)):
        assert not bool(same_top1(*pair)) and float(top_k_overlap(*pair, k=2)) == 0
    masked = jnp.array([2.0, -jnp.inf, 0.0])
    assert bool(same_top1(masked, good))


def test_top_k_overlap_wants_k_of_the_tokens():
    with pytest.raises(ValueError, match="at most the number of tokens, 3, got 4"):
        top_k_overlap(jnp.ones(3), jnp.ones(3), k=4)
    with pytest.raises(ValueError, match="k must be an integer of at least 1"):
        top_k_overlap(jnp.ones(3), jnp.ones(3), k=0)


def test_compiled_is_eager_and_a_batch_is_a_loop():
    expected, actual = normal(10, 4, 9), normal(11, 4, 9)
    for measure in (total_variation, functools.partial(top_k_overlap, k=3)):
        loop = jnp.stack([measure(a, b) for a, b in zip(expected, actual, strict=True)])
        np.testing.assert_allclose(jax.jit(jax.vmap(measure))(expected, actual), loop, rtol=1e-14)
    narrow = expected.astype(jnp.bfloat16)
    assert total_variation(narrow, narrow).dtype == jnp.float32
    assert top_k_overlap(narrow, narrow, k=2).dtype == jnp.float32
