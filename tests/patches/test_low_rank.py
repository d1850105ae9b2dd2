"""Low-rank algebra against the same algebra on matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.dims import accumulator
from icl_jax.patches import low_rank
from icl_jax.patches.low_rank import (
    LowRank,
    add,
    apply_update,
    as_matrix,
    compose,
    dense_inner,
    frobenius_inner,
    mean,
    outer,
    scale,
    subtract,
)
from icl_jax.patches.spectrum import from_matrix, singular_vectors, truncate
from icl_jax.patches.vectors import inner_product, vector_norm
from tests.helpers import (
    assert_close,
    assert_trees_close,
    compiled,
    eps,
    normal,
    relative_error,
    seeds,
)

frobenius_norm = compiled(low_rank.frobenius_norm)
singular_values = compiled(low_rank.singular_values)

#: Rank, D, H: rank one, more, square, and more terms than either side has dimensions.
SHAPES = ((1, 5, 7), (3, 6, 6), (9, 5, 7))
shapes = st.sampled_from(SHAPES)


def random_update(seed, rank, width_in, width_out, dtype=jnp.float64):
    return LowRank(
        normal(seed, rank, width_in, dtype=dtype), normal(seed + 1, rank, width_out, dtype=dtype)
    )


def matrix(update):
    """The oracle: the sum of outer products, written out in NumPy."""
    left_RD, right_RH = np.asarray(update.left_RD), np.asarray(update.right_RH)
    return sum(np.outer(left, right) for left, right in zip(left_RD, right_RH, strict=True))


@given(shapes, seeds())
def test_every_operation_equals_the_same_operation_on_matrices(shape, seed):
    rank, width_in, width_out = shape
    first = random_update(seed, *shape)
    second = random_update(seed + 2, 2, width_in, width_out)
    input_D, dense_DH = normal(seed + 4, width_in), normal(seed + 5, width_in, width_out)
    first_DH, second_DH = matrix(first), matrix(second)
    length = rank * (width_in + width_out)

    assert_close(as_matrix(first), first_DH, length)
    assert_close(as_matrix(add(first, second, first)), 2 * first_DH + second_DH, length)
    assert_close(as_matrix(subtract(first, second)), first_DH - second_DH, length)
    assert_close(apply_update(input_D, first), input_D @ first_DH, length, condition=4)
    assert_close(frobenius_norm(first), np.linalg.norm(first_DH), length)
    # An inner product may cancel: the error is relative to the product of the lengths.
    scale = np.linalg.norm(first_DH) * np.linalg.norm(second_DH)
    error = abs(frobenius_inner(first, second) - np.sum(first_DH * second_DH))
    assert error <= eps("float64", length) * scale
    scale = np.linalg.norm(first_DH) * np.linalg.norm(dense_DH)
    error = abs(dense_inner(first, dense_DH) - np.sum(first_DH * np.asarray(dense_DH)))
    assert error <= eps("float64", length) * scale


@given(shapes, seeds())
def test_singular_values_are_those_of_the_matrix(shape, seed):
    update = random_update(seed, *shape)
    values = singular_values(update)
    want = np.linalg.svd(matrix(update), compute_uv=False)[: min(shape)]
    assert values.shape == (min(shape),)
    assert np.all(np.diff(values) <= 0)
    assert_close(values, want, sum(shape))


@given(st.sampled_from(((1, 1), (2, 3), (7, 4))), seeds())
def test_compose_multiplies_the_factors_in_the_order_of_their_names(ranks, seed):
    first = random_update(seed, ranks[0], 6, 6)
    second = random_update(seed + 2, ranks[1], 6, 6)
    identity = np.eye(6)
    product = (identity + matrix(second)) @ (identity + matrix(first))
    composed = compose(first, second)
    assert composed.left_RD.shape == (sum(ranks), 6)
    assert_close(as_matrix(composed), product - identity, 6 * sum(ranks))
    other = (identity + matrix(first)) @ (identity + matrix(second))
    assert relative_error(as_matrix(composed), other - identity) > 1e-2


def test_terms_that_cancel_leave_a_norm_of_rounding_size():
    update = random_update(0, 3, 6, 6)
    nothing = subtract(update, update)
    bound = eps("float64", 18) * float(frobenius_norm(update))
    assert frobenius_norm(nothing) <= bound
    assert np.all(singular_values(nothing) <= bound)


def test_a_small_difference_keeps_its_digits():
    # Gram matrices would give |a - b|^2 with an absolute error of eps, hence |a - b| to 1e-8 only.
    left_D, right_H, small_H = normal(0, 6), normal(1, 5), 1e-9 * normal(2, 5)
    difference = subtract(outer(left_D, right_H + small_H), outer(left_D, right_H))
    want = np.linalg.norm(left_D) * np.linalg.norm((right_H + small_H) - right_H)
    assert_close(frobenius_norm(difference), want, 11, condition=1e9)
    assert_close(singular_values(difference)[0], want, 11, condition=1e9)


@given(st.sampled_from(((2, 5, 7), (6, 5, 7))), seeds(), st.sampled_from((1e-2, 1e-5)))
def test_the_norm_of_a_difference_is_accurate_relative_to_its_terms(shape, seed, small):
    # Twice as many rows as terms, half of them all but copies: rounding is no new direction.
    first, step = random_update(seed, *shape, "float32"), random_update(seed + 2, *shape, "float32")
    right_RH = first.right_RH + jnp.float32(small) * step.right_RH
    difference = subtract(LowRank(first.left_RD, right_RH), first)
    wide = matrix(jax.tree.map(lambda array: array.astype(jnp.float64), difference))
    scale = eps("float32", sum(shape)) * np.linalg.norm(matrix(first))
    assert abs(float(frobenius_norm(difference)) - np.linalg.norm(wide)) <= scale
    want = np.linalg.svd(wide, compute_uv=False)
    values = np.asarray(singular_values(difference))
    assert np.all(np.abs(values[: len(want)] - want[: len(values)]) <= scale)


#: Sizes of the three left rows, and of the right ones, whose squares leave the range of float32.
EXTREMES = {
    "short left, long right": ((1e-30,) * 3, (1e30,) * 3),
    "long left, short right": ((1e30,) * 3, (1e-30,) * 3),
    "row by row": ((1e-25, 1.0, 1e25), (1e25, 1.0, 1e-25)),
    "tiny updates": ((1.0,) * 3, (1e-30,) * 3),
    "huge updates": ((1e30,) * 3, (1.0,) * 3),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_norm_and_spectrum_neither_underflow_nor_overflow(name):
    lefts_R1, rights_R1 = (np.float32(sizes)[:, None] for sizes in EXTREMES[name])
    update = random_update(0, 3, 6, 5, "float32")
    update = LowRank(update.left_RD * lefts_R1, update.right_RH * rights_R1)
    want = np.linalg.svd(matrix(jax.tree.map(np.float64, update)), compute_uv=False)[:3]
    assert_close(singular_values(update), np.float32(want), 14)
    assert_close(frobenius_norm(update), np.float32(np.linalg.norm(want)), 14)
    if name in ("short left, long right", "long left, short right", "row by row"):
        # The square of the norm fits here, and so must the inner product.
        assert_close(frobenius_inner(update, update), np.float32(want @ want), 14)


def test_dependent_and_zero_rows_count_once():
    left_D, right_H = normal(0, 6), normal(1, 5)
    lefts_RD = jnp.stack([left_D, jnp.zeros(6), 2 * left_D, -left_D])
    rights_RH = jnp.stack([right_H, right_H, right_H, right_H])
    update = LowRank(lefts_RD, rights_RH)
    want = 2 * np.linalg.norm(left_D) * np.linalg.norm(right_H)
    assert_close(frobenius_norm(update), want, 24)
    values = singular_values(update)
    assert_close(values[0], want, 24)
    assert np.all(values[1:] <= eps("float64", 24) * want)


@pytest.mark.parametrize("rank", (1, 3))
def test_a_nan_is_never_hidden(rank):
    update = random_update(0, rank, 6, 6)
    for broken in (
        LowRank(update.left_RD.at[0, 2].set(jnp.nan), update.right_RH),
        LowRank(update.left_RD, update.right_RH.at[-1, 2].set(jnp.nan)),
    ):
        assert np.isnan(frobenius_norm(broken))
        assert np.all(np.isnan(singular_values(broken)))


def test_an_update_of_zeros_has_norm_and_spectrum_zero():
    for rank in (1, 3):
        update = LowRank(jnp.zeros((rank, 6)), jnp.zeros((rank, 6)))
        assert frobenius_norm(update) == 0
        np.testing.assert_array_equal(singular_values(update), jnp.zeros(rank))


@pytest.mark.parametrize("rank", (1, 4))
def test_the_gradient_of_the_norm_is_that_of_the_matrix_norm(rank):
    update = random_update(3, rank, 6, 5)
    got = compiled(jax.grad(low_rank.frobenius_norm))(update)
    want = compiled(jax.grad(lambda u: jnp.sqrt(jnp.sum(jnp.square(u.left_RD.T @ u.right_RH)))))(
        update
    )
    assert_trees_close(got, want, 30, condition=4)


def test_low_precision_accumulates_in_float32():
    # 4096 products of 1 and then 4096 of 2^-9: summed in bfloat16 the small ones would all be lost.
    ones_D, small_D = jnp.ones(4096, jnp.bfloat16), jnp.full(4096, 2.0**-9, jnp.bfloat16)
    left_D = jnp.concatenate([ones_D, small_D])
    right_D = jnp.ones(8192, jnp.bfloat16)
    assert accumulator(jnp.bfloat16) == jnp.float32
    assert accumulator(jnp.float16) == jnp.float32
    assert accumulator(jnp.float64) == jnp.float64
    total = inner_product(left_D, right_D)
    assert total.dtype == jnp.float32 and total == 4104

    update = outer(left_D, jnp.ones(3, jnp.bfloat16))
    assert dense_inner(update, jnp.ones((8192, 3), jnp.bfloat16)) == 3 * 4104
    assert frobenius_inner(update, outer(right_D, jnp.ones(3, jnp.bfloat16))) == 3 * 4104
    # The result is rounded once, to bfloat16: 4104 lies between 4096 and 4112.
    applied_H = apply_update(right_D, update)
    assert applied_H.dtype == jnp.bfloat16
    np.testing.assert_array_equal(applied_H, jnp.full(3, 4104, jnp.bfloat16))


@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
@pytest.mark.parametrize("rank", (1, 5))
def test_norms_of_low_precision_updates_are_accurate_in_float32(dtype, rank):
    update = random_update(0, rank, 40, 30, dtype)
    wide = jax.tree.map(lambda array: array.astype(jnp.float64), update)
    norm = frobenius_norm(update)
    assert norm.dtype == jnp.float32
    assert_close(norm, np.float32(np.linalg.norm(matrix(wide))), 70)
    assert singular_values(update).dtype == jnp.float32


def test_vmap_is_a_loop():
    batch = LowRank(normal(0, 4, 3, 6), normal(1, 4, 3, 6))
    inputs_BD = normal(2, 4, 6)
    for function in (low_rank.frobenius_norm, low_rank.singular_values, as_matrix):
        together = compiled(jax.vmap(function))(batch)
        alone = [function(jax.tree.map(lambda array, i=i: array[i], batch)) for i in range(4)]
        assert_close(together, jnp.stack(alone), 18)
    together = compiled(jax.vmap(apply_update))(inputs_BD, batch)
    alone = [
        apply_update(inputs_BD[i], jax.tree.map(lambda array, i=i: array[i], batch))
        for i in range(4)
    ]
    assert_close(together, jnp.stack(alone), 18)


def test_jit_is_eager():
    update = random_update(0, 3, 6, 6)
    assert_close(frobenius_norm(update), low_rank.frobenius_norm(update), 18)
    assert_close(singular_values(update), low_rank.singular_values(update), 18)


def test_other_members_of_the_batch_do_not_matter():
    batch = LowRank(normal(0, 4, 3, 6), normal(1, 4, 3, 6))
    spoilt = jax.tree.map(lambda array: array.at[1:].set(jnp.nan), batch)
    norms = compiled(jax.vmap(low_rank.frobenius_norm))
    assert norms(batch)[0] == norms(spoilt)[0]


def test_errors_name_the_function_and_the_shape():
    with pytest.raises(ValueError, match=r"outer: left_D must have 1 axes \(D\), got 2 axes"):
        outer(jnp.ones((2, 3)), jnp.ones(3))
    with pytest.raises(ValueError, match=r"outer: right_H must have 1 axes"):
        outer(jnp.ones(3), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"compose: axis 1 of first.right_RH must have 6 entries"):
        compose(random_update(0, 1, 6, 5), random_update(0, 1, 6, 6))
    with pytest.raises(ValueError, match=r"compose: the updates must be of one kernel"):
        compose(random_update(0, 1, 6, 6), random_update(0, 1, 5, 5))


WIDTHS = (random_update(0, 2, 6, 5), random_update(1, 2, 6, 4))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: add(*WIDTHS), ValueError, r"add: .* one kernel .*got \(6, 5\) and \(6, 4\)"),
        (lambda: subtract(*WIDTHS), ValueError, r"one kernel .*got \(6, 5\) and \(6, 4\)"),
        (lambda: add(), ValueError, "nothing to add"),
        (lambda: frobenius_inner(*WIDTHS), ValueError, r"frobenius_inner: .* one kernel"),
        (
            lambda: frobenius_inner(WIDTHS[0], random_update(0, 1, 6, 5, "float32")),
            TypeError,
            "frobenius_inner: the arguments must share one dtype",
        ),
        (
            lambda: apply_update(jnp.ones(5), WIDTHS[0]),
            ValueError,
            "apply_update: axis 0 of input_D",
        ),
        (
            lambda: apply_update([1.0] * 6, WIDTHS[0]),
            TypeError,
            "input_D must be an array, got a l",
        ),
        (
            lambda: apply_update(jnp.ones((2, 6)), WIDTHS[0]),
            ValueError,
            "Batches go through jax.vm",
        ),
        (
            lambda: apply_update(jnp.ones(6), LowRank(jnp.ones((2, 6)), jnp.ones((3, 5)))),
            ValueError,
            "must have 2 entries .as many as left factors., got 3",
        ),
        (
            lambda: dense_inner(WIDTHS[0], jnp.ones((6, 4))),
            ValueError,
            "axis 1 of matrix_DH must ha",
        ),
        (lambda: mean(WIDTHS[0]), ValueError, r"mean: updates.left_RD must have 3 axes"),
        (
            lambda: truncate(WIDTHS[0], 0),
            ValueError,
            "truncate: rank must be an integer of at least",
        ),
        (lambda: from_matrix(jnp.ones(3)), ValueError, "from_matrix: matrix_DH must have 2 axes"),
    ],
)
def test_what_does_not_fit_together_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@given(shapes, seeds())
def test_scale_and_mean_are_those_of_the_matrices(shape, seed):
    updates = [random_update(seed + 7 * i, *shape) for i in range(3)]
    dense = np.stack([matrix(update) for update in updates])
    assert_close(as_matrix(scale(updates[0], -2.5)), -2.5 * dense[0], sum(shape))
    together = jax.tree.map(lambda *factors: jnp.stack(factors), *updates)
    assert_close(as_matrix(mean(together)), dense.mean(axis=0), 3 * sum(shape), condition=4)
    assert scale(random_update(0, 1, 3, 2, "float32"), jnp.float64(2)).right_RH.dtype == jnp.float32


@given(shapes, seeds())
def test_singular_vectors_are_orthonormal_and_make_the_matrix_again(shape, seed):
    update = random_update(seed, *shape)
    spectrum = singular_vectors(update)
    count = min(shape)
    assert_close(spectrum.values_R, singular_values(update), sum(shape))
    for rows in (spectrum.left_RD, spectrum.right_RH):
        assert_close(rows @ rows.T, jnp.eye(count), 4 * sum(shape))
    again = spectrum.left_RD.T @ (spectrum.values_R[:, None] * spectrum.right_RH)
    assert_close(again, matrix(update), 4 * sum(shape))


@pytest.mark.wide(3)
@pytest.mark.parametrize("dtype", ("bfloat16", "float32", "float64"))
def test_truncation_is_the_nearest_matrix_of_its_rank(dtype):
    update = random_update(3, 6, 9, 7, dtype)
    wide_DH = matrix(jax.tree.map(np.float64, update))
    left, values, right = np.linalg.svd(wide_DH, full_matrices=False)
    for rank in (1, 2, 6, 9):
        short = truncate(update, rank)
        assert short.left_RD.dtype == short.right_RH.dtype == dtype
        assert short.left_RD.shape[0] == min(rank, 6)
        want = (left[:, :rank] * values[:rank]) @ right[:rank]
        got = matrix(jax.tree.map(np.float64, short))
        assert np.linalg.norm(got - want) <= eps(dtype, 40) * values[0]
        other = from_matrix(jnp.asarray(wide_DH, dtype), rank=rank)
        got = matrix(jax.tree.map(np.float64, other))
        # bfloat16 rounds the matrix first, by 2^-9 of every entry, in all of its directions.
        assert np.linalg.norm(got - want) <= eps(dtype, 40, condition=2) * values[0]
    everything = from_matrix(jnp.asarray(wide_DH))
    assert_close(as_matrix(everything), wide_DH, 40)
    assert everything.left_RD.shape == (7, 9)


def test_truncation_of_dependent_factors_finds_what_there_is():
    left_D, right_H = normal(0, 6), normal(1, 5)
    update = LowRank(jnp.stack([left_D, 2 * left_D, 0 * left_D]), jnp.stack([right_H] * 3))
    short = truncate(update, 1)
    assert_close(as_matrix(short), 3 * np.outer(left_D, right_H), 30)
    assert np.all(np.isfinite(singular_vectors(update).left_RD))


@pytest.mark.parametrize("size", [1e-37, 1.0, 1e38, 3e38])
def test_lengths_up_to_the_largest_number_are_no_zeros(size):
    # 1 / 3e38 is subnormal: a quotient by way of it was 0, and so was the length.
    vector = jnp.array([size, 0.0, -size / 4], jnp.float32)
    want = np.linalg.norm(np.asarray(vector, np.float64))
    np.testing.assert_allclose(jax.jit(vector_norm)(vector), want, rtol=3e-7)
    update = LowRank(vector[None], jnp.ones((1, 1), jnp.float32))
    np.testing.assert_allclose(singular_values(update)[0], want, rtol=1e-6)


def test_a_length_that_is_infinite_is_infinite_and_a_nan_spreads():
    assert vector_norm(jnp.array([jnp.inf, 1.0])) == jnp.inf
    assert jnp.isnan(vector_norm(jnp.array([jnp.nan, jnp.inf])))
