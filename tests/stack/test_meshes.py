"""A prompt per device says what a prompt per call says: under shard_map, and on explicit axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from icl_jax.blocks.block import Block
from icl_jax.dynamics.prefixes import prefix_pass
from icl_jax.patches.extraction import patched_forward, stack_patches
from tests.helpers import LAYERS, MLPS, assert_trees_close, make_model, normal
from tests.language.models import MODELS, VOCAB, params_of

GROUPED = ("attention_grouped", "gated", "sandwich", "rms")
SLOPED = ("attention_sloped", "experts", "pre_norm", "rms")
RECURRENT = ("recurrent", "dense_bias", "reordered_norm", "rms")
DELTA = ("delta", "dense_bias", "pre_norm", "rms")

#: Way, and layer, MLP, wiring and norm: every layer, every kind of MLP and wiring of a patch.
CASES = (
    ("explicit", GROUPED),
    ("shard_map", GROUPED),
    ("shard_map", RECURRENT),
    ("explicit", RECURRENT),
    ("explicit", SLOPED),
    ("shard_map", SLOPED),
    ("explicit", DELTA),
    ("shard_map", DELTA),
    ("explicit", ("attention_bidirectional", "deep_bias", "parallel", "layer")),
    ("explicit", ("linear_attention", "dense", "post_norm", "layer")),
    ("shard_map", ("linear_attention", "dense", "post_norm", "layer")),
    ("shard_map", ("state_space", "gated_bias", "pre_norm", "layer")),
    ("explicit", ("state_space", "gated_bias", "pre_norm", "layer")),
)


def each(way, function, rows):
    """What ``function`` makes of every row, one row on each of four devices."""
    mesh = jax.make_mesh((4,), ("prompts",), (AxisType.Explicit,), devices=jax.devices()[:4])
    mapped = jax.vmap(function)
    if way == "shard_map":
        mapped = jax.shard_map(mapped, in_specs=P("prompts"), out_specs=P("prompts"))
    with jax.set_mesh(mesh):
        placed = jax.device_put(rows, jax.NamedSharding(mesh, P("prompts")))
        return jax.device_get(jax.jit(mapped)(placed))


@pytest.mark.wide(15)
@pytest.mark.parametrize(("way", "names"), CASES)
def test_patches_of_a_prompt_per_device_are_those_of_a_prompt_per_call(way, names):
    layer, mlp, wiring, norm = names
    layers = make_model(Block(LAYERS[layer], MLPS[mlp], wiring, norm), 1).layers

    def run(stream_TD):
        bank = stack_patches(layers, stream_TD, jnp.array([2, 5]))
        found = [patched_forward(layers, stream_TD, bank)]
        if LAYERS[layer].causal:
            found.append(prefix_pass(layers, stream_TD[:-1], stream_TD[-1]).output_MD)
        return found

    streams_BTD = normal(0, 4, 6, 8)
    want = jax.device_get(jax.vmap(run)(streams_BTD))
    assert_trees_close(each(way, run, streams_BTD), want, 60, condition=10)


@pytest.mark.wide(6)
@pytest.mark.parametrize("way", ("explicit", "shard_map"))
@pytest.mark.parametrize("name", ("learned_positions", "sandwich", "experts"))
def test_a_language_model_reads_a_prompt_per_device(name, way):
    model, params = MODELS[name], params_of(name)
    tokens_BT = np.random.default_rng(0).integers(0, VOCAB, (4, 12)).astype(np.int32)
    tokens_BT[1, 3] = VOCAB  # Not in the table, and so no number, as without a mesh.

    def run(tokens_T):
        return model.apply({"params": params}, tokens_T)

    want = np.asarray(jax.vmap(run)(tokens_BT))
    assert np.all(np.isnan(want[1, 3:])) and not np.any(np.isnan(want[[0, 2, 3]]))
    np.testing.assert_allclose(each(way, run, tokens_BT), want, rtol=2e-4, atol=2e-5)
