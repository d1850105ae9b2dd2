"""A measure beside its nulls: by hand, against NumPy's own resampling, and over many studies."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.measures.comparison import Comparison, as_summary, compare_with_nulls
from icl_jax.measures.intervals import bootstrap_mean
from tests.helpers import normal

KEY = jax.random.key(0)


def test_the_margin_is_over_the_nearest_null():
    values = jnp.array([0.9, 0.7])
    nulls = {"untrained": jnp.array([0.1, 0.3]), "shuffled": jnp.array([0.6, 0.4])}
    result = compare_with_nulls(KEY, values, nulls, larger_is_closer=True)
    np.testing.assert_allclose(result.value, 0.8)
    np.testing.assert_allclose(result.nulls["untrained"].mean, 0.2)
    np.testing.assert_allclose(result.nulls["shuffled"].mean, 0.5)
    np.testing.assert_allclose(result.margin.mean, 0.3)


def test_a_positive_margin_supports_the_claim_either_way():
    errors = jnp.array([0.2, 0.4])
    nulls = {"untrained": jnp.array([2.0, 2.0]), "random": jnp.array([1.0, 0.8])}
    result = compare_with_nulls(KEY, errors, nulls, larger_is_closer=False)
    np.testing.assert_allclose(result.margin.mean, 0.9 - 0.3)
    mirrored = compare_with_nulls(
        KEY, -errors, {name: -null for name, null in nulls.items()}, larger_is_closer=True
    )
    np.testing.assert_allclose(np.asarray(mirrored.margin), np.asarray(result.margin))


def test_two_tasks_are_resampled_together():
    # The value beats the null by exactly 1 in each task, whatever the task: no spread is left.
    null = jnp.array([0.0, 100.0])
    result = compare_with_nulls(KEY, null + 1, {"null": null}, larger_is_closer=True)
    np.testing.assert_allclose(np.asarray(result.margin), [1.0, 1.0, 1.0], rtol=1e-12)
    np.testing.assert_allclose([result.low, result.high], [1.0, 101.0])


def test_intervals_are_those_of_resampled_tasks():
    values, first, second = np.asarray(normal(0, 3, 25)) + np.array([[0.5], [0.0], [0.1]])
    nulls = {"first": jnp.asarray(first), "second": jnp.asarray(second)}
    result = compare_with_nulls(
        KEY, jnp.asarray(values), nulls, larger_is_closer=True, level=0.8, num_resamples=4000
    )
    draws = np.random.default_rng(0).integers(25, size=(4000, 25))
    means = [array[draws].mean(axis=1) for array in (values, first, second)]
    margins = means[0] - np.maximum(means[1], means[2])
    # Two bootstraps of 4000 samples: their quantiles differ by about 0.03 standard errors of 0.2.
    for interval, samples in (
        ((result.low, result.high), means[0]),
        (result.nulls["second"][1:], means[2]),
        (result.margin[1:], margins),
    ):
        np.testing.assert_allclose(interval, np.quantile(samples, [0.1, 0.9]), atol=0.03)


def test_the_value_and_its_interval_are_those_of_bootstrap_mean():
    values, null = normal(1, 2, 12)
    result = compare_with_nulls(KEY, values, {"null": null}, larger_is_closer=True)
    for got, array in (
        ((result.value, result.low, result.high), values),
        (result.nulls["null"], null),
    ):
        np.testing.assert_allclose(got, bootstrap_mean(KEY, array), rtol=1e-12)


def test_a_value_like_its_nulls_has_a_margin_below_zero():
    # The nearest of several equal nulls lies beyond the value more often than not.
    def margin(key):
        values, first, second = jax.random.normal(key, (3, 30))
        nulls = {"first": first, "second": second}
        result = compare_with_nulls(key, values, nulls, larger_is_closer=True, num_resamples=200)
        return result.margin.low > 0

    wrong = jax.jit(jax.vmap(margin))(jax.random.split(KEY, 300)).mean()
    assert wrong < 0.05


def test_a_value_beyond_its_nulls_has_a_margin_above_zero():
    values, first, second = normal(2, 3, 40)
    nulls = {"first": first, "second": second}
    result = compare_with_nulls(KEY, values + 3, nulls, larger_is_closer=True)
    assert 1.5 < float(result.margin.low) < float(result.margin.mean) < float(result.margin.high)


def test_a_summary_is_plain_floats():
    values, null = normal(3, 2, 8)
    comparison = compare_with_nulls(KEY, values, {"untrained": null}, larger_is_closer=True)
    summary = as_summary(comparison)
    assert list(summary) == ["value", "interval", "margin", "margin_interval", "untrained"]
    assert json.loads(json.dumps(summary)) == summary
    assert summary["interval"] == [float(comparison.low), float(comparison.high)]
    assert summary["margin_interval"] == [
        float(comparison.margin.low),
        float(comparison.margin.high),
    ]
    np.testing.assert_allclose(summary["untrained"], null.mean())


def test_a_comparison_is_a_tree_and_comes_out_of_jit():
    values, null = normal(4, 2, 8)

    @jax.jit
    def compiled(values, null):
        return compare_with_nulls(KEY, values, {"null": null}, larger_is_closer=True)

    eager = compare_with_nulls(KEY, values, {"null": null}, larger_is_closer=True)
    result = compiled(values, null)
    assert isinstance(result, Comparison) and dataclasses.is_dataclass(result)
    assert len(jax.tree.leaves(result)) == 9
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), result, eager)


def test_a_batch_of_measures_is_a_loop_and_has_no_summary():
    values, null = normal(5, 3, 10), normal(6, 3, 10)

    def compare(values, null):
        return compare_with_nulls(KEY, values, {"null": null}, larger_is_closer=False)

    batch = jax.jit(jax.vmap(compare))(values, null)
    for i in range(3):
        one = compare(values[i], null[i])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-12), batch, one)
    with pytest.raises(ValueError, match="as_summary: comparison.value must have 0 axes"):
        as_summary(batch)


def test_a_value_that_is_not_finite_is_named():
    values, null = normal(7, 2, 6)
    with pytest.raises(
        ValueError, match="values_B is not finite for 1 of 6 tasks, first nan at task 2"
    ):
        compare_with_nulls(KEY, values.at[2].set(jnp.nan), {"null": null}, larger_is_closer=True)
    with pytest.raises(
        ValueError, match=r"nulls\['null'\] is not finite for 2 of 6 tasks, first inf"
    ):
        compare_with_nulls(KEY, values, {"null": null.at[3:5].set(jnp.inf)}, larger_is_closer=True)


def test_a_value_that_is_not_finite_is_not_hidden_by_jit():
    values, first, second = normal(8, 3, 6)

    @jax.jit
    def compiled(values, first, second):
        nulls = {"first": first, "second": second}
        return compare_with_nulls(KEY, values, nulls, larger_is_closer=True)

    result = compiled(values, first.at[0].set(jnp.nan), second)
    assert np.all(np.isnan(np.asarray(result.margin)))
    assert np.all(np.isnan(np.asarray(result.nulls["first"])))
    assert np.all(np.isfinite([result.value, result.low, result.high]))


def test_arguments_are_checked():
    values, null = normal(9, 2, 6)
    nulls = {"null": null}
    with pytest.raises(ValueError, match="nulls is empty"):
        compare_with_nulls(KEY, values, {}, larger_is_closer=True)
    with pytest.raises(ValueError, match="may not be called 'margin'"):
        compare_with_nulls(KEY, values, {"margin": null}, larger_is_closer=True)
    with pytest.raises(TypeError, match="larger_is_closer must be a bool"):
        compare_with_nulls(KEY, values, nulls, larger_is_closer=1)
    with pytest.raises(ValueError, match="level must lie"):
        compare_with_nulls(KEY, values, nulls, larger_is_closer=True, level=95)
    with pytest.raises(ValueError, match="num_resamples must be"):
        compare_with_nulls(KEY, values, nulls, larger_is_closer=True, num_resamples=0)
    with pytest.raises(ValueError, match="share one shape"):
        compare_with_nulls(KEY, values, {"null": null[:4]}, larger_is_closer=True)
    with pytest.raises(TypeError, match="share one dtype"):
        narrow = null.astype(jnp.float32)
        compare_with_nulls(KEY, values, {"null": narrow}, larger_is_closer=True)
    with pytest.raises(TypeError, match="values_B must be floating point"):
        compare_with_nulls(KEY, jnp.arange(6), nulls, larger_is_closer=True)
    with pytest.raises(ValueError, match="values_B must have 1 axes"):
        compare_with_nulls(KEY, values[None], nulls, larger_is_closer=True)
    with pytest.raises(ValueError, match="at least two tasks"):
        compare_with_nulls(KEY, values[:1], {"null": null[:1]}, larger_is_closer=True)
