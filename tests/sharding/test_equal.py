"""On a mesh of eight devices every program gives what it gives on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.sharding import make_mesh, on_host
from tests.sharding.programs import PROGRAMS, quick, setting

#: float64 and float32: the issue's bounds, of the largest entry of a leaf.
BOUNDS = {jnp.float64: 1e-12, jnp.float32: 1e-5}


@functools.cache
def alone(program, dtype, **options):
    return on_host(PROGRAMS[program](setting(dtype, **options)))


def shared(program, dtype, axes, **options):
    with jax.set_mesh(make_mesh(axes)):
        found = PROGRAMS[program](setting(dtype, **options))
        return found, on_host(found)


def assert_equal(got, want, bound):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for path, leaf in jax.tree_util.tree_leaves_with_path(want):
        other = dict(jax.tree_util.tree_leaves_with_path(got))[path]
        name = jax.tree_util.keystr(path)
        if not np.issubdtype(np.asarray(leaf).dtype, np.floating):
            np.testing.assert_array_equal(other, leaf, err_msg=name)
            continue
        error = np.max(np.abs(np.asarray(other) - leaf)) if np.size(leaf) else 0.0
        # What a factor leaves is a rounding error itself, in units of 1.
        least = 1.0 if name.endswith(".residual") else 1e-3
        assert error <= bound * max(np.max(np.abs(leaf)), least), (name, error)


@pytest.mark.wide(2)
@pytest.mark.parametrize("program", quick(PROGRAMS, "patches", "fleet"))
def test_prompts_and_model_over_eight_devices_change_nothing(program):
    found, got = shared(program, jnp.float64, {"data": 4, "model": 2})
    assert_equal(got, alone(program, jnp.float64), BOUNDS[jnp.float64])


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize(
    "axes",
    ({"data": 8}, {"model": 2}, {"data": 2, "context": 2, "model": 2}, {"context": 8}),
    ids=str,
)
def test_nor_do_other_meshes_in_float32(program, axes):
    _, got = shared(program, jnp.float32, axes)
    assert_equal(got, alone(program, jnp.float32), BOUNDS[jnp.float32])


@pytest.mark.slow
@pytest.mark.parametrize("program", sorted(set(PROGRAMS) - {"training", "fleet"}))
@pytest.mark.parametrize("options", ({"mlp": "experts"}, {"num_kv_heads": 1}), ids=str)
def test_nor_do_experts_or_keys_of_one_head(program, options):
    _, got = shared(program, jnp.float64, {"data": 4, "model": 2}, **options)
    assert_equal(got, alone(program, jnp.float64, **options), BOUNDS[jnp.float64])
