"""Devices: each one reads and holds its part of a parameter, and the model is the same."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from icl_jax.interop import placement
from icl_jax.interop.assemble import flatten, unflatten
from icl_jax.interop.huggingface import load
from icl_jax.interop.safetensors import MappedTensors
from icl_jax.sharding import make_mesh, specs
from tests.helpers import relative_error
from tests.interop.test_family_options import GOLDEN

# conftest.py asks for eight, unless XLA_FLAGS asks for something else.
pytestmark = pytest.mark.skipif(
    len(jax.devices()) < 8, reason="needs XLA_FLAGS=--xla_force_host_platform_device_count=8"
)
TOKENS = np.random.default_rng(3).integers(0, 96, 12).astype(np.int32)


def mesh_of(*sizes):
    """A mesh of axes x, y, ... whose types are automatic."""
    devices = np.array(jax.devices()[: math.prod(sizes)])
    return Mesh(devices.reshape(sizes), tuple("xyz"[: len(sizes)]))


def alternating(path):
    """A spec for llama over a mesh (x, y): kernels over both, the embedding over y, copies."""
    if path[-1] == "kernel":
        return P(None, "y", "x")  # The first axis is that of the layers.
    return P(None, "y") if path == ("embedding",) else None


@functools.cache
def golden(family):
    return load(GOLDEN / family, dtype=jnp.float32)


def logits(checkpoint):
    return np.asarray(jax.jit(checkpoint.model.apply)({"params": checkpoint.params}, TOKENS))


def assert_same_as_on_one_device(checkpoint, family):
    jax.tree.map(np.testing.assert_array_equal, checkpoint.params, golden(family).params)
    assert relative_error(logits(checkpoint), logits(golden(family))) < 1e-5


@pytest.mark.parametrize("family", ("gpt2", "llama", "mixtral"))
def test_by_default_every_device_has_its_part_by_the_table(family):
    mesh = make_mesh({"model": 4})
    checkpoint = load(GOLDEN / family, dtype=jnp.float32, mesh=mesh)
    wanted = flatten(specs(checkpoint.params, mesh))
    divided = 0
    for path, leaf in flatten(checkpoint.params).items():
        assert leaf.sharding == NamedSharding(mesh, wanted[path]), path
        divided += leaf.size * (wanted[path] != P())
    # Keys, values, norms and positions are whole: most of the numbers are not.
    assert divided > 0.5 * sum(leaf.size for leaf in jax.tree.leaves(checkpoint.params))
    assert_same_as_on_one_device(checkpoint, family)


def test_a_mesh_that_is_set_is_loaded_onto():
    with jax.set_mesh(make_mesh({"model": 4})):
        params = load(GOLDEN / "llama").params
    assert len(params["embedding"].devices()) == 4
    with jax.set_mesh(mesh_of(8)):  # Somebody else's.
        assert len(load(GOLDEN / "llama").params["embedding"].devices()) == 1


def test_a_mesh_whose_axes_the_table_does_not_know_is_refused():
    with pytest.raises(
        ValueError, match=r"^load: the mesh has the axes \('x',\), .*'model', or give"
    ):
        load(GOLDEN / "llama", mesh=mesh_of(8))


def test_no_device_reads_more_than_its_part(monkeypatch):
    regions = []
    original = placement.region

    def recorded(parts, names, tensors, slices, dtype):
        found = original(parts, names, tensors, slices, dtype)
        regions.append(found.size)
        return found

    monkeypatch.setattr(placement, "region", recorded)
    params = load(GOLDEN / "mixtral", mesh=make_mesh({"model": 4})).params
    parts = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(params)]
    assert sorted(set(regions)) == sorted({math.prod(part) for part in parts})
    assert max(regions) < max(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("given", ("function", "tree"))
def test_given_shardings_are_used(given):
    mesh = mesh_of(4, 2)
    paths = flatten(golden("llama").params)
    tree = unflatten({path: alternating(path) for path in paths})
    shardings = alternating if given == "function" else tree
    checkpoint = load(GOLDEN / "llama", dtype=jnp.float32, mesh=mesh, shardings=shardings)
    for path, leaf in flatten(checkpoint.params).items():
        assert leaf.sharding == NamedSharding(mesh, alternating(path) or P())
    parts = {
        "embedding": (96, 16),
        "layers_0_0/mlp/gate/kernel": (3, 16, 12),
        "layers_0_0/norm_1/scale": (3, 32),
    }
    for name, shape in parts.items():
        leaf = flatten(checkpoint.params)[tuple(name.split("/"))]
        assert {shard.data.shape for shard in leaf.addressable_shards} == {shape}
    assert_same_as_on_one_device(checkpoint, "llama")


def test_a_parameter_may_have_a_sharding_of_its_own():
    alone = SingleDeviceSharding(jax.devices()[5])
    params = load(GOLDEN / "llama", mesh=mesh_of(8), shardings=lambda path: alone).params
    assert params["embedding"].devices() == {jax.devices()[5]}


def test_the_mesh_that_jax_makes_will_do():
    # Its axes are explicit, and the model names no shardings.
    checkpoint = load(GOLDEN / "llama", dtype=jnp.float32, mesh=jax.make_mesh((2,), ("model",)))
    assert_same_as_on_one_device(checkpoint, "llama")


def test_without_a_mesh_everything_is_on_the_default_device():
    with jax.default_device(jax.devices()[3]):
        params = load(GOLDEN / "llama").params
    assert {device for leaf in jax.tree.leaves(params) for device in leaf.devices()} == {
        jax.devices()[3]
    }


#: What is given as shardings, and what the message says of it.
REFUSED = {
    "an axis that the mesh has not": (
        lambda path: P("model") if "mlp" in path else None,
        r"layers_0_0/\S+ of shape \(.*\) cannot be sharded as P\('model',\): .*model.*not found in "
        r"mesh.*Give a PartitionSpec that fits the mesh \{'x': 4, 'y': 2\}, or None",
    ),
    "an axis twice": (
        lambda path: P("x", "x") if path == ("embedding",) else None,
        r"embedding of shape \(96, 32\) cannot be sharded as P\('x', 'x'\): .*duplicate.*Give a P",
    ),
    "more axes than the parameter": (
        lambda path: P(None, None, "x") if path[-1] == "scale" else None,
        r"norm_\w+/scale of shape \(3, 32\) cannot be sharded as P\(None, None, 'x'\): 3 axes are",
    ),
    "a shape that does not divide": (
        lambda path: P(None, None, ("x", "y")) if path[-1] == "query" else None,
        r"query of shape \(3, 32, 4, 8\) cannot be sharded as P\(None, None, \('x', 'y'\)\): "
        ".*size is 4",
    ),
    "text": (lambda path: "x", "the sharding of .* must be a PartitionSpec, got 'x'"),
    "one for all": (P("x"), r"must be a function.* got P\('x',\). For one of all, give lambda"),
    "a tree without most": (
        {"embedding": P(), "tail": P()},
        r"must be a tree like the parameters; only one of the two has "
        "head_kernel, layers_0_0/.*, norm_final/scale, tail. A function",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_shardings_that_do_not_fit_are_refused_before_anything_is_read(name, monkeypatch):
    def never(self, name):
        raise AssertionError(f"{name} was read")

    monkeypatch.setattr(MappedTensors, "__getitem__", never)
    shardings, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"^load: .*{message}"):
        load(GOLDEN / "llama", mesh=mesh_of(4, 2), shardings=shardings)


def test_shardings_without_a_mesh_are_refused():
    with pytest.raises(ValueError, match="shardings need a mesh to lie on, got mesh = None. Give"):
        load(GOLDEN / "llama", shardings=alternating)
