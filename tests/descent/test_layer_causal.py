"""Layer-causal descent: each layer moves for the loss of its own output, and for no other."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from icl_jax.descent.finetune import descend
from icl_jax.descent.layer_causal import layer_causal_loss

TARGET = jnp.array([1.0, -1.0, 0.5])
STATE = jnp.array([0.5, 1.0, -2.0])


def layer(params, state_D):
    return state_D + jnp.tanh(state_D @ params["w"])


def read_loss(state_D):
    return jnp.sum((state_D - TARGET) ** 2)


def params_of(depth):
    return [
        {"w": jax.random.normal(key, (3, 3), jnp.float64)}
        for key in jax.random.split(jax.random.key(0), depth)
    ]


def loss(params):
    return layer_causal_loss([layer] * len(params), params, STATE, read_loss)


def test_the_gradient_of_each_layer_is_that_of_its_own_early_loss():
    params = params_of(3)
    got = jax.grad(loss)(params)
    state_D = STATE
    for layer_params, gradient in zip(params, got, strict=True):
        want = jax.grad(lambda p, s=state_D: read_loss(layer(p, s)))(layer_params)
        np.testing.assert_allclose(gradient["w"], want["w"], rtol=1e-12)
        state_D = layer(layer_params, state_D)


def test_a_layer_does_not_feel_those_above_it_and_ordinary_descent_does():
    def ordinary(params):
        state_D = STATE
        for layer_params in params:
            state_D = layer(layer_params, state_D)
        return read_loss(state_D)

    params = params_of(2)
    other = [params[0], {"w": -params[1]["w"]}]
    same, changed = jax.grad(loss)(params)[0]["w"], jax.grad(loss)(other)[0]["w"]
    np.testing.assert_array_equal(same, changed)
    assert not np.allclose(jax.grad(ordinary)(params)[0]["w"], jax.grad(ordinary)(other)[0]["w"])


def test_one_layer_is_ordinary_descent():
    params = params_of(1)
    got = jax.value_and_grad(loss)(params)
    want = jax.value_and_grad(lambda p: read_loss(layer(p[0], STATE)))(params)
    np.testing.assert_allclose(got[0], want[0])
    np.testing.assert_allclose(got[1][0]["w"], want[1][0]["w"], rtol=1e-12)


def test_any_optimiser_takes_it():
    trajectory = descend(loss, params_of(3), optax.adam(0.05), num_steps=30)
    assert trajectory.losses_S[-1] < 0.5 * trajectory.losses_S[0]
