"""Values of the portable implementations against an oracle in NumPy, and what holds of all."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from icl_jax.kernels.attention import Sees, accumulate, attend, merge, rows
from icl_jax.kernels.attention.shapes import filled
from tests.helpers import compiled, eps, normal
from tests.kernels.attention.cases import Case, cases, dynamic, linear_oracle, mask, oracle

DTYPES = {"f64": jnp.float64, "f32": jnp.float32, "bf16": jnp.bfloat16}

#: Each example compiles several programs. The thorough profile looks longer here, too.
few = settings(max_examples=max(settings().max_examples // 2, 1))


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that small cases have many of them."""
    monkeypatch.setattr(rows, "_rows_per_block", lambda query_MAF, *_: min(3, query_MAF.shape[0]))


def run(case, dtype=jnp.float64, **options):
    """``attend`` on a case; ``sees`` is closed over, so that slots in NumPy are known."""
    arrays, given_options = case.arrays(dtype), case.options(dtype)
    function = partial(attend, sees=case.sees, **given_options, **options)
    return compiled(function)(*arrays)


def assert_near(got, want, dtype, length, condition=1.0):
    """Absolutely, since all values are made of standard normal ones; infinite ones are equal."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    error = np.max(np.abs(got[finite] - want[finite]), initial=0.0)
    assert error <= eps(dtype, length, condition=condition), error


@pytest.mark.wide(2)
@pytest.mark.parametrize("implementation", ["reference", "rows"])
@pytest.mark.parametrize("name", DTYPES)
@given(case=cases())
def test_mixed_values_and_log_sum_exp_are_those_of_the_definition(implementation, name, case):
    dtype = DTYPES[name]
    mixed_MAF, log_sum_exp_AM = run(case, dtype, implementation=implementation)
    assert mixed_MAF.dtype == dtype
    assert log_sum_exp_AM.dtype == (jnp.float64 if name == "f64" else jnp.float32)
    want_MAF, want_AM = oracle(case)
    # A score of size s is off by s eps, and a weight by as much of itself; arguments are rounded.
    assert_near(mixed_MAF, want_MAF, dtype, case.columns, condition=10.0)
    assert_near(log_sum_exp_AM, want_AM, dtype, case.features, condition=10.0)


@pytest.mark.parametrize("implementation", ["reference", "rows"])
@given(case=cases(sinks=False))
def test_linear_attention_sums_scores_times_values(implementation, case):
    function = partial(accumulate, sees=case.sees, implementation=implementation)
    got_MAF = compiled(function)(*case.arrays())
    assert_near(got_MAF, linear_oracle(case), jnp.float64, case.columns, condition=30.0)


@few
@given(case=cases())
def test_slots_known_while_tracing_save_work_and_change_nothing(case):
    known = run(case, implementation="rows")
    traced = run(replace(case, sees=dynamic(case.sees)), implementation="rows")
    for got, want in zip(known, traced, strict=True):
        assert_near(got, want, jnp.float64, case.columns)


@few
@given(case=cases())
def test_vmap_is_a_loop(case):
    arrays, options = case.arrays(), case.options()
    function = partial(attend, sees=case.sees, **options, implementation="rows")
    batched = compiled(jax.vmap(function))(*(jnp.stack([a, a[::-1]]) for a in arrays))
    for index, each in enumerate((arrays, tuple(a[::-1] for a in arrays))):
        alone = compiled(function)(*each)
        for got, want in zip(batched, alone, strict=True):
            assert_near(got[index], want, jnp.float64, case.columns)


def test_eager_is_jit():
    case = Case(4, 4, 1, 2, 4, Sees(window=3))
    function = partial(attend, sees=case.sees, implementation="rows")
    for got, want in zip(function(*case.arrays()), run(case, implementation="rows"), strict=True):
        assert_near(got, want, jnp.float64, case.columns)


def test_prompts_of_a_batch_do_not_matter_to_each_other():
    case = Case(9, 9, 1, 2, 4, Sees())
    present_BT = jnp.arange(9)[None, :] < jnp.asarray([9, 4])[:, None]

    def one(query_MAF, key_TGF, value_TGF, present_T):
        sees = Sees(present_T=present_T)
        return attend(query_MAF, key_TGF, value_TGF, sees, implementation="rows")

    batch = compiled(jax.vmap(one))
    arrays = [jnp.stack([array, array + 1]) for array in case.arrays()]
    others = [array.at[1].set(0.5) for array in arrays]
    for got, want in zip(batch(*arrays, present_BT), batch(*others, present_BT), strict=True):
        np.testing.assert_array_equal(got[0], want[0])


def derivatives(function):
    """Of a fixed random function of both results, with respect to queries, keys and values.

    (-inf, the log-sum-exp of an empty row, is left out as a caller leaves it out.)
    """

    def loss(*arrays):
        mixed_MAF, log_sum_exp_AM = function(*arrays)
        finite_AM = jnp.where(
            log_sum_exp_AM > -jnp.inf, log_sum_exp_AM, jnp.zeros_like(log_sum_exp_AM)
        )
        mixed_MAF = mixed_MAF.astype(log_sum_exp_AM.dtype)
        return jnp.sum(jnp.sin(mixed_MAF)) + jnp.sum(jnp.cos(finite_AM))

    return loss


@few
@given(case=cases())
def test_gradients_of_row_blocks_are_those_of_the_definition(case):
    arrays, options = case.arrays(), case.options()
    got, want = (
        compiled(
            jax.grad(
                derivatives(partial(attend, sees=case.sees, **options, implementation=name)),
                argnums=(0, 1, 2),
            )
        )(*arrays)
        for name in ("rows", "reference")
    )
    for got_array, want_array in zip(got, want, strict=True):
        assert np.all(np.isfinite(want_array))
        assert_near(got_array, want_array, jnp.float64, case.columns, condition=30.0)


@pytest.mark.wide(2)
@pytest.mark.parametrize("implementation", ["reference", "rows"])
def test_derivatives_agree_with_finite_differences_in_both_modes_and_second_order(implementation):
    sees = Sees(row_slots_M=np.arange(6, dtype=np.int32) - 1, itself=False, window=4)
    case = Case(6, 5, 1, 2, 3, sees, cap=2.0, sinks=True, slopes=True)
    function = partial(attend, sees=sees, **case.options(), implementation=implementation)
    loss = derivatives(function)
    arrays = case.arrays()
    directions = [normal(10 + index, *array.shape) for index, array in enumerate(arrays)]

    def along(step):
        return loss(*(a + step * d for a, d in zip(arrays, directions, strict=True)))

    step = 1e-4
    points = [compiled(along)(jnp.asarray(index * step)) for index in range(-2, 3)]
    first = (points[0] - 8 * points[1] + 8 * points[3] - points[4]) / (12 * step)
    second = (-points[0] + 16 * points[1] - 30 * points[2] + 16 * points[3] - points[4]) / (
        12 * step**2
    )
    zero = jnp.zeros(())
    # Of fourth order: 1e-16 of truncation, 1e-12 and 1e-8 of rounding.
    np.testing.assert_allclose(compiled(jax.grad(along))(zero), first, rtol=1e-9)
    np.testing.assert_allclose(compiled(jax.jacfwd(along))(zero), second * 0 + first, rtol=1e-9)
    for outer in (jax.grad, jax.jacfwd):
        for inner in (jax.grad, jax.jacfwd):
            np.testing.assert_allclose(compiled(outer(inner(along)))(zero), second, rtol=1e-5)


@pytest.mark.wide(3)
@pytest.mark.parametrize("implementation", ["reference", "rows"])
@pytest.mark.parametrize("name", DTYPES)
def test_rows_that_see_nothing_get_zero_and_finite_derivatives(implementation, name):
    dtype = DTYPES[name]
    present_T = jnp.asarray([False, True, True, True])
    sees = Sees(row_slots_M=np.arange(5, dtype=np.int32) - 1, present_T=present_T, itself=False)
    case = Case(5, 4, 1, 2, 3, sees)
    function = partial(attend, sees=sees, implementation=implementation)
    # Scores above what the exponential can hold, where nothing is seen.
    query_MAF, key_TGF, value_TGF = case.arrays(dtype)
    arrays = (query_MAF.at[:2].multiply(1e3), key_TGF.at[0].multiply(1e3), value_TGF)
    mixed_MAF, log_sum_exp_AM = compiled(function)(*arrays)
    assert not mask(case)[:2].any()
    np.testing.assert_array_equal(mixed_MAF[:2], 0)
    np.testing.assert_array_equal(log_sum_exp_AM[:, :2], -np.inf)
    assert np.all(np.isfinite(log_sum_exp_AM[:, 2:]))
    for gradient in compiled(jax.grad(derivatives(function), argnums=(0, 1, 2)))(*arrays):
        assert np.all(np.isfinite(np.asarray(gradient, np.float64)))


@few
@given(case=cases(sinks=False))
def test_merging_two_sets_of_columns_gives_the_whole(case):
    arrays, options = case.arrays(), case.options()
    present_T = case.sees.present_T
    present_T = jnp.ones(case.columns, bool) if present_T is None else present_T
    first_T = jnp.arange(case.columns) % 3 == 0
    # Without "itself", which would put a row's own column into both.
    sees = replace(case.sees, itself=False)

    def halves(*arrays):
        parts = [
            attend(*arrays, replace(sees, present_T=present_T & half), **options)
            for half in (first_T, ~first_T)
        ]
        return merge(*parts[0], *parts[1])

    whole = partial(attend, sees=replace(sees, present_T=present_T), **options)
    for got, want in zip(compiled(halves)(*arrays), compiled(whole)(*arrays), strict=True):
        assert_near(got, want, jnp.float64, case.columns, condition=10.0)
    got, want = (
        compiled(jax.grad(derivatives(function), argnums=(0, 1, 2)))(*arrays)
        for function in (halves, whole)
    )
    for got_array, want_array in zip(got, want, strict=True):
        assert_near(got_array, want_array, jnp.float64, case.columns, condition=30.0)


def test_slopes_are_differentiated_as_the_definition_is():
    case = Case(9, 9, 2, 2, 4, Sees(window=6), slopes=True)
    slopes_A, arrays = case.options()["slopes_A"], case.arrays()

    def loss(slopes_A, implementation):
        options = {"slopes_A": slopes_A, "implementation": implementation}
        return derivatives(partial(attend, sees=case.sees, **options))(*arrays)

    got_A, want_A = (
        compiled(jax.grad(partial(loss, implementation=name)))(slopes_A)
        for name in ("rows", "reference")
    )
    assert_near(got_A, want_A, jnp.float64, 81)
    step_A = 1e-5 * normal(11, *slopes_A.shape)
    along = [loss(slopes_A + sign * step_A, "reference") for sign in (1, -1)]
    np.testing.assert_allclose(want_A @ step_A, (along[0] - along[1]) / 2, rtol=1e-6)


def test_a_window_is_the_same_as_data():
    case = Case(11, 11, 1, 2, 4, Sees(window=4))
    as_data = replace(case, sees=Sees(reach=jnp.asarray(4, jnp.int32)))
    for name in ("reference", "rows"):
        pairs = zip(run(case, implementation=name), run(as_data, implementation=name), strict=True)
        for got, want in pairs:
            assert_near(got, want, jnp.float64, case.columns)


def test_heads_may_lie_on_different_devices():
    case = Case(10, 10, 8, 2, 4, Sees(window=6))
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    heads, rows_of_heads = jax.P(None, "model"), jax.P("model")
    function = partial(attend, sees=case.sees, implementation="rows")
    sharded = jax.shard_map(
        function, mesh=mesh, in_specs=(heads, heads, heads), out_specs=(heads, rows_of_heads)
    )
    arrays = [
        jax.device_put(array, jax.sharding.NamedSharding(mesh, heads)) for array in case.arrays()
    ]
    got, want = compiled(sharded)(*arrays), run(case, implementation="rows")
    for got_array, want_array in zip(got, want, strict=True):
        assert_near(got_array, want_array, jnp.float64, case.columns)

    def total(function, *arrays):
        return derivatives(function)(*arrays)

    got, want = (
        compiled(jax.grad(partial(total, each), argnums=(0, 1, 2)))(*arrays)
        for each in (sharded, function)
    )
    for got_array, want_array in zip(got, want, strict=True):
        assert_near(got_array, want_array, jnp.float64, case.columns)


def test_causal_rows_are_cut_into_runs_and_windows_into_bands():
    sees = filled(Sees(), 64, 64)
    cut = rows.runs(sees, 64, 64, 4)
    assert [(run.start, run.stop, run.columns) for run in cut] == [
        (0, 16, 16),
        (16, 32, 32),
        (32, 48, 48),
        (48, 64, 64),
    ]
    (band,) = rows.runs(filled(Sees(window=5), 64, 64), 64, 64, 8)
    assert band.columns == 8 + 4
    assert band.starts == (0, 4, 12, 20, 28, 36, 44, 52)
    # Nothing is known of slots that are JAX arrays.
    (whole,) = rows.runs(filled(Sees(jnp.arange(64)), 64, 64), 64, 64, 8)
    assert (whole.columns, set(whole.starts)) == (64, {0})
