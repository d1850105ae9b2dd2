"""Layer-causal descent: each layer moves for the loss of its own output, and for no other."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax

from icl_jax.descent.finetune import descend
from icl_jax.descent.layer_causal import layer_causal_loss
from icl_jax.stack.block import Midpoint
from icl_jax.stack.layers import stack_layers

TARGET = jnp.array([[1.0, -1.0, 0.5]])
STATE = jnp.array([[0.5, 1.0, -2.0]])


def layer(params, state_TD):
    return state_TD + jnp.tanh(state_TD @ params["w"])


@dataclass(frozen=True)
class Layer:
    """The same as a block."""

    def contextual(self, params, stream_TD, *, positions_T=None, present_T=None):
        return Midpoint(stream_TD, stream_TD)

    def hidden(self, params, mlp_input_TD, factor):
        return jnp.tanh(mlp_input_TD @ params["w"])

    def output(self, params, midpoint, hidden_TH, patch):
        return midpoint.residual_TD + hidden_TH


def read_loss(state_TD):
    return jnp.sum((state_TD - TARGET) ** 2)


def params_of(depth):
    return [
        {"w": jax.random.normal(key, (3, 3), jnp.float64)}
        for key in jax.random.split(jax.random.key(0), depth)
    ]


def loss(params):
    return layer_causal_loss(stack_layers([Layer()] * len(params), params), STATE, read_loss)


def test_the_gradient_of_each_layer_is_that_of_its_own_early_loss():
    params = params_of(3)
    got = jax.grad(loss)(params)
    state_TD = STATE
    for layer_params, gradient in zip(params, got, strict=True):
        want = jax.grad(lambda p, s=state_TD: read_loss(layer(p, s)))(layer_params)
        np.testing.assert_allclose(gradient["w"], want["w"], rtol=1e-12)
        state_TD = layer(layer_params, state_TD)


def test_a_layer_does_not_feel_those_above_it_and_ordinary_descent_does():
    def ordinary(params):
        state_TD = STATE
        for layer_params in params:
            state_TD = layer(layer_params, state_TD)
        return read_loss(state_TD)

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
