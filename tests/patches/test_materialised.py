"""The patch as plain parameters: W + dW goes into the tree, the ordinary model runs on the query.

Here everything of the library ends with the matrices: what runs them is ``stack.apply`` alone.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.functional import functional, layer_params, layer_places
from icl_jax.patches.extraction import stack_patches
from icl_jax.patches.low_rank import as_matrix
from icl_jax.patches.output import BiasPatch, DownPatch, down_update
from icl_jax.patches.token import InputFactor, kernel_update
from tests.helpers import (
    LAYERS,
    MLPS,
    assert_close,
    compiled,
    make_model,
    normal,
    random_params,
    relative_error,
)

#: What a control has to miss by.
MISS = 1e-2

#: The first kernels of each MLP: those that read its input.
INPUT_KERNELS = {"dense": ("layer_0",), "deep": ("layer_0",), "gated": ("gate", "up")}

#: Each MLP with the output policies that it allows.
POLICIES = (
    ("dense_bias", "bias"),
    ("dense_bias", "down"),
    ("dense", "down"),
    ("deep_bias", "bias"),
    ("deep", "down"),
    ("gated_bias", "bias"),
    ("gated", "down"),
)


def parameter_changes(patch, params, mlp):
    """``{(name, leaf): change}`` of one block's MLP, from the patch of its only kept position."""
    changes = {}
    factor = InputFactor(patch.input.v_D[0], patch.input.delta_D[0])
    for name in INPUT_KERNELS[mlp.removesuffix("_bias")]:
        changes[name, "kernel"] = as_matrix(kernel_update(factor, params["mlp"][name]["kernel"]))
    if isinstance(patch.output, BiasPatch):
        changes["down", "bias"] = patch.output.delta_D[0]
    else:
        assert isinstance(patch.output, DownPatch)
        down = jax.tree.map(lambda rows: rows[0], patch.output)
        changes["down", "kernel"] = as_matrix(down_update(down))
    return changes


def add_to_tree(stack, params, changes_of_layers):
    """A copy of a stack's parameters with the changes of each block's MLP added."""
    tree = jax.tree.map(lambda leaf: leaf, params)
    places = layer_places(stack.blocks)
    for (layers, row), changes in zip(places, changes_of_layers, strict=True):
        for (name, leaf), change in changes.items():
            mlp = tree[layers]["mlp"]
            mlp[name][leaf] = mlp[name][leaf].at[row].add(change)
    return tree


@functools.partial(compiled, static_argnums=2)
def query_patches(layers, stream_TD, output):
    """The patches of the last of six positions."""
    return stack_patches(layers, stream_TD, [5], output=output)


@functools.cache
def patched_tree(mlp, output, depth, *, seed=0):
    """A stack, its prompt (T, 3), its float64 parameters and the changes of each layer."""
    block = Block(LAYERS["attention"], MLPS[mlp], "pre_norm", "layer")
    model = make_model(block, depth, seed=seed)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), model.params)
    tokens_TC = normal(100 + seed, 6, 3)
    layers = functional(model.stack, params)
    bank = query_patches(layers, model.embed(tokens_TC), output)
    pairs = zip(bank.patches, layers.params, strict=True)
    changes = [parameter_changes(*pair, mlp) for pair in pairs]
    return model.stack, tokens_TC, params, changes


@functools.partial(compiled, static_argnums=0)
def run(stack, params, tokens_TC):
    """The output at the last token."""
    return stack.apply({"params": params}, tokens_TC)[-1]


