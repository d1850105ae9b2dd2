"""A product in pieces is the product, in its values and its derivatives, alone and in batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.kernels.product import few_rows, product
from tests.helpers import assert_close, normal

WIDTH = 2 * few_rows.PIECE


def operands(rows, dtype="float64"):
    return normal(1, rows, WIDTH, dtype=dtype), normal(2, WIDTH, 24, dtype=dtype)


def in_pieces(rows, kernel_DH):
    return product(rows, kernel_DH, implementation="few_rows")


@pytest.mark.parametrize("dtype", ("float64", "float32", "bfloat16"))
@pytest.mark.parametrize("rows", (1, 2))
def test_it_is_numpys_product(rows, dtype):
    x, kernel = operands(rows, dtype)
    want = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    got = in_pieces(x, kernel)
    assert got.dtype == dtype
    assert_close(got, jnp.asarray(want).astype(dtype), WIDTH, condition=4)
    assert_close(jax.jit(in_pieces)(x, kernel), got, WIDTH)


def test_a_batch_of_few_rows_is_the_plain_product():
    x, kernel = operands(12)
    got = jax.vmap(in_pieces, in_axes=(0, None))(x.reshape(12, 1, WIDTH), kernel)
    np.testing.assert_array_equal(got[:, 0], product(x, kernel, implementation="reference"))
    kernels = jnp.stack([kernel, 2 * kernel])
    both = jax.vmap(in_pieces, in_axes=(None, 0))(x[:1], kernels)
    assert_close(both[1], 2 * in_pieces(x[:1], kernel), WIDTH)
    pairs = jax.vmap(in_pieces)(x[:2].reshape(2, 1, WIDTH), kernels)
    assert_close(pairs[1], 2 * in_pieces(x[1:2], kernel), WIDTH)


def test_derivatives_are_those_of_the_plain_product():
    x, kernel = operands(2)

    def loss(implementation):
        return lambda x, kernel: jnp.sum(jnp.sin(product(x, kernel, implementation=implementation)))

    for got, want in zip(
        jax.grad(loss("few_rows"), (0, 1))(x, kernel),
        jax.grad(loss("reference"), (0, 1))(x, kernel),
        strict=True,
    ):
        assert_close(got, want, WIDTH, condition=10)
    assert_close(jax.jacfwd(in_pieces)(x[:1], kernel), jax.jacrev(in_pieces)(x[:1], kernel), WIDTH)


def test_a_loop_over_stacked_kernels_may_use_it():
    x, kernel = normal(1, 1, WIDTH), normal(2, 3, WIDTH, WIDTH) / WIDTH

    def run(x, step):
        return jax.lax.scan(lambda h, kernel: (jnp.tanh(step(h, kernel)), None), x, kernel)[0]

    assert_close(run(x, in_pieces), run(x, product), 3 * WIDTH)


def test_it_is_for_few_rows_and_large_kernels():
    rows, columns = few_rows.FEW, few_rows.LARGE // WIDTH
    shape = jax.ShapeDtypeStruct
    kernel = shape((WIDTH, columns), jnp.float32)
    assert few_rows.can(shape((rows, WIDTH), jnp.float32), kernel)
    assert not few_rows.can(shape((rows + 1, WIDTH), jnp.float32), kernel)
    assert not few_rows.can(shape((rows, WIDTH), jnp.float32), shape((WIDTH, 8), jnp.float32))
    odd = shape((WIDTH + 1, columns + 1), jnp.float32)
    assert not few_rows.can(shape((1, WIDTH + 1), jnp.float32), odd)


def test_errors_say_what_was_expected():
    x, kernel = operands(1)
    with pytest.raises(ValueError, match="implementation must be one of 'reference', 'few_rows'"):
        product(x, kernel, implementation="quick")
    with pytest.raises(ValueError, match=r"kernel_DH must have 2 axes \(D, H\)"):
        product(x, kernel[0])
    with pytest.raises(ValueError, match="axis -1 of rows must have .* entries"):
        product(x[:, 1:], kernel)
