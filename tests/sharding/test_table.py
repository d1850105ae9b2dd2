"""The table: which axis of an array lies along which axis of the mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from icl_jax.blocks.feedforward import Dense
from icl_jax.interop.assemble import flatten
from icl_jax.language.prompt import prompt_patches
from icl_jax.patches.bank import compact_bank
from icl_jax.sharding import TABLE, Table, constrain, make_mesh, mesh_axes, on_host, place, specs
from icl_jax.sharding.names import record_axes
from icl_jax.sharding.placing import mapped_axes
from tests.helpers import LAYERS, random_params
from tests.sharding.programs import KEPT, TOKENS, model, setting, weights

MESH = {"data": 4, "model": 2}


def specs_of(tree, **options):
    return flatten(specs(tree, make_mesh(MESH), **options))


def test_heads_hidden_widths_and_the_vocabulary_lie_along_model_and_the_stream_is_whole():
    found = specs_of(weights("gated", 2, jnp.float32))
    layer = "layers_0_0"
    assert found == {
        ("embedding",): P("model"),
        (layer, "contextual_layer", "query"): P(None, None, "model"),
        (layer, "contextual_layer", "key"): P(None, None, "model"),
        (layer, "contextual_layer", "value"): P(None, None, "model"),
        (layer, "contextual_layer", "out"): P(None, "model"),
        (layer, "mlp", "gate", "kernel"): P(None, None, "model"),
        (layer, "mlp", "up", "kernel"): P(None, None, "model"),
        (layer, "mlp", "down", "kernel"): P(None, "model"),
        (layer, "norm_1", "scale"): P(),
        (layer, "norm_2", "scale"): P(),
        ("norm_final", "scale"): P(),
    }


def test_keys_of_one_head_are_whole_where_queries_are_divided():
    found = specs_of(weights("gated", 1, jnp.float32))
    assert found["layers_0_0", "contextual_layer", "key"] == P()
    assert found["layers_0_0", "contextual_layer", "query"] == P(None, None, "model")


def test_experts_are_whole_and_their_hidden_width_is_divided():
    found = specs_of(weights("experts", 2, jnp.float32))
    assert found["layers_0_0", "mlp", "gate"] == P(None, None, None, "model")
    assert found["layers_0_0", "mlp", "down"] == P(None, None, "model")
    assert found["layers_0_0", "mlp", "shared_down"] == P(None, "model")
    assert found["layers_0_0", "mlp", "router"] == P()


def test_a_layer_that_joins_its_kernels_keeps_them_whole():
    inputs = jax.ShapeDtypeStruct((2, 8), jnp.float32)
    params = {"layers_0_0": {"contextual_layer": random_params(LAYERS["delta"], 0, inputs)}}
    stacked = jax.tree.map(lambda leaf: leaf[None], params)
    assert set(specs_of(stacked).values()) == {P()}


def test_hidden_layers_of_a_dense_mlp_start_divided_and_end_divided():
    params = random_params(Dense(hidden_widths=(16, 8)), 0, jax.ShapeDtypeStruct((2, 6), float))
    found = specs_of({"layers_0_0": {"mlp": jax.tree.map(lambda leaf: leaf[None], params)}})
    assert found["layers_0_0", "mlp", "layer_0", "kernel"] == P(None, None, "model")
    assert found["layers_0_0", "mlp", "layer_1", "kernel"] == P()
    assert found["layers_0_0", "mlp", "down", "kernel"] == P(None, "model")


def test_moments_of_an_optimizer_lie_as_their_parameters():
    params = weights("gated", 2, jnp.float32)
    state = {"count": jnp.zeros((), jnp.int32), "mu": params}
    moments = {path[1:]: spec for path, spec in specs_of(state).items() if path[0] == "mu"}
    assert moments == specs_of(params) and specs_of(state)["count",] == P()


def test_banks_and_memories_are_divided_by_prompts_heads_and_hidden_width():
    mesh = make_mesh(MESH)
    on = setting(jnp.float32)
    bank = prompt_patches(on.model, on.params, TOKENS[:1], KEPT[:1])[0]
    batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * 8), bank)
    found = specs(batch, mesh, leading="BLK")
    patch = found.patches.segments[0][0]
    assert patch.input.v_D == P("data") and patch.input.delta_D == P("data")
    assert patch.output.v_H == P("data", None, None, "model")
    assert found.kept_K == P("data")
    assert specs(compact_bank(bank), mesh, leading="LK").kept_K == P()
    block = on.model.blocks[0].contextual_layer
    memory = jax.tree.map(
        lambda leaf: jnp.zeros((2, 8, *leaf.shape)), block.empty_memory(6, 20, jnp.float32)
    )
    assert specs(memory, mesh, leading="LB").key_TGF == P(None, "data", None, "model")
    long = make_mesh({"data": 2, "context": 2, "model": 2})
    assert specs(memory, long, leading="LB").key_TGF == P(None, "data", "context", "model")


def test_the_letters_of_a_name_are_its_axes():
    assert record_axes("delta_D", 4, "BLK") == ("prompts", "layers", None, "width")
    assert record_axes("kept_norm", 3, "BLK") == ("prompts", "layers", None)
    assert record_axes("tokens_BT", 2) == ("prompts", "context")
    assert record_axes("kept_K", 0) == () and record_axes("other", 2, "B") == ("prompts", None)


def test_an_axis_that_does_not_divide_is_whole_and_none_is_used_twice():
    mesh = make_mesh(MESH)
    assert TABLE.spec(("prompts", "hidden"), (6, 7), mesh) == P()
    assert TABLE.spec(("tasks", "hidden"), (8, 8), mesh) == P(("data", "model"))
    assert TABLE.spec(("tasks",), (4,), mesh) == P("data")
    assert Table(width=("model",)).spec(("width", "hidden"), (4, 4), mesh) == P("model")
    with pytest.raises(ValueError, match="must name each of the 2 axes of shape"):
        TABLE.spec(("prompts",), (4, 4), mesh)


def test_arrays_are_placed_by_the_table_and_come_back_whole():
    params = weights("gated", 2, jnp.float32)
    placed = place(params, make_mesh(MESH))
    kernel = placed["layers_0_0"]["mlp"]["gate"]["kernel"]
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(3, 20, 14)}
    jax.tree.map(np.testing.assert_array_equal, on_host(placed), params)


def test_a_program_asks_for_its_share_on_the_mesh_that_is_set_only():
    def draw(key):
        return constrain(jax.random.normal(key, (8, 3)), leading="B")

    whole = jax.jit(draw)(jax.random.key(0))
    assert len(whole.sharding.device_set) == 1
    with jax.set_mesh(make_mesh(MESH)):
        divided = jax.jit(draw)(jax.random.key(0))
        assert mapped_axes("prompts", 8) == "data" and mapped_axes("prompts", 3) is None
    assert {shard.data.shape for shard in divided.addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(whole, divided)
    assert mapped_axes("prompts", 8) is None


def test_a_mesh_is_written_as_names_and_sizes():
    assert mesh_axes("data:4,model:2") == MESH
    for text in ("", "data", "data:0", "data:x", "data:2,data:2", ":2"):
        with pytest.raises(ValueError, match="must be written as NAME:SIZE"):
            mesh_axes(text)
    with pytest.raises(ValueError, match="named from data, tasks, model, context, got 'modle'"):
        make_mesh({"modle": 2})
    with pytest.raises(ValueError, match="are for 9 devices, got 8. Choose sizes whose product is"):
        make_mesh({"data": 9})
    with pytest.raises(ValueError, match="axes is empty"):
        make_mesh({})
    with pytest.raises(ValueError, match="size of 'data' must be at least 1, got 0"):
        make_mesh({"data": 0})
    assert model().vocab_size == 96
