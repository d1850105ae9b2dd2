"""A kernel on a mesh gives what it gives whole, and each device has its heads and its rows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.kernels.attention import Sees, over_mesh, pallas_tpu, reference
from icl_jax.kernels.attention.shapes import filled
from icl_jax.sharding import make_mesh, mapped_axes
from tests.helpers import normal

#: heads, groups, axes of the mesh, rows, columns, who sees what.
CASES = {
    "groups_divide": (8, 4, {"data": 2, "model": 4}, 12, 12, Sees()),
    "one_group": (4, 1, {"model": 4}, 12, 12, Sees(window=5)),
    "devices_share_a_group": (8, 2, {"model": 8}, 12, 12, Sees()),
    "heads_do_not_divide": (3, 3, {"model": 4}, 8, 8, Sees()),
    "context": (4, 2, {"context": 4, "model": 2}, 16, 16, Sees()),
    "probes_of_a_long_context": (
        4,
        2,
        {"context": 4, "model": 2},
        17,
        16,
        Sees(row_slots_M=np.arange(17, dtype=np.int32) - 1, itself=False),
    ),
    "padding": (4, 2, {"model": 2}, 8, 8, Sees(present_T=np.arange(8) < 6)),
}


def arrays(heads, groups, rows, columns, *lead, dtype=jnp.float64):
    return (
        normal(0, *lead, rows, heads, 8, dtype=dtype),
        normal(1, *lead, columns, groups, 8, dtype=dtype),
        normal(2, *lead, columns, groups, 8, dtype=dtype),
    )


def run(kernel, given, sees, sinks_A=None):
    sees = filled(sees, given[0].shape[0], given[1].shape[0])
    return kernel(*given, sees, cap=None, sinks_A=sinks_A)


@pytest.mark.wide(3)
@pytest.mark.parametrize("case", CASES)
def test_heads_and_rows_over_devices_are_those_of_one(case):
    heads, groups, axes, rows, columns, sees = CASES[case]
    given, sinks_A = arrays(heads, groups, rows, columns), normal(3, heads)
    want = run(reference.attend, given, sees, sinks_A)
    with jax.set_mesh(make_mesh(axes)):
        kernel = over_mesh.by_heads(reference.attend)
        got = jax.jit(functools.partial(run, kernel, sees=sees))(given, sinks_A=sinks_A)
    for one, other in zip(got, want, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-13)


def test_prompts_stay_on_their_devices():
    given = arrays(8, 4, 12, 12, 4)
    want = jax.vmap(lambda *one: run(reference.attend, one, Sees()))(*given)
    with jax.set_mesh(make_mesh({"data": 4, "model": 2})):

        def batch(*given):
            kernel = over_mesh.by_heads(reference.attend)
            one = jax.vmap(
                lambda *one: run(kernel, one, Sees()), spmd_axis_name=mapped_axes("prompts", 4)
            )
            return one(*given)

        spec = jax.NamedSharding(jax.sharding.get_mesh(), jax.P("data", None, "model"))
        compiled = jax.jit(batch, in_shardings=spec).lower(*given).compile()
        assert "all-gather" not in compiled.as_text()
        got = compiled(*(jax.device_put(array, spec) for array in given))
    np.testing.assert_allclose(got[0], want[0], rtol=1e-12, atol=1e-13)


@pytest.mark.slow
@pytest.mark.parametrize("case", ("one_group", "devices_share_a_group", "probes_of_a_long_context"))
def test_so_does_the_kernel_of_tpus(case):
    heads, groups, axes, rows, columns, sees = CASES[case]
    given = arrays(heads, groups, rows, columns, dtype=jnp.float32)
    want = run(reference.attend, given, sees)
    interpreted = functools.partial(pallas_tpu.attend, interpret=True)
    with jax.set_mesh(make_mesh(axes)):
        kernel = over_mesh.by_heads(interpreted)
        got = jax.jit(functools.partial(run, kernel, sees=sees))(given)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
