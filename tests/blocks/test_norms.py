"""Norms against Flax's own, and their linear part with the denominator frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.norms import NORMS, Norm
from tests.helpers import assert_close, eps, normal, random_params, relative_error, seeds

KINDS = NORMS


def with_params(kind, seed=0):
    """A norm as a function, its gain and bias random."""
    norm = Norm(kind)
    if kind in ("none", "layer_plain"):
        return {}, lambda *args, **kwargs: norm.apply({}, *args, **kwargs)
    params = random_params(norm, seed, jnp.zeros((2, 8), jnp.float32))
    return params, lambda *args, **kwargs: norm.apply({"params": params}, *args, **kwargs)


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("kind, flax_norm", (("layer", nn.LayerNorm), ("rms", nn.RMSNorm)))
def test_equals_the_norm_of_flax(kind, flax_norm, dtype):
    params, norm = with_params(kind)
    stream_TD = 3 + normal(0, 5, 8, dtype=dtype)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    flax_module = flax_norm(dtype=dtype, param_dtype=dtype, use_fast_variance=False, epsilon=1e-6)
    # Flax promotes to float32 explicitly, which strict promotion forbids for float64.
    with jax.numpy_dtype_promotion("standard"):
        want_TD = flax_module.apply({"params": params}, stream_TD)
    assert_close(norm(stream_TD), want_TD, 16, condition=4)


def test_layer_norm_has_mean_zero_and_unit_variance_before_gain_and_bias():
    norm = Norm("layer", epsilon=0.0)
    stream_TD = 3 + normal(0, 5, 8)
    params = norm.init(jax.random.key(0), stream_TD)
    output_TD = np.asarray(norm.apply(params, stream_TD))
    assert np.max(np.abs(output_TD.mean(axis=-1))) < eps("float64", 8)
    assert np.max(np.abs(output_TD.var(axis=-1) - 1)) < eps("float64", 8)


@pytest.mark.parametrize("kind, parameters", (("layer_gain", {"scale"}), ("layer_plain", set())))
def test_a_layer_norm_may_lack_its_bias_and_its_gain(kind, parameters):
    params, norm = with_params(kind)
    assert set(params) == parameters
    stream_TD = 3 + normal(0, 5, 8)
    plain_TD = Norm("layer").apply(Norm("layer").init(jax.random.key(0), stream_TD), stream_TD)
    gain_D = params["scale"].astype(jnp.float64) if params else jnp.ones(8)
    assert_close(norm(stream_TD), plain_TD * gain_D[None], 16, condition=4)


def test_none_is_the_identity_and_has_no_parameters():
    stream_TD = normal(0, 5, 8)
    norm = Norm("none")
    assert norm.init(jax.random.key(0), stream_TD) == {}
    assert norm.apply({}, stream_TD) is stream_TD
    assert norm.apply({}, stream_TD, stream_TD[0], method="frozen") is stream_TD


@given(st.sampled_from(KINDS), seeds())
def test_frozen_is_linear(kind, seed):
    _, norm = with_params(kind, seed)
    first_TD, second_TD, reference_D = normal(1, 4, 8), normal(2, 4, 8), normal(3, 8)

    def frozen(vectors_TD):
        return norm(vectors_TD, reference_D, method="frozen")

    got_TD = frozen(2.0 * first_TD - 3.0 * second_TD)
    assert_close(got_TD, 2.0 * frozen(first_TD) - 3.0 * frozen(second_TD), 16, condition=4)
    assert not np.any(frozen(jnp.zeros((2, 8))))


@given(st.sampled_from(KINDS), seeds())
def test_frozen_at_a_vector_is_the_norm_of_that_vector_less_its_bias(kind, seed):
    params, norm = with_params(kind, seed)
    vector_D = normal(3, 8)
    got_D = norm(vector_D[None], vector_D, method="frozen")[0]
    want_D = norm(vector_D[None])[0]
    if "bias" in params:
        want_D = want_D - params["bias"].astype(want_D.dtype)
    assert_close(got_D, want_D, 16, condition=4)


def test_norms_differ_by_the_frozen_difference_and_the_terms_of_the_denominator():
    # norm(x) - norm(y) = frozen(x - y, x) + (1/d_x - 1/d_y) gain centre(y), d the denominators.
    params, norm = with_params("rms")
    x_D, y_D = normal(0, 8), normal(1, 8)
    exact_D = norm(x_D[None])[0] - norm(y_D[None])[0]
    first_D = norm((x_D - y_D)[None], x_D, method="frozen")[0]
    inverse_x, inverse_y = (1 / jnp.sqrt(jnp.mean(v**2) + 1e-6) for v in (x_D, y_D))
    rest_D = (inverse_x - inverse_y) * params["scale"].astype(jnp.float64) * y_D
    assert_close(first_D + rest_D, exact_D, 16, condition=10)
    assert relative_error(first_D, exact_D) > 1e-2


def test_frozen_is_the_derivative_when_the_denominator_is_held():
    _, norm = with_params("layer")
    reference_D, direction_D = normal(0, 8), normal(1, 8)
    matrix_DD = norm(jnp.eye(8), reference_D, method="frozen")
    got_D = norm(direction_D[None], reference_D, method="frozen")[0]
    assert_close(got_D, direction_D @ matrix_DD, 16, condition=4)


def test_statistics_of_low_precision_are_taken_in_float32():
    # In bfloat16 the sum of 2048 ones stops growing at 256.
    stream_TD = jnp.full((1, 2048), 3.0, jnp.bfloat16)
    norm = Norm("rms")
    params = norm.init(jax.random.key(0), stream_TD)
    output_TD = norm.apply(params, stream_TD)
    assert output_TD.dtype == jnp.bfloat16
    np.testing.assert_array_equal(output_TD, jnp.ones_like(output_TD))


def test_an_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="Norm: kind must be one of 'layer', "):
        Norm("batch").init(jax.random.key(0), normal(0, 2, 8))
