"""Tasks over devices: placed in equal shares, or refused with what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from icl_jax.sharding import shard_tasks, task_mesh


def test_every_device_has_its_share_and_nothing_else():
    placed = shard_tasks({"inputs": jnp.arange(16.0).reshape(16, 1)}, task_mesh())["inputs"]
    shards = sorted(placed.addressable_shards, key=lambda shard: shard.index[0].start)
    assert len({shard.device for shard in shards}) == 8
    for index, shard in enumerate(shards):
        np.testing.assert_array_equal(shard.data[:, 0], [2 * index, 2 * index + 1])


def test_a_mesh_may_have_fewer_devices():
    placed = shard_tasks(jnp.ones(6), task_mesh(2))
    assert {shard.data.shape for shard in placed.addressable_shards} == {(3,)}
    assert len(placed.sharding.device_set) == 2


def test_what_cannot_be_placed_is_refused():
    with pytest.raises(ValueError, match="num_devices must be from 1 to 8.* got 9"):
        task_mesh(9)
    with pytest.raises(ValueError, match="9 tasks do not divide by the 8 devices.* 8 or 16 tasks"):
        shard_tasks(jnp.ones(9), task_mesh())
    with pytest.raises(ValueError, match="must share a leading axis"):
        shard_tasks({"a": jnp.ones(8), "b": jnp.ones(16)}, task_mesh())
    with pytest.raises(ValueError, match="must share a leading axis"):
        shard_tasks(jnp.ones(()), task_mesh())
    other = jax.make_mesh((8,), ("x",), (AxisType.Auto,))
    with pytest.raises(ValueError, match="must have an axis 'tasks' .*got .'x',."):
        shard_tasks(jnp.ones(8), other)
