"""Attention and nothing else: what is read, what is not, and what comes out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.attention_stack import linear_attention_stack
from icl_jax.blocks.linear_attention import LinearAttention
from tests.helpers import normal


def init(model, tokens_TC, seed=0):
    params = model.init(jax.random.key(seed), tokens_TC)["params"]
    return jax.tree.map(lambda leaf: leaf.astype(tokens_TC.dtype), params)


def by_hand(layers, tokens_TC):
    """Sums over the examples, in NumPy."""
    tokens_TC = np.asarray(tokens_TC)
    for layer in layers:
        query, key, value = (np.asarray(layer[name])[:, 0] for name in ("query", "key", "value"))
        out = np.asarray(layer["out"])[0]
        examples_NC = tokens_TC[:-1]
        scores_TN = (tokens_TC @ query) @ (examples_NC @ key).T / len(examples_NC)
        tokens_TC = tokens_TC + scores_TN @ (examples_NC @ value) @ out
    return -tokens_TC[-1, -1]


@pytest.mark.parametrize("depth", (1, 3))
def test_a_layer_is_a_mean_over_the_examples(depth):
    tokens_TC = normal(0, 7, 4)
    model = linear_attention_stack(depth, 6)
    params = init(model, tokens_TC)
    assert len(params) == depth
    got = model.apply({"params": params}, tokens_TC)
    want = by_hand([params[f"layers_{i}"] for i in range(depth)], tokens_TC)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_a_looped_layer_is_one_layer():
    tokens_TC = normal(0, 7, 4)
    model = linear_attention_stack(3, 6, looped=True)
    params = init(model, tokens_TC)
    assert len(params) == 1
    (layer,) = params.values()
    got = model.apply({"params": params}, tokens_TC)
    np.testing.assert_allclose(got, by_hand([layer] * 3, tokens_TC), rtol=1e-12)


def test_the_order_of_the_examples_does_not_matter():
    tokens_TC = normal(0, 7, 4)
    model = linear_attention_stack(2, 6)
    params = init(model, tokens_TC)
    mixed_TC = tokens_TC[jnp.array([3, 0, 5, 1, 2, 4, 6])]
    got = model.apply({"params": params}, mixed_TC)
    np.testing.assert_allclose(got, model.apply({"params": params}, tokens_TC), rtol=1e-12)


def test_there_is_a_prediction_after_every_layer():
    tokens_TC = normal(0, 7, 4)
    deep, shallow = linear_attention_stack(2, 6), linear_attention_stack(1, 6)
    params = init(deep, tokens_TC)
    predictions = deep.apply({"params": params}, tokens_TC, method="predictions")
    assert predictions.shape == (3,)
    assert predictions[0] == -tokens_TC[-1, -1]
    first = shallow.apply({"params": {"layers_0": params["layers_0"]}}, tokens_TC)
    np.testing.assert_allclose(predictions[1], first, rtol=1e-12)
    assert predictions[2] == deep.apply({"params": params}, tokens_TC)


def test_what_is_absent_reads_and_is_not_read():
    stream_TD = normal(1, 5, 4)
    present_T = jnp.array([True, True, True, True, False])
    layer = LinearAttention(num_heads=2, causal=False)
    params = init(layer, stream_TD)
    with_last = layer.apply({"params": params}, stream_TD, present_T=present_T)
    without = layer.apply({"params": params}, stream_TD[:4])
    np.testing.assert_allclose(with_last[:4], without, rtol=1e-12)
    # Twice the last row asks twice as much of the others, and of itself nothing.
    twice = layer.apply({"params": params}, stream_TD.at[4].mul(2.0), present_T=present_T)
    np.testing.assert_allclose(twice[4], 2 * with_last[4], rtol=1e-12)
