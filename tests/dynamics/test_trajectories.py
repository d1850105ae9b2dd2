"""The two trajectories: gradient descent from one anchor, and peeling the context off."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given

from icl_jax.blocks.block import Block
from icl_jax.dynamics import anchored, peel_off
from icl_jax.dynamics.anchored import linear_loss
from icl_jax.dynamics.peel_off import first_factors
from icl_jax.dynamics.prefixes import prefix_pass, suffix_midpoints
from icl_jax.patches.low_rank import (
    LowRank,
    as_matrix,
    frobenius_norm,
    singular_values,
)
from icl_jax.patches.token import input_factor
from icl_jax.stack.layers import stack_layers
from tests.helpers import (
    LAYERS,
    MLPS,
    assert_close,
    assert_trees_close,
    compiled,
    eps,
    make_model,
    normal,
    relative_error,
    seeds,
)

anchored_trajectory = compiled(anchored.anchored_trajectory)
peel_off_trajectory = compiled(peel_off.peel_off_trajectory)

STEPS, WIDTH, HIDDEN = 4, 8, 12


def inputs(seed):
    """``a_0..a_N`` well away from zero, and a kernel."""
    return normal(seed, STEPS + 1, WIDTH), normal(seed + 1, WIDTH, HIDDEN)


def point(updates, index):
    """One of a batch of low-rank updates, as a matrix."""
    return as_matrix(one(updates, index))


def one(updates, index):
    return jax.tree.map(lambda factors: factors[index], updates)


def condition(inputs_MD):
    """How much longer the steps are than the anchor."""
    norms_M = np.linalg.norm(inputs_MD, axis=-1)
    return float(1 + 2 * norms_M.max() / norms_M.min())


class TestAnchored:
    @given(seeds())
    def test_the_anchor_does_with_each_weight_what_the_prefix_does_with_the_first(self, seed):
        inputs_MD, kernel_DH = inputs(seed)
        trajectory = anchored_trajectory(inputs_MD, kernel_DH)
        for i in range(STEPS + 1):
            weight_DH = kernel_DH + point(trajectory.points, i)
            want_H = inputs_MD[i] @ kernel_DH
            assert_close(
                inputs_MD[0] @ weight_DH, want_H, WIDTH, condition=10 * condition(inputs_MD)
            )
        assert frobenius_norm(one(trajectory.points, 0)) == 0

    @given(seeds())
    def test_every_step_is_a_step_against_the_gradient(self, seed):
        inputs_MD, kernel_DH = inputs(seed)
        trajectory = anchored_trajectory(inputs_MD, kernel_DH)
        assert_close(trajectory.step_size, 1 / jnp.sum(inputs_MD[0] ** 2), WIDTH)
        for i in range(STEPS):
            weight_DH = kernel_DH + point(trajectory.points, i)
            next_DH = kernel_DH + point(trajectory.points, i + 1)
            gradient_DH = point(trajectory.gradients, i)
            want_DH = np.outer(inputs_MD[0], (inputs_MD[i] - inputs_MD[i + 1]) @ kernel_DH)
            assert_close(gradient_DH, want_DH, WIDTH, condition=10)
            moved_DH = weight_DH - trajectory.step_size * gradient_DH
            assert_close(moved_DH, next_DH, WIDTH, condition=10 * condition(inputs_MD))
            stepped_DH = weight_DH + point(trajectory.steps, i)
            assert_close(stepped_DH, next_DH, WIDTH, condition=10 * condition(inputs_MD))
            # Norms, against matrices.
            norm = jnp.linalg.norm(point(trajectory.steps, i))
            assert_close(trajectory.step_norms_S[i], norm, WIDTH * HIDDEN)
            loss = jnp.sum(gradient_DH * weight_DH)
            scale = jnp.linalg.norm(gradient_DH) * jnp.linalg.norm(weight_DH)
            bound = eps("float64", WIDTH * HIDDEN, condition=condition(inputs_MD))
            assert abs(trajectory.losses_S[i] - loss) <= bound * scale
            assert abs(linear_loss(one(trajectory.gradients, i), weight_DH) - loss) <= bound * scale

    def test_the_gradient_of_the_linear_loss_is_the_gradient_everywhere(self):
        inputs_MD, kernel_DH = inputs(3)
        trajectory = anchored_trajectory(inputs_MD, kernel_DH)
        gradient = jax.grad(linear_loss, argnums=1)
        for i in range(STEPS):
            factors = one(trajectory.gradients, i)
            for weight_DH in (kernel_DH, normal(9, WIDTH, HIDDEN)):
                assert_close(gradient(factors, weight_DH), as_matrix(factors), WIDTH)

    def test_plain_sgd_on_the_losses_walks_through_the_same_weights(self):
        inputs_MD, kernel_DH = inputs(4)
        trajectory = anchored_trajectory(inputs_MD, kernel_DH)
        optimizer = optax.sgd(trajectory.step_size)
        weight_DH, state = kernel_DH, optimizer.init(kernel_DH)
        for i in range(STEPS):
            assert_close(
                trajectory.losses_S[i],
                linear_loss(one(trajectory.gradients, i), weight_DH),
                WIDTH * HIDDEN,
                condition=100,
            )
            gradient_DH = jax.grad(linear_loss, argnums=1)(one(trajectory.gradients, i), weight_DH)
            update_DH, state = optimizer.update(gradient_DH, state)
            weight_DH = optax.apply_updates(weight_DH, update_DH)
            want_DH = kernel_DH + point(trajectory.points, i + 1)
            assert_close(weight_DH, want_DH, WIDTH, condition=10 * condition(inputs_MD))

    def test_every_update_and_step_has_rank_one(self):
        inputs_MD, kernel_DH = inputs(5)
        trajectory = anchored_trajectory(inputs_MD, kernel_DH)
        for updates in (trajectory.points, trajectory.steps, trajectory.gradients):
            assert updates.left_RD.shape[1] == updates.right_RH.shape[1] == 1
        assert np.linalg.matrix_rank(point(trajectory.points, STEPS)) == 1

    def test_a_token_that_changes_nothing_is_no_step(self):
        inputs_MD, kernel_DH = inputs(6)
        still_MD = inputs_MD.at[2].set(inputs_MD[1])
        trajectory = anchored_trajectory(still_MD, kernel_DH)
        assert trajectory.step_norms_S[1] == 0 and trajectory.losses_S[1] == 0

    def test_small_steps_keep_their_digits(self):
        inputs_MD, kernel_DH = inputs(7)
        # A step of 1e-10: exact, because the difference is taken before the product.
        inputs_MD = inputs_MD.at[2].set(inputs_MD[1] + 1e-10 * normal(8, WIDTH))
        trajectory = anchored_trajectory(inputs_MD, kernel_DH)
        move_D = np.asarray(inputs_MD[2] - inputs_MD[1])
        want = np.linalg.norm(move_D @ kernel_DH) / np.linalg.norm(inputs_MD[0])
        assert_close(trajectory.step_norms_S[1], want, WIDTH * HIDDEN)

    def test_low_precision_reports_in_float32(self):
        inputs_MD, kernel_DH = (array.astype(jnp.bfloat16) for array in inputs(8))
        trajectory = anchored_trajectory(inputs_MD, kernel_DH)
        assert trajectory.points.left_RD.dtype == jnp.bfloat16
        for numbers in (trajectory.step_size, trajectory.losses_S, trajectory.step_norms_S):
            assert numbers.dtype == jnp.float32

    def test_errors_name_what_is_wrong(self):
        inputs_MD, kernel_DH = inputs(0)
        call = anchored.anchored_trajectory
        with pytest.raises(ValueError, match="must hold a_0 and at least one a_i, got 1 row"):
            call(inputs_MD[:1], kernel_DH)
        with pytest.raises(ValueError, match=r"inputs_MD must have 2 axes \(M, D\)"):
            call(inputs_MD[0], kernel_DH)
        with pytest.raises(ValueError, match="axis 0 of kernel_DH must have 8 entries"):
            call(inputs_MD, kernel_DH[:-1])
        with pytest.raises(TypeError, match="inputs_MD: float64, kernel_DH: float32"):
            call(inputs_MD, kernel_DH.astype(jnp.float32))
        with pytest.raises(ValueError, match="has length zero"):
            call(inputs_MD.at[0].set(0.0), kernel_DH)


class TestPeelOff:
    @given(seeds())
    def test_the_update_is_the_product_of_its_factors(self, seed):
        inputs_MD, kernel_DH = inputs(seed)
        trajectory = peel_off_trajectory(inputs_MD, kernel_DH)
        weight_DH, length = np.asarray(kernel_DH), 1.0
        for i in range(STEPS):
            factor = input_factor(inputs_MD[i], inputs_MD[i + 1])
            matrix_DD = np.eye(WIDTH) + np.outer(factor.v_D, factor.delta_D)
            before_DH, weight_DH = weight_DH, matrix_DD @ weight_DH
            length *= float(np.linalg.norm(matrix_DD, 2))
            # Not only the end: every point of the trajectory, and what is kept along it.
            got_DH = kernel_DH + as_matrix(first_factors(trajectory.final, i + 1))
            assert_close(got_DH, weight_DH, STEPS * WIDTH, condition=length)
            scale = length * float(jnp.linalg.norm(kernel_DH) * jnp.linalg.norm(inputs_MD[i + 1]))
            error = np.linalg.norm(inputs_MD[i + 1] @ got_DH - inputs_MD[0] @ kernel_DH)
            assert error <= eps("float64", STEPS * WIDTH) * scale
            step = np.linalg.norm(weight_DH - before_DH)
            assert_close(trajectory.step_norms_S[i], step, STEPS * WIDTH, condition=length)

    @given(seeds())
    def test_same_output_on_the_query_as_anchored_and_another_matrix(self, seed):
        inputs_MD, kernel_DH = inputs(seed)
        peeled = as_matrix(peel_off_trajectory(inputs_MD, kernel_DH).final)
        # Anchored reads the prefixes from the lone query upwards, to the same two ends.
        trajectory = anchored_trajectory(inputs_MD[::-1], kernel_DH)
        straight = point(trajectory.points, STEPS)
        query_D, want_H = inputs_MD[-1], inputs_MD[0] @ kernel_DH
        scale = float(jnp.linalg.norm(query_D) * jnp.linalg.norm(peeled))
        for update_DH in (peeled, straight):
            error = jnp.linalg.norm(query_D @ (kernel_DH + update_DH) - want_H)
            assert error <= eps("float64", STEPS * WIDTH) * max(scale, 1.0)
        assert relative_error(peeled, straight) > 1e-3
        # Anchored is the shortest of all.
        assert jnp.linalg.norm(peeled) > jnp.linalg.norm(straight)

    def test_its_rank_is_the_number_of_tokens(self):
        inputs_MD, kernel_DH = inputs(2)
        update = peel_off_trajectory(inputs_MD, kernel_DH).final
        assert np.linalg.matrix_rank(as_matrix(update)) == STEPS
        assert np.all(singular_values(update) > 1e-3)

    def test_one_token_is_the_anchored_update(self):
        inputs_MD, kernel_DH = inputs(3)
        update = peel_off_trajectory(inputs_MD[:2], kernel_DH).final
        straight = anchored_trajectory(inputs_MD[1::-1], kernel_DH)
        assert_close(as_matrix(update), point(straight.points, 1), WIDTH)

    def test_more_tokens_than_dimensions(self):
        inputs_MD, kernel_DH = normal(1, 3 * WIDTH + 1, WIDTH) + 2.0, normal(2, WIDTH, HIDDEN)
        update = peel_off_trajectory(inputs_MD, kernel_DH).final
        got_H = inputs_MD[-1] @ (kernel_DH + as_matrix(update))
        assert_close(got_H, inputs_MD[0] @ kernel_DH, 3 * WIDTH**2, condition=1000)

    def test_first_factors_may_be_counted_by_a_traced_number(self):
        inputs_MD, kernel_DH = inputs(4)
        update = peel_off_trajectory(inputs_MD, kernel_DH).final
        norms = compiled(jax.vmap(lambda n: frobenius_norm(first_factors(update, n))))
        got = norms(jnp.arange(STEPS + 1))
        want = [jnp.linalg.norm(as_matrix(first_factors(update, n))) for n in range(STEPS + 1)]
        assert got[0] == 0
        assert_close(got, jnp.stack(want), STEPS * WIDTH)
        assert isinstance(first_factors(update, STEPS), LowRank)
        np.testing.assert_array_equal(first_factors(update, STEPS).right_RH, update.right_RH)

    def test_a_zero_input_on_the_way_shows(self):
        inputs_MD, kernel_DH = inputs(5)
        trajectory = peel_off_trajectory(inputs_MD.at[2].set(0.0), kernel_DH)
        assert np.isfinite(trajectory.step_norms_S[0])
        assert np.all(np.isnan(trajectory.step_norms_S[1:]))

    def test_errors_name_what_is_wrong(self):
        inputs_MD, kernel_DH = inputs(0)
        call = peel_off.peel_off_trajectory
        with pytest.raises(ValueError, match="at least two rows .with and without one token., got"):
            call(inputs_MD[:1], kernel_DH)
        with pytest.raises(ValueError, match=r"inputs_MD must have 2 axes \(M, D\)"):
            call(inputs_MD[0], kernel_DH)
        with pytest.raises(ValueError, match="axis 0 of kernel_DH must have 8 entries"):
            call(inputs_MD, kernel_DH[:-1])
        with pytest.raises(TypeError, match="inputs_MD: float64, kernel_DH: float32"):
            call(inputs_MD, kernel_DH.astype(jnp.float32))


@pytest.mark.parametrize("function", (anchored.anchored_trajectory, peel_off.peel_off_trajectory))
class TestBoth:
    def test_vmap_is_a_loop_and_jit_is_eager(self, function):
        inputs_BMD, kernel_DH = normal(1, 3, STEPS + 1, WIDTH), normal(2, WIDTH, HIDDEN)
        together = compiled(jax.vmap(function, in_axes=(0, None)))(inputs_BMD, kernel_DH)
        alone = [function(inputs_MD, kernel_DH) for inputs_MD in inputs_BMD]
        stacked = jax.tree.map(lambda *rows: jnp.stack(rows), *alone)
        assert_trees_close(together, stacked, STEPS * WIDTH, condition=10)

    def test_other_prompts_in_the_batch_do_not_matter(self, function):
        inputs_BMD, kernel_DH = normal(1, 3, STEPS + 1, WIDTH), normal(2, WIDTH, HIDDEN)
        batched = compiled(jax.vmap(function, in_axes=(0, None)))
        together = batched(inputs_BMD, kernel_DH)
        spoilt = batched(inputs_BMD.at[1:].set(jnp.nan), kernel_DH)
        for got, want in zip(jax.tree.leaves(spoilt), jax.tree.leaves(together), strict=True):
            np.testing.assert_array_equal(got[0], want[0])

    def test_gradients_are_finite_and_right(self, function):
        inputs_MD, kernel_DH = inputs(6)

        def length(inputs_MD):
            return jnp.sum(function(inputs_MD, kernel_DH).step_norms_S)

        gradient_MD = compiled(jax.grad(length))(inputs_MD)
        direction_MD = normal(7, *inputs_MD.shape)
        value = compiled(length)
        central = value(inputs_MD + 1e-5 * direction_MD) - value(inputs_MD - 1e-5 * direction_MD)
        # A central difference of step 1e-5: its own error is 1e-10 of the third derivative.
        np.testing.assert_allclose(jnp.sum(gradient_MD * direction_MD), central / 2e-5, rtol=1e-5)


def test_the_gradient_of_step_norms_is_finite_where_a_token_changes_nothing():
    inputs_MD, kernel_DH = inputs(11)
    inputs_MD = inputs_MD.at[2].set(inputs_MD[1])

    def total(inputs_MD):
        return jnp.sum(anchored.anchored_trajectory(inputs_MD, kernel_DH).step_norms_S)

    gradient_MD = np.asarray(jax.grad(total)(inputs_MD))
    # By hand, through |a_{i+1} - a_i| W_0 / |a_0|, without the step that has no length.
    start_D, kernel_DH = np.asarray(inputs_MD[0]), np.asarray(kernel_DH)
    want_MD, norm = np.zeros_like(inputs_MD), np.linalg.norm(inputs_MD[0])
    for index in (0, 2, 3):
        step_H = np.asarray(inputs_MD[index + 1] - inputs_MD[index]) @ kernel_DH
        length = np.linalg.norm(step_H)
        slope_D = kernel_DH @ step_H / length / norm
        want_MD[index + 1] += slope_D
        want_MD[index] -= slope_D
        want_MD[0] -= length * start_D / norm**3
    assert_close(gradient_MD, want_MD, 40, condition=10)


@pytest.mark.wide(3)
@pytest.mark.parametrize("layer", ("attention", "linear_attention", "state_space", "recurrent"))
def test_both_trajectories_of_a_block_end_at_its_output_with_the_context(layer):
    model = make_model(Block(LAYERS[layer], MLPS["dense_bias"], "skip", "none"))
    block, params = model.blocks[0], model.block_params[0]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    stream_TD = model.embed(normal(1, STEPS + 1, 3))
    context_ND, query_D = stream_TD[:-1], stream_TD[-1]
    layers = stack_layers([block], [params])
    prefixes = prefix_pass(layers, context_ND, query_D).full[0].mlp_input_TD
    suffixes = suffix_midpoints(block, params, context_ND, query_D).mlp_input_TD
    assert_close(prefixes[-1], suffixes[0], 40)
    kernel_DH = params["mlp"]["layer_0"]["kernel"]
    kernel_DH = kernel_DH[:, :HIDDEN]
    ends = (
        point(anchored_trajectory(prefixes, kernel_DH).points, STEPS),
        as_matrix(peel_off_trajectory(suffixes, kernel_DH).final),
    )
    want_H = prefixes[-1] @ kernel_DH
    for update_DH in ends:
        assert_close(prefixes[0] @ (kernel_DH + update_DH), want_H, 40, condition=1000)
    assert relative_error(ends[0], ends[1]) > 1e-3
    assert relative_error(prefixes[0] @ kernel_DH, want_H) > 1e-2
