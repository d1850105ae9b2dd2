"""What no measure and no operation on an update takes: each says so itself, before it computes."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icl_jax
from icl_jax import LowRank
from tests.helpers import normal

KEY = jax.random.key(0)
D, H = 4, 5


def update(rank=2, rank_right=None, dtype=jnp.float32, right_dtype=None, lead=()):
    return LowRank(
        normal(0, *lead, rank, D, dtype=jnp.float32).astype(dtype),
        normal(1, *lead, rank_right or rank, H, dtype=jnp.float32).astype(right_dtype or dtype),
    )


KERNEL = normal(2, D, H, dtype=jnp.float32)

#: Every public function of updates: the axes before the rank, the largest rank that it takes, the
#: call. What is squared, inner or of one kernel is asked with the one update on both sides.
DOORS = {
    "add": ((), 2, lambda u: icl_jax.add(u, u)),
    "apply_update": ((), 2, lambda u: icl_jax.apply_update(jnp.ones(D), u)),
    "as_matrix": ((), 2, icl_jax.as_matrix),
    "compose": ((), 2, lambda u: icl_jax.compose(u, u)),
    "dense_inner": ((), 2, lambda u: icl_jax.dense_inner(u, KERNEL)),
    "frobenius_inner": ((), 2, lambda u: icl_jax.frobenius_inner(u, u)),
    "frobenius_norm": ((), 2, icl_jax.frobenius_norm),
    "mean": ((3,), 2, icl_jax.mean),
    "scale": ((), 2, lambda u: icl_jax.scale(u, 2.0)),
    "singular_values": ((), 2, icl_jax.singular_values),
    "singular_vectors": ((), 2, icl_jax.singular_vectors),
    "subtract": ((), 2, lambda u: icl_jax.subtract(u, u)),
    "truncate": ((), 2, lambda u: icl_jax.truncate(u, 1)),
    "update_norms": ((3,), 1, icl_jax.update_norms),
    "update_statistics": ((3,), 1, icl_jax.update_statistics),
    "update_step_norms": ((3,), 1, icl_jax.update_step_norms),
    "first_factors": ((), 2, lambda u: icl_jax.first_factors(u, 1)),
    "linear_loss": ((), 2, lambda u: icl_jax.linear_loss(u, KERNEL)),
    "alignment": ((3,), 1, icl_jax.alignment),
    "cosine": ((), 2, lambda u: icl_jax.cosine(u, KERNEL)),
    "effective_rank_of_updates": ((3,), 1, icl_jax.effective_rank_of_updates),
    "leading_angles": ((3,), 1, lambda u: icl_jax.leading_angles(u, KERNEL[None], 1)),
    "norm_ratio": ((), 2, lambda u: icl_jax.norm_ratio(u, KERNEL)),
    "random_update": ((), 2, lambda u: icl_jax.random_update(KEY, u)),
}


def test_every_function_of_updates_is_among_them():
    taking = {
        name
        for name in icl_jax.__all__
        if inspect.isfunction(function := getattr(icl_jax, name))
        and any(
            "LowRank" in str(parameter.annotation)
            for parameter in inspect.signature(function).parameters.values()
        )
    }
    assert taking - {"with_adapters"} == set(DOORS)


@pytest.mark.parametrize("name", DOORS)
def test_sides_that_do_not_fit_are_refused(name):
    lead, rank, call = DOORS[name]
    if name != "compose":  # Whose kernels are square.
        call(update(rank, lead=lead))
    with pytest.raises(ValueError, match=f"^({name}|add): "):
        call(update(rank, rank_right=rank + 1, lead=lead))
    with pytest.raises(ValueError, match=f"^({name}|add): "):
        call(update(rank + 1, rank_right=rank, lead=lead))


@pytest.mark.parametrize("name", DOORS)
def test_sides_of_two_dtypes_and_integers_are_refused(name):
    lead, rank, call = DOORS[name]
    with pytest.raises(TypeError, match=rf"({name}|add): .*share one dtype"):
        call(update(rank, right_dtype=jnp.bfloat16, lead=lead))
    with pytest.raises(TypeError, match=rf"({name}|add): .*must be floating point, got int32"):
        call(update(rank, dtype=jnp.int32, lead=lead))


def test_adapters_that_do_not_fit_are_refused():
    params = {"up": {"kernel": jnp.ones((D, H), jnp.float32)}}
    with pytest.raises(ValueError, match="with_adapters: the adapter of up/kernel must be"):
        icl_jax.with_adapters(params, {("up", "kernel"): update(1, rank_right=2)})
    with pytest.raises(ValueError, match="with_adapters: params has no kernel gate/kernel"):
        icl_jax.with_adapters(params, {("gate", "kernel"): update(1)})


def test_the_other_side_is_of_the_same_kernel():
    with pytest.raises(ValueError, match=r"norm_ratio: both must be of one kernel .*\(4, 5\)"):
        icl_jax.norm_ratio(update(), KERNEL.T)
    with pytest.raises(ValueError, match="leading_angles: axis 1 of second must have 4"):
        icl_jax.leading_angles(update(1, lead=(3,)), KERNEL.T[None], 1)
    with pytest.raises(TypeError, match="scale: factor must be a real number, got 'a'"):
        icl_jax.scale(update(), "a")


#: Two arrays of the same kind, of anything that can be compared.
PAIRS = {
    "relative_error": icl_jax.relative_error,
    "squared_error": icl_jax.squared_error,
    "prediction_difference": icl_jax.prediction_difference,
    "kl_divergence": icl_jax.kl_divergence,
    "same_top1": icl_jax.same_top1,
    "total_variation": icl_jax.total_variation,
    "top_k_overlap": lambda first, second: icl_jax.top_k_overlap(first, second, k=1),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize(
    "bad", [np.array([3, 5], np.uint8), np.array([3, 2**30], np.int32), np.array([True, False])]
)
def test_integers_and_booleans_are_no_measurements(name, bad):
    with pytest.raises(TypeError, match=f"{name}: .* must be floating point, got {bad.dtype}"):
        PAIRS[name](jnp.asarray(bad), jnp.asarray(bad))


@pytest.mark.parametrize("name", PAIRS)
def test_lists_are_no_arrays(name):
    with pytest.raises(TypeError, match=f"{name}: .* must be an array, got a list"):
        PAIRS[name]([0.0, 1.0], [1.0, 0.0])


@pytest.mark.parametrize("name", ["kl_divergence", "same_top1", "total_variation", "top_k_overlap"])
@pytest.mark.parametrize("shape", [(), (2, 0)])
def test_logits_have_tokens(name, shape):
    with pytest.raises(ValueError, match=rf"{name}: expected must be logits \(..., V\)"):
        PAIRS[name](jnp.zeros(shape), jnp.zeros(shape))


def test_an_error_relative_to_nothing_is_refused():
    with pytest.raises(ValueError, match=r"relative_error: expected has no entries \(shape \(0,\)"):
        icl_jax.relative_error(jnp.zeros(0), jnp.zeros(0))


@pytest.mark.parametrize("largest", [-jnp.inf, jnp.inf])
def test_a_row_without_a_distribution_agrees_with_nothing(largest):
    row = jnp.array([largest, largest, -jnp.inf])
    assert not icl_jax.same_top1(row, row)
    assert icl_jax.top_k_overlap(row, row, k=2) == 0


#: 300 squared, and sums of it, leave float16, which ends at 65,504.
LARGE = jnp.array([[300.0, 100.0], [100.0, 300.0]], jnp.float16)
GRAM = jnp.full((3, 3), 40_000.0, jnp.float16)


@pytest.mark.parametrize(
    ("got", "want"),
    [
        (lambda: icl_jax.squared_error(LARGE[0], -LARGE[0]), [360_000.0, 40_000.0]),
        (lambda: icl_jax.off_diagonal_mean(GRAM), 40_000.0),
        (lambda: icl_jax.group_shares(GRAM), [1 / 3] * 3),
        (lambda: icl_jax.group_sizes(GRAM), [200.0] * 3),
        (lambda: icl_jax.group_cosines(GRAM), np.ones((3, 3))),
        (lambda: icl_jax.choose_by_update(GRAM, 2)[1], [1.0, 1.0]),
        (lambda: icl_jax.effective_rank(jnp.full(3, 60_000.0, jnp.float16)), 3.0),
    ],
    ids=["squared", "off-diagonal", "shares", "sizes", "cosines", "choice", "effective rank"],
)
def test_sums_of_float16_run_in_float32(got, want):
    found = got()
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, want, rtol=1e-6)


def test_results_that_float16_holds_are_not_lost_on_the_way():
    small = LowRank(jnp.ones((1, 2), jnp.float16), jnp.full((1, 2), 1e-3, jnp.float16))
    np.testing.assert_allclose(icl_jax.scale(small, 1e6).right_RH, 1e3, rtol=1e-3)
    # 90,000 - 90,000 + 1: its terms leave float16, the entry does not.
    cancelling = LowRank(
        jnp.array([[300.0], [300.0], [1.0]], jnp.float16),
        jnp.array([[300.0], [-300.0], [1.0]], jnp.float16),
    )
    assert float(icl_jax.as_matrix(cancelling)[0, 0]) == 1.0
    # 300 * 300 / 300 by two steps, of which the first leaves float16.
    first = LowRank(jnp.full((1, 1), 300.0, jnp.float16), jnp.full((1, 1), 1 / 256, jnp.float16))
    second = LowRank(jnp.full((1, 1), 1.0, jnp.float16), jnp.full((1, 1), 300.0, jnp.float16))
    want = float(first.left_RD[0, 0]) * 300.0 / 256 + 300.0
    np.testing.assert_allclose(icl_jax.compose(first, second).right_RH[1, 0], want, rtol=1e-3)


@pytest.mark.parametrize(
    "call",
    [
        lambda matrix: icl_jax.off_diagonal_mean(matrix),
        lambda matrix: icl_jax.group_shares(matrix),
        lambda matrix: icl_jax.group_sizes(matrix),
        lambda matrix: icl_jax.group_cosines(matrix),
        lambda matrix: icl_jax.choose_by_update(matrix, 1),
    ],
)
def test_matrices_of_products_are_square_and_floating(call):
    with pytest.raises(ValueError, match="axis 1 of .*_XX must have 3 entries"):
        call(jnp.ones((3, 2)))
    with pytest.raises(TypeError, match="must be floating point, got int32"):
        call(jnp.ones((3, 3), jnp.int32))


def test_spectra_are_spectra():
    with pytest.raises(TypeError, match="effective_rank: .* must be floating point"):
        icl_jax.effective_rank(jnp.arange(3))
    with pytest.raises(ValueError, match="effective_rank: singular_values_R has no entries"):
        icl_jax.effective_rank(jnp.zeros(0))
    assert jnp.isnan(icl_jax.effective_rank(jnp.array([2.0, -1.0])))
    assert icl_jax.effective_rank(jnp.array([3e38, 3e38], jnp.float32)) == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"values_B": [1.0, 2.0]}, TypeError, "values_B must be an array, got a list"),
        ({"level": "a"}, ValueError, r"level must lie in \(0, 1\), got 'a'"),
        ({"level": True}, ValueError, r"level must lie in \(0, 1\), got True"),
        ({"num_resamples": 10**12}, ValueError, "num_resamples=1000000000000 of 4 prompts"),
        ({"num_resamples": True}, ValueError, "num_resamples must be an integer"),
    ],
)
def test_a_bootstrap_is_drawn_of_numbers_and_within_memory(change, error, message):
    arguments = {"values_B": jnp.arange(4.0), **change}
    with pytest.raises(error, match=f"bootstrap_mean: {message}"):
        icl_jax.bootstrap_mean(KEY, **arguments)
    values = arguments.pop("values_B")
    if isinstance(values, jax.Array):
        with pytest.raises(error, match=f"compare_with_nulls: {message}"):
            icl_jax.compare_with_nulls(
                KEY, values, {"null": values}, larger_is_closer=True, **arguments
            )


def test_orders_of_players_are_orders():
    worths = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=r"row 1 of orders_SN is no order of 2 players: \[1, 1\]"):
        icl_jax.shapley_values(KEY, np.array([[0, 1], [1, 1]]), worths)
    with pytest.raises(TypeError, match="orders_SN must hold integers"):
        icl_jax.shapley_values(KEY, np.array([[0.0, 1.0]] * 2), worths)
    with pytest.raises(TypeError, match="worths_SM must be floating point"):
        icl_jax.shapley_values(KEY, np.array([[0, 1], [1, 0]]), worths.astype(int))
