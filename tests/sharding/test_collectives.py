"""What the devices of a compiled program say to each other: listed, and never a weight."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.sharding import Table, make_mesh, place, specs
from launch import costs
from launch.hlo import Program
from tests.sharding.compiled import GOLDEN, LOWERED, MESH, collectives, program
from tests.sharding.programs import quick, weights

FORBIDDEN = ("all-gather", "all-to-all", "collective-permute", "all-reduce", "reduce-scatter")


def whole_weights(params):
    """The shapes that a divided weight has when it is put together: as stored, and of a layer."""
    mesh = make_mesh(MESH)
    shapes = set()
    for leaf, spec in zip(
        jax.tree.leaves(params),
        jax.tree.leaves(specs(params, mesh), is_leaf=lambda x: isinstance(x, jax.P)),
        strict=True,
    ):
        if not spec:
            continue
        for shape in (leaf.shape, leaf.shape[1:]) if leaf.ndim > 2 else (leaf.shape,):
            sizes = [size for size in shape if size > 1]
            # Products read heads and their features as one axis, in any order of the axes.
            shapes.add(tuple(sorted(sizes)))
            shapes |= {
                tuple(sorted([*sizes[:i], sizes[i] * sizes[i + 1], *sizes[i + 2 :]]))
                for i in range(len(sizes) - 1)
                if leaf.ndim > 3
            }
    return shapes


def put_together(read, params):
    """The messages of a program that have the shape of a whole weight."""
    forbidden = whole_weights(params)
    return [
        str(one)
        for one in costs.collectives(read)
        for shape in one.shapes
        if one.kind in FORBIDDEN and tuple(sorted(n for n in shape.sizes if n > 1)) in forbidden
    ]


@pytest.mark.parametrize("name", quick(LOWERED, "patches", "training", "prefixes", "generate"))
def test_the_messages_are_those_of_the_golden_file(name):
    golden = json.loads(GOLDEN.read_text())
    if golden["jaxlib"].rpartition(".")[0] != jax.lib.__version__.rpartition(".")[0]:
        pytest.skip(f"written with jaxlib {golden['jaxlib']}: another compiler, other messages")
    assert collectives(name) == golden["programs"][name], (
        "Read what has changed, then: python -m tests.sharding.compiled --write"
    )


@pytest.mark.parametrize("name", quick(LOWERED, "patches", "training", "prefixes", "generate"))
def test_no_weight_is_put_together(name):
    assert not put_together(program(name), weights("gated", 2, jnp.float32))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(LOWERED) - {"training"}))
@pytest.mark.parametrize("options", ({"mlp": "experts"}, {"num_kv_heads": 1}), ids=str)
def test_nor_one_of_experts_or_beside_keys_of_one_head(name, options):
    read = program(name, **options)
    params = weights(options.get("mlp", "gated"), options.get("num_kv_heads", 2), jnp.float32)
    assert not put_together(read, params)


def test_a_table_that_divides_otherwise_is_caught():
    # Kernels divided along the axis that products sum over, beside rows that are whole there.
    wrong = Table(width=("data",), hidden=(), heads=(), kv_heads=(), vocabulary=())
    params = weights("gated", 2, jnp.float32)
    mesh = make_mesh(MESH)
    rows = place(jnp.ones((8, 20), jnp.float32), mesh, leading="B")
    kernel = place(params, mesh, table=wrong)["layers_0_0"]["mlp"]["gate"]["kernel"][0]
    with jax.set_mesh(mesh):
        text = jax.jit(jnp.matmul).lower(rows, kernel).compile().as_text()
    assert put_together(Program(text), params)
    assert np.prod(kernel.shape) == 560
