"""Layers whose state is a fading matrix, against slow loops in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.check_layer import check_layer
from icl_jax.blocks.delta import GatedDelta
from icl_jax.blocks.selective import SelectiveStateSpace
from tests.blocks.test_layers import HIDDEN_TD, with_params
from tests.helpers import (
    LAYERS,
    assert_close,
    compiled,
    relative_error,
)


class TestGatedDelta:
    @pytest.mark.parametrize("layer", (LAYERS["delta"], GatedDelta(num_heads=2, taps=1)))
    def test_equals_a_loop(self, layer):
        params, call = with_params(layer)
        p = {name: np.asarray(leaf) for name, leaf in params.items()}
        groups, per_group = p["query"].shape[1], layer.num_heads // p["query"].shape[1]

        def sigmoid(x):
            return 1 / (1 + np.exp(-x))

        def unit(x):
            return x / np.sqrt(np.sum(x**2) + 1e-6)

        shape = (layer.key_width, layer.value_width)
        states, seen, rows = [np.zeros(shape) for _ in range(layer.num_heads)], [], []
        for token_D in np.asarray(HIDDEN_TD):
            parts = [token_D @ p[name].reshape(8, -1) for name in ("query", "key", "value")]
            seen.append(np.concatenate(parts))
            summed_C = np.zeros_like(seen[-1])
            for back in range(min(layer.taps, len(seen))):
                summed_C += p["taps"][:, layer.taps - 1 - back] * seen[-1 - back]
            mixed_C = summed_C * sigmoid(summed_C)
            keys = groups * layer.key_width
            query_GF = mixed_C[:keys].reshape(groups, -1)
            key_GF = mixed_C[keys : 2 * keys].reshape(groups, -1)
            value_AU = mixed_C[2 * keys :].reshape(layer.num_heads, -1)
            output_D = np.zeros(8)
            for head in range(layer.num_heads):
                query_F, key_F = unit(query_GF[head // per_group]), unit(key_GF[head // per_group])
                write = sigmoid(token_D @ p["write"][:, head])
                soft = np.log1p(np.exp(token_D @ p["fade"][:, head] + p["fade_bias"][head]))
                faded = np.exp(-np.exp(p["rate"][head]) * soft) * states[head]
                states[head] = faded + np.outer(key_F, write * (value_AU[head] - key_F @ faded))
                read_U = query_F @ states[head] / np.sqrt(layer.key_width)
                normed_U = read_U / np.sqrt(np.mean(read_U**2) + 1e-6) * p["scale"]
                gate_U = token_D @ p["gate"][:, head]
                output_D += (normed_U * gate_U * sigmoid(gate_U)) @ p["out"][head]
            rows.append(output_D)
        assert_close(call(HIDDEN_TD), np.stack(rows), 60, condition=10)

    def test_heads_of_keys_divide_those_of_values(self):
        with pytest.raises(ValueError, match="num_key_heads=2 does not divide num_heads=3"):
            with_params(GatedDelta(num_heads=3, num_key_heads=2))


#: Wider than the stream; no biases, no convolution, steps that are held; all heads share a key.
SELECTIVE = (
    LAYERS["selective"],
    SelectiveStateSpace(num_heads=2, num_key_heads=1, key_width=5, value_width=7, taps_bias=False),
    SelectiveStateSpace(num_heads=3, value_width=4, taps=1, step_limits=(0.05, 0.2)),
)


class TestSelectiveStateSpace:
    @pytest.mark.parametrize("layer", SELECTIVE)
    def test_equals_a_loop(self, layer):
        params, call = with_params(layer)
        want_TE = selective_loop(layer, params, HIDDEN_TD)
        assert want_TE.shape == (6, layer.num_heads * layer.value_width)
        assert_close(call(HIDDEN_TD), want_TE, 60, condition=10)

    @pytest.mark.wide(3)
    @pytest.mark.parametrize("layer", SELECTIVE)
    def test_is_what_it_says_at_any_width(self, layer):
        check_layer(layer, width=5, length=7)

    def test_steps_are_held_within_their_limits(self):
        layer = SELECTIVE[2]
        params, _ = with_params(layer)
        free = SelectiveStateSpace(num_heads=3, value_width=4, taps=1)
        held_TE, free_TE = (one.apply({"params": params}, HIDDEN_TD) for one in (layer, free))
        assert relative_error(held_TE, free_TE) > 1e-2

    def test_heads_start_with_rates_and_steps_of_their_own(self):
        layer = SelectiveStateSpace(num_heads=5)
        params = compiled(layer.init)(jax.random.key(0), HIDDEN_TD)["params"]
        np.testing.assert_allclose(np.exp(params["rate"]), np.arange(1, 6), rtol=1e-5)
        steps_A = jax.nn.softplus(params["step_bias"])
        np.testing.assert_allclose(steps_A[jnp.array([0, -1])], [0.001, 0.1], rtol=1e-3)
        assert np.all(np.diff(steps_A) > 0)

    def test_sizes_that_cannot_be_are_refused(self):
        wording = "SelectiveStateSpace: num_key_heads=2 does not divide num_heads=3"
        with pytest.raises(ValueError, match=wording):
            with_params(SelectiveStateSpace(num_heads=3, num_key_heads=2))
        with pytest.raises(ValueError, match=r"step_limits must be two numbers 0 <= low <= high"):
            with_params(SelectiveStateSpace(step_limits=(0.2, 0.1)))
        with pytest.raises(ValueError, match="SelectiveStateSpace: value_width must be an integer"):
            with_params(SelectiveStateSpace(value_width=0))


def selective_loop(layer, params, stream_TD):
    """The recurrence of Mamba 2 token by token and head by head."""
    p = {name: np.asarray(leaf) for name, leaf in params.items()}
    heads, values, keys = layer.num_heads, layer.value_width, layer.key_width
    groups = layer.num_key_heads or heads
    inner, shared = heads * values, heads // groups
    states, seen, rows = [np.zeros((keys, values)) for _ in range(heads)], [], []

    def sigmoid(x):
        return 1 / (1 + np.exp(-x))

    for token_D in np.asarray(stream_TD):
        projected = token_D @ p["in"] + p.get("in_bias", 0.0)
        gate_E, step_A = projected[:inner], projected[-heads:]
        seen.append(projected[inner:-heads])
        summed_C = np.zeros_like(seen[-1]) + p.get("taps_bias", 0.0)
        for back in range(min(layer.taps, len(seen))):
            summed_C += p["taps"][:, layer.taps - 1 - back] * seen[-1 - back]
        mixed_C = summed_C * sigmoid(summed_C)
        read = []
        for head in range(heads):
            key_start = inner + head // shared * keys
            value_U = mixed_C[head * values : (head + 1) * values]
            key_F = mixed_C[key_start : key_start + keys]
            query_F = mixed_C[key_start + groups * keys :][:keys]
            step = np.clip(
                np.log1p(np.exp(step_A[head] + p["step_bias"][head])), *layer.step_limits
            )
            fade = np.exp(-np.exp(p["rate"][head]) * step)
            states[head] = fade * states[head] + step * np.outer(key_F, value_U)
            read.append(query_F @ states[head] + p["skip"][head] * value_U)
        gated_E = np.concatenate(read) * gate_E * sigmoid(gate_E)
        parts = [part / np.sqrt(np.mean(part**2) + 1e-6) for part in np.split(gated_E, groups)]
        rows.append(np.concatenate(parts) * p["scale"])
    return np.stack(rows)
