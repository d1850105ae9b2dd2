"""The identity z_K (W + dW) = z_S W, and that dW is the shortest matrix with it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.patches.low_rank import as_matrix, frobenius_norm
from icl_jax.patches.token import (
    InputFactor,
    apply_factor,
    conditioning,
    dual_vector,
    input_factor,
    kernel_update,
    token_update,
)
from icl_jax.patches.vectors import inner_product
from tests.helpers import (
    assert_close,
    assert_trees_close,
    compiled,
    eps,
    normal,
    relative_error,
    seeds,
)

widths = st.sampled_from((1, 2, 8))
dtypes = st.sampled_from(("float32", "float64"))


def triple(seed, width=8, hidden=12, dtype="float64"):
    """``z_S``, ``z_K`` and a kernel."""
    return (
        normal(seed, width, dtype=dtype),
        normal(seed + 1, width, dtype=dtype),
        normal(seed + 2, width, hidden, dtype=dtype),
    )


@given(widths, seeds(), dtypes)
def test_the_patched_kernel_gives_without_the_context_what_the_kernel_gives_with_it(
    width, seed, dtype
):
    full_D, kept_D, kernel_DH = triple(seed, width, dtype=dtype)
    patched_DH = kernel_DH + as_matrix(token_update(full_D, kept_D, kernel_DH))
    # The terms that cancel are as long as |z_K| |dW|.
    condition = 1 + float(jnp.linalg.norm(full_D) + jnp.linalg.norm(kept_D)) * float(
        jnp.linalg.norm(kernel_DH) / jnp.linalg.norm(full_D @ kernel_DH)
    )
    assert_close(kept_D @ patched_DH, full_D @ kernel_DH, width, condition=condition)


def test_the_update_is_the_formula_of_the_paper():
    full_D, kept_D, kernel_DH = map(np.asarray, triple(3))
    want = np.outer((full_D - kept_D) @ kernel_DH, kept_D).T / (kept_D @ kept_D)
    assert_close(as_matrix(token_update(*triple(3))), want, 8)
    assert np.linalg.matrix_rank(want) == 1


def test_without_the_patch_the_outputs_differ():
    full_D, kept_D, kernel_DH = triple(3)
    assert relative_error(kept_D @ kernel_DH, full_D @ kernel_DH) > 1e-2


@given(seeds())
def test_no_other_solution_has_a_smaller_norm(seed):
    full_D, kept_D, kernel_DH = triple(seed)
    update_DH = as_matrix(token_update(full_D, kept_D, kernel_DH))
    norm = jnp.linalg.norm(update_DH)
    # Every other solution is dW + N with z_K N = 0; N is random, then projected.
    noise_DH = normal(seed + 3, 8, 12)
    null_DH = noise_DH - jnp.outer(kept_D, kept_D @ noise_DH) / (kept_D @ kept_D)
    for size in (1e-3, 1.0, -1.0):
        other_DH = update_DH + size * null_DH
        error = relative_error(kept_D @ (kernel_DH + other_DH), full_D @ kernel_DH)
        assert error < eps("float64", 8, condition=100)
        assert jnp.linalg.norm(other_DH) > norm
    # Pythagoras: the update is orthogonal to everything that changes nothing.
    assert abs(jnp.sum(update_DH * null_DH)) <= eps("float64", 96) * norm * jnp.linalg.norm(null_DH)


def test_it_is_the_least_squares_solution():
    full_D, kept_D, kernel_DH = map(np.asarray, triple(5))
    want, *_ = np.linalg.lstsq(kept_D[None], ((full_D - kept_D) @ kernel_DH)[None])
    assert_close(as_matrix(token_update(*triple(5))), want, 96)


@given(seeds())
def test_one_factor_serves_every_kernel_and_every_function_after_it(seed):
    full_D, kept_D, gate_DH = triple(seed)
    up_DH, router_DE = normal(seed + 3, 8, 12), normal(seed + 4, 8, 4)
    bias_H = normal(seed + 5, 12)
    factor = input_factor(full_D, kept_D)

    def mlp(input_D, gate_DH, up_DH, router_DE):
        gated_H = jax.nn.silu(input_D @ gate_DH + bias_H) * (input_D @ up_DH)
        return jnp.outer(gated_H, jax.nn.softmax(input_D @ router_DE))

    kernels = (gate_DH, up_DH, router_DE)
    patched = [kernel + as_matrix(kernel_update(factor, kernel)) for kernel in kernels]
    want = mlp(full_D, *kernels)
    assert_close(mlp(kept_D, *patched), want, 32, condition=100)
    assert_close(mlp(apply_factor(kept_D, factor), *kernels), want, 32, condition=100)


@given(seeds())
def test_applying_the_factor_is_multiplying_with_its_matrix(seed):
    full_D, kept_D, _ = triple(seed)
    factor = input_factor(full_D, kept_D)
    matrix_DD = np.eye(8) + np.outer(kept_D, full_D - kept_D) / np.dot(kept_D, kept_D)
    any_D = normal(seed + 7, 8)
    assert_close(apply_factor(any_D, factor), any_D @ matrix_DD, 8, condition=10)
    assert_close(apply_factor(kept_D, factor), full_D, 8, condition=10)


def test_no_change_means_no_update():
    _, kept_D, kernel_DH = triple(0)
    assert frobenius_norm(token_update(kept_D, kept_D, kernel_DH)) == 0
    np.testing.assert_array_equal(apply_factor(kept_D, input_factor(kept_D, kept_D)), kept_D)


def test_a_full_input_of_zero_is_fine():
    _, kept_D, kernel_DH = triple(0)
    update = token_update(jnp.zeros(8), kept_D, kernel_DH)
    result_H = kept_D @ (kernel_DH + as_matrix(update))
    assert np.linalg.norm(result_H) <= eps("float64", 8) * np.linalg.norm(kept_D @ kernel_DH) * 10


@pytest.mark.parametrize("size", (1e-30, 1e-20, 1e20, 1e30))
def test_tiny_and_huge_inputs_neither_underflow_nor_overflow(size):
    # |z|^2 would leave the range of float32 on either side.
    full_D, kept_D, _ = triple(1, dtype="float32")
    full_D, kept_D = full_D * jnp.float32(size), kept_D * jnp.float32(size)
    v_D = dual_vector(kept_D)
    wide_D = np.asarray(kept_D, np.float64)
    assert_close(v_D, (wide_D / np.dot(wide_D, wide_D)).astype(np.float32), 8)
    assert_close(apply_factor(kept_D, input_factor(full_D, kept_D)), full_D, 8, condition=10)
    numbers = conditioning(full_D, kept_D)
    delta_D = np.asarray(full_D, np.float64) - wide_D
    assert_close(numbers.kept_norm, np.float32(np.linalg.norm(wide_D)), 8)
    ratio = np.float32(np.linalg.norm(delta_D) / np.linalg.norm(wide_D))
    assert_close(numbers.relative_change, ratio, 8)


@pytest.mark.parametrize("dtype", ("bfloat16", "float32", "float64"))
def test_conditioning_is_measured_in_float32_or_wider(dtype):
    full_D, kept_D, _ = triple(1, width=300, dtype=dtype)
    numbers = conditioning(full_D, kept_D)
    wide = np.float64 if dtype == "float64" else np.float32
    kept, delta = np.asarray(kept_D, np.float64), np.asarray(full_D - kept_D, np.float64)
    assert_close(numbers.kept_norm, wide(np.linalg.norm(kept)), 300)
    ratio = wide(np.linalg.norm(delta) / np.linalg.norm(kept))
    assert_close(numbers.relative_change, ratio, 300)


def patched_error(full_D, kept_D):
    """What a researcher would measure: the patched input against the full one, in float64."""
    patched_D = np.float64(apply_factor(kept_D, input_factor(full_D, kept_D)))
    return np.linalg.norm(patched_D - np.float64(full_D)) / np.linalg.norm(np.float64(full_D))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("log_size", [-36, -20, 0, 20, 36, 37.5])
def test_conditioning_says_what_the_patch_leaves_whatever_the_size_of_the_input(dtype, log_size):
    full_D, kept_D = (
        (jnp.asarray(normal(seed, 8)) * 10.0**log_size).astype(dtype) for seed in (0, 1)
    )
    error = patched_error(full_D, kept_D)
    residual = float(compiled(conditioning)(full_D, kept_D).residual)
    assert abs(residual - error) <= 0.1 * error + eps("float32", 8)
    if abs(log_size) <= 36:
        assert residual < eps(dtype, 8, condition=4)
    else:  # 1 / |z| is no normal number: nothing is left of the patch, and it is said.
        assert residual > 0.1


def test_conditioning_shows_what_a_long_input_costs_when_it_becomes_short():
    kept_D = normal(1, 8, dtype="float32") * 1e6
    full_D = normal(0, 8, dtype="float32")
    numbers = conditioning(full_D, kept_D)
    error = patched_error(full_D, kept_D)
    assert 1e-3 < error < 1 and abs(float(numbers.residual) - error) < 0.1 * error
    assert conditioning(kept_D, full_D).residual < eps("float32", 8)  # The other way is harmless.
    np.testing.assert_allclose(numbers.relative_change, 1, rtol=1e-5)  # Which this one cannot see.


def test_what_devices_take_for_zero_has_no_patch():
    tiny_D = np.full(8, 1e-40, np.float32)
    with pytest.raises(ValueError, match="has length zero"):
        input_factor(jnp.ones(8, jnp.float32), tiny_D)
    assert not compiled(conditioning)(jnp.ones(8, jnp.float32), tiny_D).residual < 0.1


def test_what_does_not_fit_the_factor_is_named():
    factor = input_factor(normal(0, 8), normal(1, 8))
    with pytest.raises(ValueError, match=r"apply_factor: .* one shape, got input_D: \(7,\)"):
        apply_factor(jnp.ones(7), factor)
    with pytest.raises(ValueError, match="apply_factor: input_D must have 1 axes.*jax.vmap"):
        apply_factor(jnp.ones((2, 8)), factor)
    with pytest.raises(TypeError, match="apply_factor: input_D must be an array, got a list"):
        apply_factor([1.0] * 8, factor)
    with pytest.raises(TypeError, match="dual_vector: input_D must be an array, got a list"):
        dual_vector([1.0, 2.0])


def test_conditioning_reports_a_zero_input():
    numbers = compiled(conditioning)(jnp.ones(3), jnp.zeros(3))
    assert numbers.kept_norm == 0
    assert not np.isfinite(numbers.relative_change)


def test_bfloat16_inputs_are_reproduced_to_bfloat16():
    full_D, kept_D, _ = triple(2, width=500, dtype="bfloat16")
    factor = input_factor(full_D, kept_D)
    assert factor.v_D.dtype == factor.delta_D.dtype == jnp.bfloat16
    # Length 1: the reduction over 500 entries runs in float32, only the factors are rounded.
    assert_close(apply_factor(kept_D, factor), full_D, 1)


def test_the_dual_vector_is_the_shortest_with_product_one():
    kept_D = normal(0, 8)
    v_D = dual_vector(kept_D)
    assert_close(jnp.dot(v_D, kept_D), np.float64(1), 8)
    assert_close(v_D, np.linalg.pinv(np.asarray(kept_D)[:, None])[0], 8)


def test_gradients_flow_through_the_update():
    full_D, kept_D, kernel_DH = triple(4)

    def norm(full_D, kept_D, kernel_DH):
        return frobenius_norm(token_update(full_D, kept_D, kernel_DH))

    def by_hand(full_D, kept_D, kernel_DH):
        right_H = (full_D - kept_D) @ kernel_DH
        return jnp.sqrt(jnp.sum(jnp.square(jnp.outer(kept_D, right_H)))) / jnp.sum(kept_D**2)

    arguments = (full_D, kept_D, kernel_DH)
    got = compiled(jax.grad(norm, argnums=(0, 1, 2)))(*arguments)
    want = compiled(jax.grad(by_hand, argnums=(0, 1, 2)))(*arguments)
    assert_trees_close(got, want, 100, condition=10)


def test_jit_is_eager_and_vmap_is_a_loop():
    full_BD, kept_BD, kernel_DH = normal(0, 5, 8), normal(1, 5, 8), normal(2, 8, 12)
    batched = compiled(jax.vmap(token_update, in_axes=(0, 0, None)))(full_BD, kept_BD, kernel_DH)
    alone = [token_update(full_BD[i], kept_BD[i], kernel_DH) for i in range(5)]
    assert_trees_close(batched, jax.tree.map(lambda *rows: jnp.stack(rows), *alone), 8)


def test_other_prompts_in_the_batch_do_not_matter():
    full_BD, kept_BD = normal(0, 5, 8), normal(1, 5, 8)
    function = compiled(jax.vmap(input_factor))
    first = jax.tree.map(lambda array: array[0], function(full_BD, kept_BD))
    # A zero-length neighbour has no patch of its own and leaves ours alone.
    spoilt = function(full_BD.at[1:].set(7.0), kept_BD.at[1:].set(0.0))
    np.testing.assert_array_equal(first.v_D, spoilt.v_D[0])
    np.testing.assert_array_equal(first.delta_D, spoilt.delta_D[0])
    assert np.all(np.isnan(spoilt.v_D[1:]))


class TestErrors:
    def test_a_zero_input_is_refused_outside_jit(self):
        with pytest.raises(ValueError, match="input_D has length zero.*so it has no patch: keep a"):
            token_update(jnp.ones(3), jnp.zeros(3), jnp.ones((3, 2)))

    def test_a_zero_input_gives_nan_inside_jit(self):
        update = compiled(token_update)(jnp.ones(3), jnp.zeros(3), jnp.ones((3, 2)))
        assert np.all(np.isnan(update.left_RD))

    def test_an_empty_input_is_refused(self):
        with pytest.raises(ValueError, match="is empty"):
            dual_vector(jnp.zeros(0))

    def test_a_batch_is_sent_to_vmap(self):
        with pytest.raises(ValueError, match=r"1 axes \(D\), got 2 axes .*Batches go through jax."):
            input_factor(jnp.ones((4, 3)), jnp.ones((4, 3)))

    def test_integers_are_refused(self):
        with pytest.raises(TypeError, match="must be floating point, got int32"):
            input_factor(jnp.ones(3, jnp.int32), jnp.ones(3, jnp.int32))

    def test_mismatched_shapes_and_dtypes_are_named(self):
        with pytest.raises(ValueError, match=r"full_D: \(3,\), kept_D: \(4,\)"):
            input_factor(jnp.ones(3), jnp.ones(4))
        with pytest.raises(TypeError, match="full_D: float32, kept_D: float64"):
            input_factor(jnp.ones(3, jnp.float32), jnp.ones(3))
        with pytest.raises(TypeError, match="factor: float64, kernel_DH: float32"):
            token_update(jnp.ones(3), jnp.ones(3), jnp.ones((3, 2), jnp.float32))

    def test_a_kernel_of_another_width_or_rank_is_refused(self):
        with pytest.raises(ValueError, match="axis 0 of kernel_DH must have 3 entries"):
            token_update(jnp.ones(3), jnp.ones(3), jnp.ones((4, 2)))
        with pytest.raises(ValueError, match=r"kernel_DH must have 2 axes \(D, H\)"):
            token_update(jnp.ones(3), jnp.ones(3), jnp.ones(3))

    def test_the_error_comes_at_trace_time_under_jit(self):
        with pytest.raises(ValueError, match="axis 0 of kernel_DH"):
            compiled(token_update)(jnp.ones(3), jnp.ones(3), jnp.ones((4, 2)))


class TestOtherPeoplesModels:
    """``z`` and the kernels come from a user's own model; nothing of icl_jax.blocks is used."""

    tokens_TD = normal(11, 5, 8)

    def test_hand_written_jax(self):
        params = {"mix": normal(1, 8, 8), "in": normal(2, 8, 12), "bias": normal(3, 12)}

        def read(params, tokens_TD):
            return jnp.tanh(jnp.mean(tokens_TD, axis=0) @ params["mix"])

        def mlp(params, input_D):
            return jax.nn.gelu(input_D @ params["in"] + params["bias"])

        full_D, kept_D = read(params, self.tokens_TD), read(params, self.tokens_TD[-1:])
        update = token_update(full_D, kept_D, params["in"])
        patched = {**params, "in": params["in"] + as_matrix(update)}
        want = mlp(params, full_D)
        assert_close(mlp(patched, kept_D), want, 8, condition=10)
        assert relative_error(mlp(params, kept_D), want) > 1e-2

    def test_flax_nnx(self):
        class Model(nnx.Module):
            def __init__(self, rngs):
                options = {"param_dtype": jnp.float64, "dtype": jnp.float64, "rngs": rngs}
                self.mix = nnx.Linear(8, 8, **options)
                self.first = nnx.Linear(8, 12, **options)
                self.second = nnx.Linear(12, 8, **options)

            def mlp_input(self, tokens_TD):
                mixed_D = nnx.tanh(self.mix(jnp.mean(tokens_TD, axis=0)))
                return tokens_TD[-1] + mixed_D

            def __call__(self, tokens_TD):
                return self.second(nnx.gelu(self.first(self.mlp_input(tokens_TD))))

        model = Model(nnx.Rngs(0))
        graph, state = nnx.split(model)
        full_D, kept_D = (
            nnx.merge(graph, state).mlp_input(tokens_TD)
            for tokens_TD in (self.tokens_TD, self.tokens_TD[-1:])
        )
        kernel_DH = state["first"]["kernel"][...]
        update = token_update(full_D, kept_D, kernel_DH)
        want = model(self.tokens_TD)
        # The state shares its variables with the model, so the model is read before.
        state["first"]["kernel"][...] = kernel_DH + as_matrix(update)
        assert_close(nnx.merge(graph, state)(self.tokens_TD[-1:]), want, 32, condition=10)
        assert relative_error(Model(nnx.Rngs(0))(self.tokens_TD[-1:]), want) > 1e-2

    def test_equinox(self):
        class Model(eqx.Module):
            cell: eqx.nn.GRUCell
            first: eqx.nn.Linear
            second: eqx.nn.Linear

            def mlp_input(self, tokens_TD):
                state_D = jnp.zeros(8)
                for token_D in tokens_TD:
                    state_D = self.cell(token_D, state_D)
                return state_D

            def __call__(self, tokens_TD):
                return self.second(jax.nn.relu(self.first(self.mlp_input(tokens_TD))))

        key_1, key_2, key_3 = jax.random.split(jax.random.key(0), 3)
        model = Model(
            eqx.nn.GRUCell(8, 8, key=key_1),
            eqx.nn.Linear(8, 12, key=key_2),
            eqx.nn.Linear(12, 8, key=key_3),
        )
        full_D, kept_D = model.mlp_input(self.tokens_TD), model.mlp_input(self.tokens_TD[-1:])
        # Equinox stores (out, in): our kernel is its transpose.
        update = token_update(full_D, kept_D, model.first.weight.T)
        weight_HD = model.first.weight + as_matrix(update).T
        patched = eqx.tree_at(lambda tree: tree.first.weight, model, weight_HD)
        want = model(self.tokens_TD)
        assert_close(patched(self.tokens_TD[-1:]), want, 32, condition=10)
        assert relative_error(model(self.tokens_TD[-1:]), want) > 1e-2


def test_a_factor_is_a_pytree_of_two_vectors():
    factor = input_factor(*triple(0)[:2])
    assert isinstance(factor, InputFactor)
    assert [leaf.shape for leaf in jax.tree.leaves(factor)] == [(8,), (8,)]


def test_no_product_is_joined_with_the_sum_behind_it():
    """A fused multiply-add is another number, and no compiler makes it everywhere."""
    full_D, kept_D = (normal(seed, 640, dtype=jnp.float32) for seed in range(2))
    factor = input_factor(full_D, kept_D)
    token_D = 2.5 * kept_D
    step_D = jax.jit(lambda strength, delta_D: strength * delta_D)(
        inner_product(token_D, factor.v_D), factor.delta_D
    )
    np.testing.assert_array_equal(jax.jit(apply_factor)(token_D, factor), token_D + step_D)
