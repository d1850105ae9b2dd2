"""Every family computes what transformers computes, from transformers' own files."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.experts import Experts
from icl_jax.blocks.functional import functional
from icl_jax.interop.huggingface import load
from icl_jax.interop.options import Options
from icl_jax.interop.registry import families
from icl_jax.interop.safetensors import MappedTensors
from icl_jax.interop.saving import save
from icl_jax.stack.block import apply_block
from tests.helpers import relative_error

GOLDEN = Path(__file__).parent / "golden"
FAMILIES = sorted(path.parent.name for path in GOLDEN.glob("*/logits.npz"))
BOUNDS = {"float32": 1e-5, "float64": 1e-10}


def test_no_family_is_left_out():
    assert FAMILIES == sorted(families())


@functools.cache
def golden(family):
    with np.load(GOLDEN / family / "logits.npz") as arrays:
        return dict(arrays)


@functools.cache
def loaded(family, dtype):
    return load(GOLDEN / family, dtype=jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, given):
    """Logits (B, T, V)."""

    def row(tokens_T, positions_T, present_T):
        return model.apply(
            {"params": params}, tokens_T, positions_T=positions_T, present_T=present_T
        )

    # Equal models share one compilation, whatever their parameters.
    return jax.vmap(row)(given["tokens"], given["positions"], given["mask"])


def batch_logits(model, params, given):
    """Logits of a padded batch (B, T, V)."""
    return np.asarray(run(model, params, inputs(given)))


def batch_experts(model, params, given):
    """The choice of each layer with experts, by rank: (layers, B, T, k)."""
    return np.asarray(choices(model, params, inputs(given)))


@functools.partial(jax.jit, static_argnums=0)
def choices(model, params, given):
    """What the router of each layer chooses for what its MLP reads, (layers, B, T, k)."""

    def row(tokens_T, positions_T, present_T):
        stream_TD = model.apply(
            {"params": params}, tokens_T, positions_T=positions_T, method="embed"
        )
        chosen = []
        for block, layer in functional(model, params):
            midpoint = block.contextual(
                layer, stream_TD, positions_T=positions_T, present_T=present_T
            )
            if isinstance(block.module.mlp, Experts):
                variables = {"params": layer["mlp"]}
                route = block.module.mlp.apply(variables, midpoint.mlp_input_TD, method="route")
                chosen.append(route[0])
            stream_TD = apply_block(block, layer, midpoint)
        return jnp.stack(chosen)

    rows_BLTK = jax.vmap(row)(given["tokens"], given["positions"], given["mask"])
    return jnp.moveaxis(rows_BLTK, 0, 1)


def inputs(given):
    return {name: given[name] for name in ("tokens", "positions", "mask")}


@pytest.mark.wide(2)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_logits_are_those_of_transformers(family, dtype):
    given = golden(family)
    checkpoint = loaded(family, dtype)
    assert checkpoint.family == family
    got = batch_logits(checkpoint.model, checkpoint.params, given)
    assert got.dtype == dtype
    mask = given["mask"]  # What stands at padding is nobody's business.
    assert relative_error(got[mask], given[dtype][mask]) < BOUNDS[dtype]


@pytest.mark.wide(2)
@pytest.mark.parametrize("family", [family for family in FAMILIES if "experts" in golden(family)])
@pytest.mark.parametrize("dtype", BOUNDS)
def test_experts_are_those_that_transformers_chooses(family, dtype):
    given = golden(family)
    checkpoint, mask = loaded(family, dtype), given["mask"]
    got = batch_experts(checkpoint.model, checkpoint.params, given)
    np.testing.assert_array_equal(got[:, mask], given["experts"][:, mask])
    num_experts = Options(checkpoint.config).integer("num_local_experts", "num_experts")
    assert len(np.unique(got)) == num_experts  # None is idle, so another choice was possible.


@pytest.mark.wide(6)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_change_of_any_parameter_is_seen(family):
    # A parameter read into the wrong place would pass if the comparison did not depend on it.
    given = golden(family)
    checkpoint, mask = loaded(family, "float32"), given["mask"]
    rotary = getattr(checkpoint.model.blocks[0].contextual_layer, "rotary", None)
    leaves, tree = jax.tree.flatten_with_path(checkpoint.params)
    for changed, (path, changed_leaf) in enumerate(leaves):
        # Of stacked layers one at a time.
        stacked = path[0].key.startswith("layers_")
        for layer in range(len(changed_leaf) if stacked else 1):
            row = layer if stacked else ...
            rolled = np.array(changed_leaf)
            rolled[row] = np.roll(rolled[row], 1)
            others = [rolled if i == changed else leaf for i, (_, leaf) in enumerate(leaves)]
            got = batch_logits(checkpoint.model, tree.unflatten(others), given)
            error = relative_error(got[mask], given["float32"][mask])
            name = f"{jax.tree_util.keystr(path)} {row}"
            # The softmax does not see what all keys have in common, unless their positions turn it.
            if rotary is not None or "key_bias" not in name:
                assert error > 10 * BOUNDS["float32"], name


@pytest.mark.parametrize("family", FAMILIES)
def test_saving_writes_the_same_tensors(family, tmp_path):
    checkpoint = load(GOLDEN / family)
    save(
        tmp_path / "saved",
        checkpoint.model,
        checkpoint.params,
        checkpoint.config,
        dtype=jnp.bfloat16,
    )
    theirs, ours = MappedTensors(GOLDEN / family), MappedTensors(tmp_path / "saved")
    assert set(ours.entries) == set(theirs.entries)
    for name in theirs.entries:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


def test_another_option_is_another_model(tmp_path):
    # The comparison can fail: the same weights with another rotary base.
    folder = tmp_path / "llama"
    shutil.copytree(GOLDEN / "llama", folder)
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] *= 2
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint, given = load(folder, dtype=jnp.float32), golden("llama")
    got = batch_logits(checkpoint.model, checkpoint.params, given)
    assert relative_error(got[given["mask"]], given["float32"][given["mask"]]) > 1e-3
