import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.measures.comparison import compare_with_nulls
from icl_jax.measures.function_space import relative_error, squared_error
from icl_jax.measures.intervals import bootstrap_mean
from icl_jax.measures.nulls import another_prompts, random_update, random_vector, shuffled_labels
from icl_jax.patches.low_rank import LowRank, frobenius_norm


def test_relative_error_by_hand():
    np.testing.assert_allclose(relative_error(jnp.array([3.0, 5.0]), jnp.array([3.0, 4.0])), 0.2)


def test_relative_error_of_bfloat16_is_accumulated_in_float32():
    error = relative_error(jnp.ones(4096, jnp.bfloat16) * 2, jnp.ones(4096, jnp.bfloat16))
    assert error.dtype == jnp.float32
    np.testing.assert_allclose(error, 1.0)


def test_relative_error_refuses_other_shapes_and_dtypes():
    with pytest.raises(ValueError, match="share one shape"):
        relative_error(jnp.ones(2), jnp.ones(3))
    with pytest.raises(TypeError, match="share one dtype"):
        relative_error(jnp.ones(2, jnp.float32), jnp.ones(2, jnp.float64))


def test_squared_error_by_hand():
    np.testing.assert_array_equal(
        squared_error(jnp.array([1.0, 4.0]), jnp.array([3.0, 4.0])), [4.0, 0.0]
    )


def test_a_random_update_has_the_norm_and_not_the_direction():
    update = LowRank(jnp.ones((2, 5)), jnp.arange(14.0).reshape(2, 7))
    null = random_update(jax.random.key(0), update)
    assert null.left_RD.shape == (1, 5)
    np.testing.assert_allclose(frobenius_norm(null), frobenius_norm(update), rtol=1e-12)
    again = random_update(jax.random.key(1), update)
    assert not np.allclose(null.left_RD, again.left_RD)


def test_a_random_vector_has_the_length():
    vector = jnp.array([3.0, 4.0], jnp.float32)
    null = random_vector(jax.random.key(0), vector)
    assert null.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(null), 5.0, rtol=1e-6)
    assert not np.allclose(null, vector)


def test_another_prompts_gives_nobody_its_own():
    batch = {"a": jnp.arange(4), "b": jnp.arange(8).reshape(4, 2)}
    moved = another_prompts(batch)
    assert all(moved["a"] != batch["a"])
    np.testing.assert_array_equal(moved["b"][:, 0], 2 * moved["a"])


@pytest.mark.parametrize("batch", [jnp.ones((1, 3)), {"a": jnp.ones(2), "b": jnp.ones(3)}, {}])
def test_a_lone_prompt_has_no_other(batch):
    with pytest.raises(ValueError, match="at least two prompts, got leading axes.*Draw more"):
        another_prompts(batch)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_narrow_random_update_has_the_norm_to_one_rounding(dtype):
    update = LowRank(jnp.full((1, 330), 16.0, dtype), jnp.full((1, 200), 8.0, dtype))
    null = random_update(jax.random.key(0), update)
    assert null.left_RD.dtype == null.right_RH.dtype == dtype
    np.testing.assert_allclose(frobenius_norm(null), frobenius_norm(update), rtol=1e-3)


def test_shuffled_labels_keep_their_values():
    labels = jnp.arange(20.0)
    shuffled = shuffled_labels(jax.random.key(0), labels)
    np.testing.assert_array_equal(jnp.sort(shuffled), labels)
    assert not np.array_equal(shuffled, labels)


def test_a_bootstrap_interval_covers_the_mean_as_often_as_it_says():
    keys = jax.random.split(jax.random.key(0), 300)

    def covers(key):
        values = jax.random.normal(jax.random.fold_in(key, 0), (40,)) + 3.0
        interval = bootstrap_mean(jax.random.fold_in(key, 1), values, num_resamples=200)
        return (interval.low <= 3.0) & (interval.high >= 3.0)

    # 95% nominal; a percentile interval of 40 values covers a little less.
    coverage = jax.jit(jax.vmap(covers))(keys).mean()
    assert 0.89 < coverage < 0.98


def test_a_bootstrap_of_curves_keeps_their_shape():
    values = jax.random.normal(jax.random.key(0), (30, 7, 2))
    interval = bootstrap_mean(jax.random.key(1), values)
    np.testing.assert_allclose(interval.mean, values.mean(axis=0))
    assert interval.low.shape == (7, 2)
    assert bool(jnp.all((interval.low < interval.mean) & (interval.mean < interval.high)))


def test_a_bootstrap_of_narrow_values_is_computed_wide():
    # The sum of 100 is 60,000: the resamples above it would be infinite in float16.
    values = jnp.concatenate([jnp.full(50, 100.0), jnp.full(50, 1300.0)])
    wide = bootstrap_mean(jax.random.key(1), values)
    for dtype in ("float16", "bfloat16"):
        narrow = bootstrap_mean(jax.random.key(1), values.astype(dtype))
        for got, want in zip(narrow, wide, strict=True):
            assert got.dtype == jnp.float32
            np.testing.assert_allclose(got, want, rtol=4e-3 if dtype == "bfloat16" else 1e-6)
    halves = (values / 1000).astype("float16")
    found = compare_with_nulls(
        jax.random.key(2), values.astype("float16"), {"null": halves}, larger_is_closer=True
    )
    assert found.value.dtype == jnp.float32 and 550 < found.low < 700 < found.high < 850


def test_a_bootstrap_multiplies_in_full_precision():
    text = str(jax.make_jaxpr(bootstrap_mean)(jax.random.key(0), jnp.ones((4, 3), jnp.float32)))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products and text.count("HIGHEST") >= len(products)


def test_a_bootstrap_of_booleans_says_what_to_do():
    with pytest.raises(TypeError, match=r"values_B must be floating point, got bool.*astype"):
        bootstrap_mean(jax.random.key(0), jnp.array([True, False, True]))


def test_a_bootstrap_needs_two_prompts_and_a_level():
    with pytest.raises(ValueError, match="at least two prompts"):
        bootstrap_mean(jax.random.key(0), jnp.ones(1))
    with pytest.raises(ValueError, match="level must lie"):
        bootstrap_mean(jax.random.key(0), jnp.ones(4), level=95)
