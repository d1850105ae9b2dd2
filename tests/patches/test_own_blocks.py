"""Layers and blocks of one's own, in Flax, plain JAX and Equinox, are patched like all others."""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from icl_jax.blocks.block import Block
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.wiring import WIRINGS
from icl_jax.dynamics.prefixes import prefix_outputs_by_reruns, prefix_pass
from icl_jax.patches.extraction import LOOPS, patched_forward, stack_patches
from icl_jax.patches.output import apply_output
from icl_jax.patches.token import apply_factor
from icl_jax.stack.block import Midpoint
from icl_jax.stack.layers import stack_layers
from icl_jax.stack.run import forward
from tests.helpers import MLPS, assert_close, make_model, normal, relative_error
from tests.patches.test_bank import MISS, condition, only


class MovingAverage(ContextualLayer):
    """A user's own layer: an exponential moving average with a learned rate."""

    @nn.compact
    def __call__(self, stream_TD, *, positions_T=None, present_T=None):
        logit = self.param("logit", lambda key: jnp.zeros((), jnp.float32))
        rate = jax.nn.sigmoid(logit.astype(stream_TD.dtype))
        if present_T is None:
            present_T = jnp.ones(stream_TD.shape[0], bool)

        def step(mean_D, inputs):
            token_D, present = inputs
            mean_D = jnp.where(present, rate * mean_D + (1 - rate) * token_D, mean_D)
            return mean_D, mean_D

        return jax.lax.scan(step, jnp.zeros_like(stream_TD[0]), (stream_TD, present_T))[1]


class TestLayersAndBlocksOfOnesOwn:
    @pytest.mark.wide(9)
    @pytest.mark.parametrize("wiring", WIRINGS)
    def test_a_contextual_layer_plugs_in(self, wiring):
        model = make_model(Block(MovingAverage(), MLPS["gated"], wiring), depth=2)
        run = (model.layers,)
        stream_TD = model.embed(normal(1, 6, 3))
        bank = stack_patches(*run, stream_TD, [2, 5])
        want_KD = forward(*run, stream_TD)[jnp.array([2, 5])]
        got_KD = patched_forward(*run, only(stream_TD, [2, 5]), bank)
        assert_close(got_KD, want_KD, 60, condition=condition(bank))
        plain_KD = forward(*run, stream_TD[jnp.array([2, 5])])
        assert relative_error(plain_KD, want_KD) > MISS

    def test_its_prefixes_come_from_the_base_class(self):
        model = make_model(Block(MovingAverage(), MLPS["dense"], "pre_norm"), depth=2)
        run = (model.layers,)
        stream_TD = model.embed(normal(1, 6, 3))
        got = prefix_pass(*run, stream_TD[:-1], stream_TD[-1]).output_MD
        want = prefix_outputs_by_reruns(*run, stream_TD[:-1], stream_TD[-1])
        assert_close(got, want, 60)

    def test_a_block_of_plain_functions(self):
        run = (stack_layers((PlainBlock(),) * 2, [plain_params(seed) for seed in (0, 10)]),)
        assert_patches_work(run, normal(1, 6, 8))

    def test_a_block_of_equinox_modules(self):
        # Its arrays are the parameters; the rest of the module is a part of the block.
        modules = [eqx.partition(equinox_module(seed), eqx.is_array) for seed in (0, 10)]
        layers = stack_layers(
            [EquinoxBlock(static) for _, static in modules], [params for params, _ in modules]
        )
        assert layers.params.repeats == (2,)
        assert_patches_work((layers,), normal(1, 6, 8))


def assert_patches_work(run, stream_TD):
    """Patched equals full for two kept positions, and does not without the patch."""
    for loop in LOOPS:
        bank = stack_patches(*run, stream_TD, [0, 5], loop=loop)
        want_KD = forward(*run, stream_TD)[jnp.array([0, 5])]
        got_KD = patched_forward(*run, only(stream_TD, [0, 5]), bank)
        assert_close(got_KD, want_KD, 60, condition=condition(bank))
        assert relative_error(forward(*run, stream_TD[jnp.array([0, 5])]), want_KD) > MISS


@dataclass(frozen=True)
class PlainBlock:
    """Mean pooling and a two-layer MLP with a skip, in plain JAX."""

    patches_input: ClassVar[bool] = True
    has_output_bias: ClassVar[bool] = False

    def contextual(self, params, stream_TD, *, positions_T=None, present_T=None):
        mean_1D = jnp.mean(stream_TD, axis=0, keepdims=True)
        residual_TD = stream_TD + jnp.tanh(mean_1D @ params["mix"])
        return Midpoint(residual_TD, residual_TD)

    def hidden(self, params, mlp_input_TD, factor):
        if factor is not None:
            mlp_input_TD = jax.vmap(apply_factor)(mlp_input_TD, factor)
        return jax.nn.gelu(mlp_input_TD @ params["in"])

    def output(self, params, midpoint, hidden_TH, patch):
        output_TD = hidden_TH @ params["out"]
        if patch is not None and patch.output is not None:
            output_TD = jax.vmap(apply_output)(output_TD, hidden_TH, patch.output)
        return midpoint.residual_TD + output_TD


def plain_params(seed):
    return {
        "mix": normal(seed, 8, 8),
        "in": normal(seed + 1, 8, 16) / 3,
        "out": normal(seed + 2, 16, 8) / 4,
    }


class EquinoxModule(eqx.Module):
    """What an Equinox user has: a module that is a pytree of its own parameters."""

    attention: eqx.nn.MultiheadAttention
    first: eqx.nn.Linear
    second: eqx.nn.Linear


def equinox_module(seed):
    keys = jax.random.split(jax.random.key(seed), 3)
    return EquinoxModule(
        eqx.nn.MultiheadAttention(2, 8, key=keys[0], dtype=jnp.float64),
        eqx.nn.Linear(8, 16, key=keys[1], dtype=jnp.float64),
        eqx.nn.Linear(16, 8, key=keys[2], dtype=jnp.float64),
    )


@dataclass(frozen=True)
class EquinoxBlock:
    """Bidirectional attention and an MLP with biases, from Equinox layers."""

    static: EquinoxModule
    patches_input: ClassVar[bool] = True
    has_output_bias: ClassVar[bool] = True

    def contextual(self, params, stream_TD, *, positions_T=None, present_T=None):
        attention = eqx.combine(params, self.static).attention
        residual_TD = stream_TD + attention(stream_TD, stream_TD, stream_TD)
        return Midpoint(residual_TD, residual_TD)

    def hidden(self, params, mlp_input_TD, factor):
        if factor is not None:
            mlp_input_TD = jax.vmap(apply_factor)(mlp_input_TD, factor)
        return jnp.tanh(jax.vmap(eqx.combine(params, self.static).first)(mlp_input_TD))

    def output(self, params, midpoint, hidden_TH, patch):
        output_TD = jax.vmap(eqx.combine(params, self.static).second)(hidden_TH)
        if patch is not None and patch.output is not None:
            output_TD = jax.vmap(apply_output)(output_TD, hidden_TH, patch.output)
        return midpoint.residual_TD + output_TD
