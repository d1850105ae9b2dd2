"""Prompts of two-layer networks."""

import numpy as np
import pytest

from icl_jax.tasks.networks import TwoLayerNetwork


@pytest.mark.parametrize("input_width, num_hidden", [(1, 10), (4, 100)])
def test_targets_have_the_variance_of_a_linear_function_whatever_the_widths(
    draw, input_width, num_hidden
):
    prompts = draw(TwoLayerNetwork(input_width, num_hidden), num_prompts=3000, num_examples=40)
    squares_B = prompts.query_target**2
    assert abs(squares_B.mean() - input_width) < 4 * squares_B.std() / np.sqrt(3000)


def test_the_function_is_positively_homogeneous_but_not_linear(draw):
    # With D = 1, relu(w x) knows only the sign of x: two slopes, one on either side of zero.
    prompt = draw(TwoLayerNetwork(1, 10), num_prompts=3000, num_examples=40)
    inputs_N = prompt.inputs_ND[0, :, 0]
    slopes_N = prompt.targets_N[0] / inputs_N
    left, right = slopes_N[inputs_N < 0], slopes_N[inputs_N > 0]
    np.testing.assert_allclose(left, left[0], rtol=1e-11)
    np.testing.assert_allclose(right, right[0], rtol=1e-11)
    assert abs(left[0] - right[0]) > 0.01


def test_a_network_without_hidden_units_is_refused():
    with pytest.raises(ValueError, match=r"num_hidden must be an integer of at least 1, got 0"):
        TwoLayerNetwork(2, num_hidden=0)
