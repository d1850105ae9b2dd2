"""A product in pieces is the product, in its values and its derivatives, alone and in batches."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.kernels.product import api, few_rows, in_turn, one_row, product
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


@pytest.mark.parametrize(("length", "width"), ((512, 768), (512, 512)))
def test_wide_kernels_are_cut_into_shorter_pieces(length, width):
    x, kernel = normal(1, 2, length), normal(2, length, width)
    assert_close(in_pieces(x, kernel), np.asarray(x) @ np.asarray(kernel), length)
    piece = few_rows.SHORT_PIECE if width > length else few_rows.PIECE
    assert f"[{length // piece},{piece},{width}]" in str(jax.make_jaxpr(in_pieces)(x, kernel))


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


@pytest.mark.parametrize("dtype", ("float16", "bfloat16"))
def test_one_row_is_numpys_product_and_its_derivatives_are_the_plain_ones(dtype):
    x, kernel = operands(1, dtype)
    alone = functools.partial(product, implementation="one_row")
    want = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    for got in (alone(x, kernel), alone(x[0], kernel)[None], jax.jit(alone)(x, kernel)):
        assert got.dtype == dtype and got.shape == want.shape
        assert_close(got, jnp.asarray(want).astype(dtype), WIDTH, condition=4)
    _, got = jax.jvp(alone, (x, kernel), (2 * x, kernel))
    np.testing.assert_array_equal(got, product(2 * x, kernel) + product(x, kernel))
    many = jax.vmap(alone, in_axes=(0, None))(jnp.stack([x, 2 * x]), kernel)
    np.testing.assert_array_equal(many[1], 2 * product(x, kernel))
    assert jax.vmap(alone, in_axes=(0, None))(x[None], kernel).shape == (1, *want.shape)


def test_on_a_gpu_a_row_of_half_precision_is_no_sum_of_rounded_products(monkeypatch):
    shape = jax.ShapeDtypeStruct
    kernel = shape((WIDTH, 24), jnp.bfloat16)
    assert one_row.can(shape((1, WIDTH), jnp.bfloat16), kernel)
    assert not one_row.can(shape((2, WIDTH), jnp.bfloat16), kernel)
    assert not one_row.can(shape((1, WIDTH), jnp.float32), kernel)

    def rows_of_products(rows, width):
        def run(x, kernel):
            done, x = in_turn(jnp.zeros(2), x, width)
            return product(x, kernel), done

        kernel = shape((rows.shape[-1], width), rows.dtype)
        jaxpr = str(jax.make_jaxpr(run)(rows, kernel))
        return jaxpr.count("optimization_barrier"), jaxpr.count("reduce_sum")

    row, wide = shape((1, WIDTH), jnp.bfloat16), few_rows.LARGE // WIDTH
    assert rows_of_products(row, 24) == (0, 0)  # No GPU here.
    monkeypatch.setattr(api.jax, "default_backend", lambda: "gpu")
    assert rows_of_products(row, 24) == (1, 0)  # Behind a barrier, one of two rows.
    assert rows_of_products(row, wide) == (2, 2)  # In turn, and in pieces.
    pair = shape((2, WIDTH), jnp.bfloat16)
    assert rows_of_products(pair, 24) == (0, 0)
    assert rows_of_products(pair, wide) == (1, 4)  # Two rows share the reading.


def test_a_program_made_for_a_gpu_elsewhere_takes_the_gpus_product():
    mesh = mock.Mock(empty=False, abstract_device=mock.Mock(platform="cuda"))
    row, kernel = operands(1, "bfloat16")

    def has_barrier():
        return "optimization_barrier" in str(jax.make_jaxpr(lambda *of: product(*of))(row, kernel))

    assert not has_barrier()
    with mock.patch.object(jax.sharding, "get_abstract_mesh", lambda: mesh):
        assert has_barrier()


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
    with pytest.raises(
        ValueError, match="implementation must be one of 'reference', 'few_rows', 'one_row'"
    ):
        product(x, kernel, implementation="quick")
    with pytest.raises(ValueError, match=r"kernel_DH must have 2 axes \(D, H\)"):
        product(x, kernel[0])
    with pytest.raises(ValueError, match="axis -1 of rows must have .* entries"):
        product(x[:, 1:], kernel)
