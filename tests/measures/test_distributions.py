"""Distances between next-token distributions against sums by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.measures.distributions import kl_divergence, same_top1
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


def test_top1_compares_the_largest_entries():
    expected = jnp.array([[0.0, 2.0, 1.0], [3.0, 2.0, 1.0]])
    actual = jnp.array([[0.0, 1.5, 1.0], [1.0, 2.0, 1.0]])
    assert same_top1(expected, actual).tolist() == [True, False]


def test_shapes_are_checked():
    for measure in (kl_divergence, same_top1):
        with pytest.raises(ValueError, match="expected"):
            measure(jnp.zeros((2, 3)), jnp.zeros((2, 4)))
