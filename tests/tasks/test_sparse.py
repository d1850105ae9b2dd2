"""Sparse linear regression prompts."""

import numpy as np
import pytest

from icl_jax.tasks.sparse import SparseLinearRegression


def test_a_function_reads_exactly_so_many_coordinates_and_each_as_often(draw):
    prompts = draw(SparseLinearRegression(5, num_nonzero=2), num_prompts=600, num_examples=8)
    weights_BD = np.stack(
        [
            np.linalg.lstsq(inputs, targets, rcond=None)[0]
            for inputs, targets in zip(prompts.inputs_ND, prompts.targets_N, strict=True)
        ]
    )
    read_BD = np.abs(weights_BD) > 1e-9
    np.testing.assert_array_equal(read_BD.sum(1), 2)
    # Binomial: 600 draws with probability 2 / 5.
    assert np.all(np.abs(read_BD.mean(0) - 0.4) < 4 * np.sqrt(0.4 * 0.6 / 600))
    # Those read are standard normal.
    assert abs(weights_BD[read_BD].std() - 1) < 4 / np.sqrt(2 * 1200)
    np.testing.assert_allclose(
        np.einsum("bd,bd->b", prompts.query_D, weights_BD), prompts.query_target, atol=1e-10
    )


def test_more_nonzero_weights_than_coordinates_are_refused():
    with pytest.raises(ValueError, match=r"num_nonzero must be at most input_width = 2, got 3"):
        SparseLinearRegression(2, num_nonzero=3)
    with pytest.raises(ValueError, match=r"num_nonzero must be an integer of at least 1, got 0"):
        SparseLinearRegression(2, num_nonzero=0)
