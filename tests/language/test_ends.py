"""Logits that are no numbers are known as such, and masked ones are not taken for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.language.ends import check_finite, finite


def test_a_mask_is_a_number_and_nan_infinity_and_nothing_are_none():
    rows = [[0.0, -jnp.inf], [1.0, 2.0], [jnp.nan, 0.0], [jnp.inf, 0.0], [-jnp.inf, -jnp.inf]]
    for function in (finite, jax.jit(finite)):
        np.testing.assert_array_equal(function(jnp.array(rows)), [True, True, False, False, False])


def test_the_first_row_that_is_none_is_named():
    check_finite("here", jnp.array([[True, True]]))
    with pytest.raises(ValueError, match=r"here: the logits of row \(0, 1\) .* are not finite"):
        check_finite("here", jnp.array([[True, False]]))
