"""Rows by group against a loop over rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.grouped import group_rows, grouped_map
from tests.helpers import compiled, normal, relative_error


def groups(seed, count, num_groups):
    return jax.random.randint(jax.random.key(seed), (count,), 0, num_groups, jnp.int32)


# One row, fewer rows than groups, many, an uneven share, and all in one group.
CASES = [(0, 1, 8), (1, 5, 8), (2, 40, 8), (3, 41, 3), (4, 7, 1)]


def product(rows_ND, kernels_GDF, groups_N):
    blocks = group_rows(groups_N, kernels_GDF.shape[0])
    return grouped_map(jnp.matmul, rows_ND, kernels_GDF, blocks)


@pytest.mark.parametrize("seed, count, num_groups", CASES)
def test_every_row_meets_the_kernel_of_its_group(seed, count, num_groups):
    rows_ND, kernels_GDF = normal(seed, count, 4), normal(seed + 10, num_groups, 4, 3)
    groups_N = groups(seed, count, num_groups)
    want = [row_D @ kernels_GDF[g] for row_D, g in zip(rows_ND, np.asarray(groups_N), strict=True)]
    assert relative_error(compiled(product)(rows_ND, kernels_GDF, groups_N), want) < 1e-14


@pytest.mark.parametrize("falls", ("all in one", "all apart", "at random"))
def test_there_are_blocks_enough_however_the_rows_fall(falls):
    count, num_groups = 24, 8
    groups_N = {
        "all in one": jnp.full(count, 5, jnp.int32),
        "all apart": jnp.arange(count, dtype=jnp.int32) % num_groups,
        "at random": groups(0, count, num_groups),
    }[falls]
    blocks = compiled(group_rows, static_argnums=1)(groups_N, num_groups)
    assert blocks.rows_PB.size <= 2 * count
    places_N = np.asarray(blocks.places_N)
    assert len(set(places_N)) == count and places_N.max() < blocks.rows_PB.size
    np.testing.assert_array_equal(blocks.rows_PB.ravel()[places_N], np.arange(count))
    mine_N = np.asarray(blocks.groups_P)[places_N // blocks.rows_PB.shape[1]]
    np.testing.assert_array_equal(mine_N, groups_N)


def test_vmap_is_a_loop():
    rows_XND, kernels_GDF = normal(0, 3, 9, 4), normal(1, 4, 4, 3)
    groups_XN = groups(2, 27, 4).reshape(3, 9)
    batch = jax.jit(jax.vmap(product, in_axes=(0, None, 0)))(rows_XND, kernels_GDF, groups_XN)
    for index in range(3):
        want = product(rows_XND[index], kernels_GDF, groups_XN[index])
        np.testing.assert_allclose(batch[index], want, rtol=1e-13)


def test_gradients_are_those_of_the_loop():
    rows_ND, kernels_GDF, groups_N = normal(0, 9, 4), normal(1, 4, 4, 3), groups(2, 9, 4)

    def by_groups(rows_ND, kernels_GDF):
        return jnp.sum(product(rows_ND, kernels_GDF, groups_N) ** 2)

    def by_rows(rows_ND, kernels_GDF):
        return jnp.sum(jnp.einsum("nd,ndf->nf", rows_ND, kernels_GDF[groups_N]) ** 2)

    found, want = (
        jax.jit(jax.grad(f, argnums=(0, 1)))(rows_ND, kernels_GDF) for f in (by_groups, by_rows)
    )
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
