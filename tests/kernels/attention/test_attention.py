"""Values of every portable implementation against an oracle in NumPy."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from icl_jax.kernels.attention import attend, rows
from tests.helpers import compiled, eps
from tests.kernels.attention.cases import cases, oracle

DTYPES = {"f64": jnp.float64, "f32": jnp.float32, "bf16": jnp.bfloat16}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few rows, so that small cases have many of them."""
    monkeypatch.setattr(rows, "_rows_per_block", lambda query_MAF, *_: min(3, query_MAF.shape[0]))


def assert_mixed(got, want, dtype, length, condition=1.0):
    """Relative to what the values are made of, which is standard normal."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    finite = np.isfinite(want)
    np.testing.assert_array_equal(got[~finite], want[~finite])
    error = np.max(np.abs(got[finite] - want[finite]), initial=0.0)
    assert error <= eps(dtype, length, condition=condition), error


@pytest.mark.parametrize("implementation", ["reference", "rows"])
@pytest.mark.parametrize("name", DTYPES)
@given(case=cases())
def test_mixed_values_and_log_sum_exp_are_those_of_the_definition(implementation, name, case):
    dtype = DTYPES[name]
    # Closed over, so that slots in NumPy are known.
    run = partial(attend, sees=case.sees, **case.options(dtype), implementation=implementation)
    mixed_MAF, log_sum_exp_AM = compiled(run)(*case.arrays(dtype))
    assert mixed_MAF.dtype == dtype
    assert log_sum_exp_AM.dtype == (jnp.float64 if name == "f64" else jnp.float32)
    want_MAF, want_AM = oracle(case)
    # A score of size s is off by s eps, and a weight by as much of itself.
    assert_mixed(mixed_MAF, want_MAF, dtype, case.columns, condition=10.0)
    assert_mixed(log_sum_exp_AM, want_AM, dtype, case.features, condition=10.0)
