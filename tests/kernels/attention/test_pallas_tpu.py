"""The kernel for TPUs, interpreted on a CPU, against the definition: values and derivatives."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.kernels.attention import Sees, pallas_tpu, reference
from icl_jax.kernels.attention.derivative import by_rows
from icl_jax.kernels.attention.shapes import filled
from tests.helpers import compiled, normal
from tests.kernels.attention.cases import Case
from tests.kernels.attention.test_attention import assert_near, derivatives

PREFIXES = Sees(row_slots_M=np.arange(300, dtype=np.int32) - 1, itself=False)

#: More than one block of rows and of columns (a block is cut to 128), and sizes that fill none.
CASES = {
    "whole": Case(300, 300, 2, 2, 16, Sees()),
    "one_row_block": Case(40, 300, 1, 2, 16, Sees(row_slots_M=np.arange(40, dtype=np.int32) + 260)),
    "window_cap": Case(300, 300, 1, 3, 16, Sees(window=70), cap=2.0),
    "window_as_data": Case(200, 200, 1, 2, 16, Sees(reach=jnp.asarray(70, jnp.int32))),
    "prefixes": Case(300, 299, 2, 1, 16, PREFIXES),
    "bidirectional": Case(130, 257, 1, 2, 16, Sees(causal=False, itself=False)),
    "sinks": Case(150, 150, 2, 2, 16, Sees(), sinks=True),
    "padding": Case(200, 200, 1, 2, 16, Sees(present_T=jnp.arange(200) >= 150)),
    "positions": Case(
        200,
        200,
        1,
        1,
        16,
        Sees(
            row_positions_M=jnp.maximum(jnp.arange(200, dtype=jnp.int32) - 60, 0),
            column_positions_T=jnp.maximum(jnp.arange(200, dtype=jnp.int32) - 60, 0),
            window=50,
        ),
    ),
    "nothing_present": Case(130, 130, 1, 1, 16, Sees(present_T=jnp.zeros(130, bool), itself=False)),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(pallas_tpu, "BLOCK", 128)


def kernel(case, dtype):
    """The kernel in interpret mode, with its derivative."""
    forward = partial(pallas_tpu.attend, interpret=True)
    sees, options = filled(case.sees, case.rows, case.columns), case.options(dtype)
    assert options.pop("slopes_A") is None  # It knows none, see ``why_not``.
    return lambda q, k, v: by_rows(forward, q, k, v, sees, platform="tpu", **options)


def definition(case, dtype):
    sees = filled(case.sees, case.rows, case.columns)
    return partial(reference.attend, sees=sees, **case.options(dtype))


@pytest.mark.wide(6)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", CASES)
def test_the_kernel_gives_what_the_definition_gives(name, dtype):
    case = CASES[name]
    arrays = case.arrays(dtype)
    got, want = (compiled(each(case, dtype))(*arrays) for each in (kernel, definition))
    for got_array, want_array in zip(got, want, strict=True):
        assert got_array.dtype == want_array.dtype
        assert_near(got_array, want_array, want_array.dtype, case.features, condition=10.0)


@pytest.mark.wide(4)
@pytest.mark.parametrize("name", ["window_cap", "prefixes", "sinks"])
def test_its_derivatives_are_those_of_the_definition_in_both_modes(name):
    case = CASES[name]
    arrays = case.arrays(jnp.float32)
    tangents = tuple(normal(9 + i, *a.shape, dtype=a.dtype) for i, a in enumerate(arrays))
    reverse, forward = [], []
    for each in (kernel, definition):
        loss = derivatives(each(case, jnp.float32))
        reverse.append(compiled(jax.grad(loss, argnums=(0, 1, 2)))(*arrays))
        forward.append(compiled(partial(jax.jvp, loss))(arrays, tangents)[1])
    for got_array, want_array in zip(*reverse, strict=True):
        assert_near(got_array, want_array, jnp.float32, case.columns, condition=30.0)
    # A sum over all entries of all arguments.
    size = float(sum(np.linalg.norm(gradient) for gradient in reverse[1]))
    assert_near(forward[0] / size, forward[1] / size, jnp.float32, case.columns, condition=30.0)


def test_its_second_derivative_is_that_of_the_definition():
    case = CASES["sinks"]
    arrays = case.arrays(jnp.float32)

    def twice(function):
        loss = derivatives(function)
        return jax.grad(lambda query: jnp.sum(jnp.sin(jax.grad(loss)(query, *arrays[1:]))))

    got, want = (
        compiled(twice(each(case, jnp.float32)))(arrays[0]) for each in (kernel, definition)
    )
    assert_near(got, want, jnp.float32, case.columns, condition=30.0)


def test_a_batch_of_prompts_with_their_own_padding_is_a_loop():
    case = Case(140, 140, 1, 2, 16, Sees())
    arrays = case.arrays(jnp.float32)
    present_BT = jnp.arange(140)[None, :] >= jnp.asarray([0, 130, 17])[:, None]

    def one(present_T):
        padded = replace(case, sees=Sees(present_T=present_T))
        return kernel(padded, jnp.float32)(*arrays)

    got = compiled(jax.vmap(one))(present_BT)
    for index in range(3):
        want = compiled(one)(present_BT[index])
        for got_array, want_array in zip(got, want, strict=True):
            assert_near(got_array[index], want_array, jnp.float32, case.columns)


def test_blocks_that_nobody_sees_are_passed_over():
    case = Case(512, 512, 1, 1, 16, Sees(window=128))
    sees = filled(case.sees, 512, 512)
    places = [jnp.asarray(np.arange(512, dtype=np.int32))] * 2
    live = pallas_tpu._live(sees, places, [*places, jnp.ones(512, jnp.int32)], 128, 128)
    np.testing.assert_array_equal(live, np.tri(4, k=0) * (1 - np.tri(4, k=-2)))
