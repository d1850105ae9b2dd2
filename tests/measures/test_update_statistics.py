"""Statistics from factors are those of the matrices that are never built."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.measures.subspaces import effective_rank
from icl_jax.measures.update_statistics import (
    update_norms,
    update_statistics,
    update_step_norms,
)
from icl_jax.patches.low_rank import LowRank
from tests.helpers import assert_close, compiled, normal


def updates_of(seed, *leading, width=6, hidden=9, dtype="float64"):
    return LowRank(
        normal(seed, *leading, 1, width, dtype=dtype),
        normal(seed + 1, *leading, 1, hidden, dtype=dtype),
    )


def matrices(updates):
    return np.einsum("...rd,...rh->...dh", *map(np.float64, jax.tree.leaves(updates)))


@pytest.mark.parametrize("leading", [(5,), (3, 4), (2, 3, 4)])
def test_they_are_those_of_the_matrices(leading):
    updates = updates_of(0, *leading)
    dense = matrices(updates)
    found = compiled(update_statistics)(updates)
    norms = np.linalg.norm(dense, axis=(-2, -1))
    assert_close(found.norms, norms, 15)
    steps = np.linalg.norm(np.diff(dense, axis=-3), axis=(-2, -1))
    assert_close(found.step_norms, steps, 30)
    rows = dense.reshape(norms.size, -1) / norms.reshape(-1, 1)
    assert_close(found.cosines_XX, rows @ rows.T, 30)
    want = effective_rank(jnp.linalg.svd(dense.reshape(norms.size, -1), compute_uv=False))
    np.testing.assert_allclose(found.effective_rank, want, rtol=1e-10)


def test_a_small_step_keeps_its_digits_and_no_step_is_zero():
    # Step by inner products: |a|^2 + |b|^2 - 2 a.b of two updates that agree to 1e-6.
    first = updates_of(3, 1)
    small_H = 1e-6 * normal(9, 1, 1, 9)
    right = jnp.concatenate([first.right_RH, first.right_RH + small_H, first.right_RH + small_H])
    updates = LowRank(jnp.tile(first.left_RD, (3, 1, 1)), right)
    moved_H = (first.right_RH + small_H - first.right_RH).ravel()
    want = np.linalg.norm(first.left_RD) * np.linalg.norm(moved_H)
    steps = update_step_norms(updates)
    np.testing.assert_allclose(steps[0], want, rtol=1e-8)
    # Exactly equal updates: what is left is rounding of their size.
    assert steps[1] < 1e-14 * float(update_norms(updates)[0])


def test_nothing_larger_than_what_is_returned_is_built():
    factors = (jax.ShapeDtypeStruct((4, 8, 1, width), jnp.float32) for width in (512, 1024))
    updates = LowRank(*factors)
    program = jax.jit(update_statistics).lower(updates).compile().memory_analysis()
    size = 32 * (512 + 1024) * 4
    assert program.temp_size_in_bytes < 20 * size < 32 * 512 * 1024 * 4 / 2


def test_narrow_updates_are_measured_wide():
    updates = updates_of(0, 40, dtype="bfloat16")
    norms = update_norms(updates)
    assert norms.dtype == jnp.float32
    wide = jax.tree.map(lambda leaf: leaf.astype("float64"), updates)
    assert_close(norms, update_norms(wide).astype("float32"), 15)


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match=r"rank-1 factors .*got \(4, 2, 6\) and \(4, 2, 9\)"):
        update_norms(LowRank(jnp.ones((4, 2, 6)), jnp.ones((4, 2, 9))))
    with pytest.raises(ValueError, match="need a leading axis to step along"):
        update_step_norms(LowRank(jnp.ones((1, 6)), jnp.ones((1, 9))))
