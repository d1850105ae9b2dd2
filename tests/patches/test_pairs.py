"""A pair holds a sum or a product to the last digit, whatever a compiler does around it."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.patches.pairs import two_product, two_sum
from tests.helpers import normal, seeds


def exact(values):
    return [Fraction(float(value)) for value in np.asarray(values)]


@given(seeds(), st.sampled_from(("float32", "float64")), st.integers(-12, 12), st.booleans())
def test_a_pair_is_the_sum_and_the_product(seed, dtype, scale, in_one):
    left = normal(seed, 50, dtype=dtype)
    right = (normal(seed + 1, 50, dtype="float64") * 10.0**scale).astype(dtype)
    for pair, want in (
        (two_sum, [a + b for a, b in zip(exact(left), exact(right), strict=True)]),
        (two_product, [a * b for a, b in zip(exact(left), exact(right), strict=True)]),
    ):
        # Of constants, too, with which a compiler takes liberties.
        of_constants = jax.jit(lambda right, pair=pair: pair(left, right))
        high, low = of_constants(right) if in_one else jax.jit(pair)(left, right)
        assert [a + b for a, b in zip(exact(high), exact(low), strict=True)] == want
        assert np.any(low != 0)


def test_a_product_in_front_of_a_sum_is_still_one():
    left, right, more = (normal(seed, 640, dtype="float32") for seed in range(3))
    joined = jax.jit(lambda left, right, more: two_product(left, right)[0] + more)
    apart = np.asarray(left) * np.asarray(right) + np.asarray(more)
    np.testing.assert_array_equal(joined(left, right, more), apart)
    # The control: this machine's compiler does join them.
    if np.all(jax.jit(lambda a, b, c: a * b + c)(left, right, more) == apart):
        pytest.skip("no fused multiply-add here")


@pytest.mark.parametrize("large", (1e36, 2e38, np.inf))
def test_what_overflows_leaves_nothing(large):
    left, right = jnp.float32(large), jnp.float32(0.3)
    high, low = two_product(left, right)
    assert high == left * right and low == 0
    for pair in (two_product, two_sum):
        high, low = pair(left, left)
        assert high == np.inf and low == 0 or np.isfinite(high)
        slope = jax.grad(lambda left, pair=pair: sum(pair(left, jnp.float32(0.5))))(left)
        assert slope == (0.5 if pair is two_product else 1)


def test_good_numbers_do_not_stop_the_search_for_nans():
    with jax.debug_nans(True):
        two_product(jnp.float32(1e36), jnp.float32(2.0))
        two_sum(jnp.float32(1e36), jnp.float32(2.0))