@pytest.mark.wide(18)
@pytest.mark.parametrize("depth", (1, 3))
@pytest.mark.parametrize("mlp, output", POLICIES)
def test_the_query_alone_with_new_weights_gives_what_it_gave_with_its_context(mlp, output, depth):
    stack, tokens_TC, params, changes = patched_tree(mlp, output, depth)
    want = run(stack, params, tokens_TC)
    query_1C = tokens_TC[-1:]
    assert_close(
        run(stack, add_to_tree(stack, params, changes), query_1C), want, 32 * depth, condition=30
    )
    assert relative_error(run(stack, params, query_1C), want) > MISS
    # Another prompt's weights, and weights moved as far in random directions.
    *_, other = patched_tree(mlp, output, depth, seed=1)
    noise = [
        {
            key: jnp.linalg.norm(change) * noise / jnp.linalg.norm(noise)
            for i, (key, change) in enumerate(layer.items())
            for noise in [normal(31 + i, *change.shape)]
        }
        for layer in changes
    ]
    for wrong in (other, noise):
        assert relative_error(run(stack, add_to_tree(stack, params, wrong), query_1C), want) > MISS


def test_every_changed_parameter_is_needed():
    stack, tokens_TC, params, changes = patched_tree("gated_bias", "bias", 1)
    want = run(stack, params, tokens_TC)
    assert set(changes[0]) == {("gate", "kernel"), ("up", "kernel"), ("down", "bias")}
    for left_out in changes[0]:
        rest = [{key: change for key, change in changes[0].items() if key != left_out}]
        got = run(stack, add_to_tree(stack, params, rest), tokens_TC[-1:])
        assert relative_error(got, want) > MISS, left_out


def test_each_matrix_has_rank_one_and_keeps_its_shape():
    stack, _, params, changes = patched_tree("gated", "down", 3)
    for layer, of_layer in enumerate(changes):
        of_params = layer_params(stack, params, layer)
        assert len(of_layer) == 3
        for (name, leaf), change in of_layer.items():
            assert change.shape == of_params["mlp"][name][leaf].shape
            assert np.linalg.matrix_rank(change) == 1


def test_the_weights_are_for_this_query_and_not_for_another():
    # The identity holds for one token; nothing promises that it transfers.
    stack, tokens_TC, params, changes = patched_tree("dense_bias", "bias", 1)
    other_TC = tokens_TC.at[-1].set(normal(77, 3))
    want = run(stack, params, other_TC)
    got = run(stack, add_to_tree(stack, params, changes), other_TC[-1:])
    assert relative_error(got, want) > MISS


def test_float32_parameters_stay_float32_and_exact_to_it():
    block = Block(LAYERS["attention"], MLPS["dense_bias"], "pre_norm", "layer")
    model = make_model(block, 3)
    tokens_TC = normal(100, 6, 3, dtype="float32")
    stream_TD = model.embed(tokens_TC)
    bank = query_patches(model.layers, stream_TD, "auto")
    changes = [
        parameter_changes(patch, params, "dense_bias")
        for patch, params in zip(bank.patches, model.block_params, strict=True)
    ]
    patched = add_to_tree(model.stack, model.params, changes)
    assert {leaf.dtype for leaf in jax.tree.leaves(patched)} == {jnp.dtype("float32")}
    want = run(model.stack, model.params, tokens_TC)
    assert_close(run(model.stack, patched, tokens_TC[-1:]), want, 96, condition=30)


def test_a_lone_mlp_layer_may_stand_outside_a_stack():
    # M(z) of the library against the same MLP with its first kernel replaced by hand.
    mlp = Dense(hidden_widths=(16,), activation="gelu")
    full_D, kept_D = normal(1, 8), normal(2, 8)
    params = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float64), random_params(mlp, 3, jnp.zeros((1, 8), jnp.float32))
    )
    v_D = kept_D / jnp.dot(kept_D, kept_D)
    kernel_DH = params["layer_0"]["kernel"]
    by_hand_DH = kernel_DH + jnp.outer(v_D, (full_D - kept_D) @ kernel_DH)
    patched = {**params, "layer_0": {**params["layer_0"], "kernel": by_hand_DH}}
    want = mlp.apply({"params": params}, full_D[None])
    assert_close(mlp.apply({"params": patched}, kept_D[None]), want, 24, condition=10)
    assert relative_error(mlp.apply({"params": params}, kept_D[None]), want) > MISS
