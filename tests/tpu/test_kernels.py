"""Attention compiled ahead of time for TPUs: the kernel is taken, and memory is linear.

    pip install icl_jax[tpu]; pytest -m tpu

Each program takes 5 to 30 s on two cores.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.kernels.attention import Sees, attend, explain

pytest.importorskip("libtpu", reason="libtpu is not installed: pip install icl_jax[tpu]")

from tests.tpu import topologies  # noqa: E402

pytestmark = pytest.mark.tpu


@pytest.fixture(params=topologies.SLICES)
def generation(request):
    return request.param


def shapes(mesh, length, dtype, *, columns=None, prompts=None):
    """Queries, keys and values of Llama 3.2 1B's shape: 32 heads, 8 groups, 64 features."""
    batch = () if prompts is None else (prompts,)
    columns = length if columns is None else columns
    sizes = ((length, 32, 64), (columns, 8, 64), (columns, 8, 64))
    return topologies.on_one_chip(
        mesh, *(jax.ShapeDtypeStruct((*batch, *size), dtype) for size in sizes)
    )


def compile_for(mesh, function, arguments):
    with jax.set_mesh(mesh):
        compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.as_text(), compiled.memory_analysis().temp_size_in_bytes


def test_a_program_for_one_chip_takes_the_kernel_in_little_memory(generation):
    mesh = topologies.one_chip(generation)
    arguments = shapes(mesh, 32768, jnp.bfloat16)
    with jax.set_mesh(mesh):
        reasons = explain(*arguments, Sees())
    assert reasons["pallas_tpu"] == "taken"
    text, temporaries = compile_for(mesh, lambda *x: attend(*x, Sees()), arguments)
    assert "tpu_custom_call" in text
    # Queries and results turned once, 64 features in 128 lanes: 2 x 268 MB. The matrix of weights
    # would take 137 GB.
    assert temporaries < 0.7 * 2**30


CASES = {
    "window_cap": (Sees(window=100), {"cap": 30.0}, 1000, 1000),
    "prefixes": (
        Sees(row_slots_M=np.arange(777, dtype=np.int32) - 1, itself=False),
        {},
        777,
        776,
    ),
    "bidirectional": (Sees(causal=False), {}, 600, 600),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=["f32", "bf16"])
def test_odd_sizes_windows_caps_and_prefixes_compile(generation, dtype, case):
    sees, options, rows, columns = CASES[case]
    mesh = topologies.one_chip(generation)
    arguments = shapes(mesh, rows, dtype, columns=columns)
    text, _ = compile_for(mesh, lambda *x: attend(*x, sees, **options), arguments)
    assert "tpu_custom_call" in text


def test_prompts_of_a_batch_with_padding_windows_as_data_and_sinks_compile(generation):
    mesh = topologies.one_chip(generation)
    queries, keys, values = shapes(mesh, 640, jnp.bfloat16, prompts=3)
    present, reach, sinks = topologies.on_one_chip(
        mesh,
        jax.ShapeDtypeStruct((3, 640), bool),
        jax.ShapeDtypeStruct((), jnp.int32),
        jax.ShapeDtypeStruct((32,), jnp.bfloat16),
    )

    def batch(queries, keys, values, present, reach, sinks):
        def one(query, key, value, present):
            return attend(query, key, value, Sees(present_T=present, reach=reach), sinks_A=sinks)

        return jax.vmap(one)(queries, keys, values, present)

    text, _ = compile_for(mesh, batch, (queries, keys, values, present, reach, sinks))
    assert "tpu_custom_call" in text


def test_the_derivative_is_linear_in_memory_too():
    mesh = topologies.one_chip("v5e")
    arguments = shapes(mesh, 32768, jnp.bfloat16)

    def loss(*arrays):
        mixed_MAF, log_sum_exp_AM = attend(*arrays, Sees())
        return jnp.sum(mixed_MAF.astype(jnp.float32)) + jnp.sum(log_sum_exp_AM)

    _, temporaries = compile_for(mesh, jax.grad(loss, argnums=(0, 1, 2)), arguments)
    assert temporaries < 1.5 * 2**30


def test_row_blocks_compile_for_one_chip_where_the_kernel_is_not_wanted():
    mesh = topologies.one_chip("v5e")
    arguments = shapes(mesh, 32768, jnp.bfloat16)
    text, temporaries = compile_for(
        mesh, lambda *x: attend(*x, Sees(), implementation="rows"), arguments
    )
    assert "tpu_custom_call" not in text
    assert temporaries < 1.0 * 2**30
