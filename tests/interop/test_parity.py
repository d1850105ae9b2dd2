"""Every family computes what transformers computes, from transformers' own files."""

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.interop.huggingface import load, save
from icl_jax.interop.registry import families
from icl_jax.interop.safetensors import MappedTensors
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


def batch_logits(model, params, given):
    """Logits of a padded batch (B, T, V)."""

    @jax.jit
    @jax.vmap
    def run(tokens_T, positions_T, present_T):
        return model.apply(
            {"params": params}, tokens_T, positions_T=positions_T, present_T=present_T
        )

    return np.asarray(run(given["tokens"], given["positions"], given["mask"]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_logits_are_those_of_transformers(family, dtype):
    given = golden(family)
    checkpoint = load(GOLDEN / family, dtype=jnp.dtype(dtype))
    assert checkpoint.family == family
    got = batch_logits(checkpoint.model, checkpoint.params, given)
    assert got.dtype == dtype
    mask = given["mask"]  # What stands at padding is nobody's business.
    assert relative_error(got[mask], given[dtype][mask]) < BOUNDS[dtype]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_counts(family):
    # A checkpoint read into the wrong places would pass if the parameter did not matter.
    given = golden(family)
    checkpoint = load(GOLDEN / family, dtype=jnp.float32)
    row = {name: array[:1] for name, array in given.items()}
    leaves, tree = jax.tree.flatten(checkpoint.params)

    def total(leaves):
        found = jax.vmap(
            lambda t, p: checkpoint.model.apply(
                {"params": tree.unflatten(leaves)}, t, positions_T=p
            )
        )(row["tokens"], row["positions"])
        return jnp.sum(found * found)

    gradients = jax.jit(jax.grad(total))(leaves)
    paths = [
        jax.tree_util.keystr(path) for path, _ in jax.tree.flatten_with_path(checkpoint.params)[0]
    ]
    for path, gradient in zip(paths, gradients, strict=True):
        if not path.endswith("['key_bias']"):  # The softmax takes what all keys have in common.
            assert np.any(gradient), path


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
