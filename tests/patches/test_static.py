"""Updates for many inputs: exact where they can be, and the same sums whichever way they come."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from icl_jax.patches.dual_ridge import ridge_factors
from icl_jax.patches.low_rank import apply_update, as_matrix
from icl_jax.patches.spectrum import from_matrix
from icl_jax.patches.static import (
    cheap_patch,
    covariance_patch,
    dual_vectors,
    exact_patch,
    merge_sums,
    query_sums,
    reduced_rank,
    relative_weight,
    ridge_patch,
    thought_vector,
)
from icl_jax.patches.token import dual_vector, token_update
from tests.helpers import assert_close, eps, normal, relative_error

WIDTH, HIDDEN = 12, 7


def rows(seed, count, dtype="float64"):
    return normal(seed, count, WIDTH, dtype=dtype), normal(seed + 1, count, HIDDEN, dtype=dtype)


def covariance(seed=9):
    root_DD = normal(seed, WIDTH, 2 * WIDTH)
    return root_DD @ root_DD.T / (2 * WIDTH)


@pytest.mark.parametrize("count", [1, 3, WIDTH - 2, WIDTH])
@pytest.mark.parametrize("metric", [False, True])
def test_one_update_serves_all_its_inputs_exactly(count, metric):
    inputs_KD, changes_KH = rows(0, count, "float32")
    if count == WIDTH:  # As many as there can be: exact as far as the rows are apart.
        sizes_K = jnp.linspace(1, 3, WIDTH, dtype="float32")
        inputs_KD = sizes_K[:, None] * jnp.linalg.qr(inputs_KD)[0]
    covariance_DD = covariance().astype("float32") if metric else None
    update = exact_patch(inputs_KD, changes_KH, covariance_DD=covariance_DD)
    assert update.left_RD.shape == (count, WIDTH)
    got_KH = jax.vmap(apply_update, (0, None))(inputs_KD, update)
    assert relative_error(got_KH, changes_KH) < 1e-5


def test_it_is_the_pseudoinverse_and_for_one_token_the_token_patch():
    inputs_KD, full_KD, kernel_DH = normal(0, 4, WIDTH), normal(1, 4, WIDTH), normal(2, WIDTH, 7)
    update = exact_patch(inputs_KD, (full_KD - inputs_KD) @ kernel_DH)
    want_DH = np.linalg.pinv(inputs_KD) @ np.asarray(full_KD - inputs_KD) @ np.asarray(kernel_DH)
    assert_close(as_matrix(update), want_DH, 60, condition=10)
    # The whole prompt does with the kernel what each of its tokens did with the context.
    assert_close(inputs_KD @ (kernel_DH + want_DH), full_KD @ kernel_DH, 60, condition=10)
    one = exact_patch(inputs_KD[:1], (full_KD - inputs_KD)[:1] @ kernel_DH)
    want = token_update(full_KD[0], inputs_KD[0], kernel_DH)
    assert_close(as_matrix(one), as_matrix(want), 60)
    # Sizes that differ from token to token are no reason to drop one.
    sizes_K1 = 10.0 ** jnp.array([-12.0, 0.0, 5.0, 12.0])[:, None]
    duals_KD = dual_vectors(inputs_KD * sizes_K1)
    assert_close((inputs_KD * sizes_K1 / sizes_K1) @ (duals_KD * sizes_K1).T, jnp.eye(4), 60)


def test_the_dual_in_the_metric_of_ordinary_inputs():
    covariance_DD, input_D = covariance(), normal(3, WIDTH)
    solved_D = np.linalg.solve(covariance_DD, input_D)
    got = dual_vectors(input_D[None], covariance_DD=covariance_DD)[0]
    assert_close(got, solved_D / (input_D @ solved_D), 60, condition=100)
    assert_close(dual_vectors(input_D[None])[0], dual_vector(input_D), 60)
    # Of all solutions it moves ordinary inputs least: v^T S v is smaller than the plain one's.
    plain = dual_vector(input_D)
    assert got @ covariance_DD @ got < plain @ covariance_DD @ plain
    # Ridge: by its formula.
    inputs_KD = normal(4, 3, WIDTH)
    inverse_DD = np.linalg.inv(covariance_DD)
    inner_KK = inputs_KD @ inverse_DD @ inputs_KD.T + 0.3 * np.eye(3)
    want_KD = np.linalg.solve(inner_KK, inputs_KD @ inverse_DD)
    got_KD = dual_vectors(inputs_KD, covariance_DD=covariance_DD, ridge=0.3)
    assert_close(got_KD, want_KD, 60, condition=100)


def test_streamed_ridge_is_the_ridge_of_all_rows_and_of_all_devices():
    inputs_KD, changes_KH = rows(20, 320, "float32")
    wide_KD, wide_KH = np.float64(inputs_KD), np.float64(changes_KH)
    gram_DD = wide_KD.T @ wide_KD
    lam = 0.01 * np.sum(gram_DD**2) / np.trace(gram_DD)
    want_DH = np.linalg.solve(gram_DD + lam * np.eye(WIDTH), wide_KD.T @ wide_KH)

    parts = [query_sums(inputs_KD[i : i + 40], changes_KH[i : i + 40]) for i in range(0, 320, 40)]
    together = functools.reduce(merge_sums, parts)
    assert together.count == 320
    assert relative_error(ridge_patch(together, weight=0.01), want_DH) < 1e-5
    np.testing.assert_allclose(relative_weight(together, 0.01), lam, rtol=1e-5)

    mesh = jax.make_mesh((8,), ("rows",), (AxisType.Explicit,))
    placed = jax.device_put((inputs_KD, changes_KH), jax.NamedSharding(mesh, P("rows")))
    with jax.set_mesh(mesh):
        reduced = jax.jit(
            jax.shard_map(
                lambda z, r: jax.lax.psum(query_sums(z, r), "rows"),
                in_specs=P("rows"),
                out_specs=P(),
            )
        )(*placed)
    assert relative_error(ridge_patch(jax.device_get(reduced), weight=0.01), want_DH) < 1e-5


def test_a_small_ridge_is_the_exact_patch_and_absent_rows_are_never_read():
    inputs_KD, changes_KH = rows(30, 5)
    spoilt = [jnp.concatenate([a, jnp.full((2, a.shape[1]), jnp.nan)]) for a in rows(30, 5)]
    sums = query_sums(*spoilt, present_K=jnp.arange(7) < 5)
    assert sums.count == 5
    want_DH = as_matrix(exact_patch(inputs_KD, changes_KH))
    assert relative_error(ridge_patch(sums, weight=1e-9), want_DH) < 1e-6
    metric = exact_patch(inputs_KD, changes_KH, covariance_DD=covariance())
    got = covariance_patch(sums, covariance(), weight=1e-9)
    assert relative_error(got, as_matrix(metric)) < 1e-6
    assert_close(thought_vector(sums), jnp.mean(changes_KH, axis=0), 10)


def test_the_cheap_patch_is_a_solution_on_average_and_needs_its_factor_d():
    # One linear change M for all inputs: directions that are spread evenly give it back.
    inputs_KD, map_DH = normal(40, 4000, WIDTH), normal(41, WIDTH, HIDDEN)
    sums = query_sums(inputs_KD, inputs_KD @ map_DH)
    errors = {
        "d/n": relative_error(cheap_patch(sums), map_DH),
        "1/n": relative_error(cheap_patch(sums) / WIDTH, map_DH),
    }
    assert errors["d/n"] < 0.1 and errors["1/n"] > 0.9
    by_hand = sum(
        np.outer(z, r) / (z @ z) for z, r in zip(*map(np.asarray, rows(42, 6)), strict=True)
    )
    assert_close(cheap_patch(query_sums(*rows(42, 6))), by_hand * WIDTH / 6, 60)


def test_a_lower_rank_costs_the_singular_values_it_drops():
    inputs_KD, changes_KH = rows(50, 200)
    patch_DH = ridge_patch(query_sums(inputs_KD, changes_KH), weight=1e-3)
    values = np.linalg.svd(patch_DH, compute_uv=False)
    for rank in (1, 3):
        short_DH = as_matrix(from_matrix(patch_DH, rank=rank))
        left = np.linalg.norm(short_DH - patch_DH)
        assert abs(left - np.linalg.norm(values[rank:])) < eps("float64", 60) * values[0]


def test_narrow_rows_are_summed_wide():
    inputs_KD, changes_KH = rows(60, 300, "bfloat16")
    sums = query_sums(inputs_KD, changes_KH)
    assert {leaf.dtype for leaf in jax.tree.leaves(sums)} == {jnp.dtype("float32")}
    wide_KD = np.float64(inputs_KD.astype("float32"))
    assert relative_error(sums.gram_DD, wide_KD.T @ wide_KD) < eps("float32", 300)


def test_what_does_not_fit_is_named():
    inputs_KD, changes_KH = rows(0, WIDTH + 1)
    with pytest.raises(ValueError, match="from 1 to D=12 rows, got 13.*ridge_patch"):
        exact_patch(inputs_KD, changes_KH)
    with pytest.raises(ValueError, match="exact_patch: axis 0 of changes_KH must have 13 entries"):
        exact_patch(inputs_KD, changes_KH[1:])
    with pytest.raises(ValueError, match="ridge_patch: weight must be a finite number above 0"):
        ridge_patch(query_sums(inputs_KD, changes_KH), weight=0.0)
    with pytest.raises(ValueError, match="covariance_patch: the arguments must share one shape"):
        covariance_patch(query_sums(inputs_KD, changes_KH), jnp.eye(3), weight=0.1)
    with pytest.raises(TypeError, match="query_sums: present_K must be a boolean mask"):
        query_sums(inputs_KD, changes_KH, present_K=jnp.ones(WIDTH + 1))


@pytest.mark.wide(5)
@pytest.mark.parametrize("count", [1, 5, 30])
@pytest.mark.parametrize("rank", [None, 2])
def test_ridge_from_rows_is_ridge_from_sums(count, rank):
    inputs_KD, changes_KH = rows(40, count)
    sums = query_sums(inputs_KD, changes_KH)
    for weight in (1e-6, 1e-2, 3.0):
        want = reduced_rank(sums, ridge_patch(sums, weight=weight), rank)
        got = ridge_factors(inputs_KD, changes_KH, weight=weight, rank=rank)
        assert got.left_RD.shape[0] == min(rank or HIDDEN, count, HIDDEN)
        assert relative_error(as_matrix(got), as_matrix(want)) < 1e-8
    spoilt = [jnp.concatenate([a, jnp.full((2, a.shape[1]), jnp.nan)]) for a in rows(40, count)]
    here_K = jnp.arange(count + 2) < count
    padded = ridge_factors(*spoilt, weight=3.0, rank=rank, present_K=here_K)
    assert relative_error(as_matrix(padded), as_matrix(got)) < 1e-8


def test_of_all_updates_of_its_rank_the_reduced_one_serves_the_rows_best():
    inputs_KD, changes_KH = rows(50, 40)
    sums = query_sums(inputs_KD * 10.0 ** jnp.linspace(-2, 2, WIDTH)[None], changes_KH)
    whole_DH = ridge_patch(sums, weight=1e-3)
    ridge = relative_weight(sums, 1e-3)

    def objective(update):
        matrix_DH = as_matrix(update)
        fitted = jnp.sum(matrix_DH * (sums.gram_DD @ matrix_DH - 2 * sums.cross_DH))
        return fitted + ridge * jnp.sum(matrix_DH**2)

    best = objective(reduced_rank(sums, whole_DH, 2))
    assert best < objective(from_matrix(whole_DH, rank=2))
    for seed in range(5):
        left, right = normal(60 + seed, 2, WIDTH), normal(70 + seed, 2, HIDDEN)
        near = reduced_rank(sums, whole_DH, 2)
        moved = type(near)(near.left_RD + 1e-2 * left, near.right_RH + 1e-2 * right)
        assert best < objective(moved)
    with pytest.raises(ValueError, match="rank must be an integer of at least 1, got 0"):
        reduced_rank(sums, whole_DH, 0)
