"""Linear regression prompts."""

import numpy as np
import pytest

from icl_jax.tasks.linear import LinearRegression

VARIANCES = (2.0, 1.0, 0.2)
COVARIANCE = ((2.0, 0.5, 0.0), (0.5, 1.0, -0.3), (0.0, -0.3, 0.2))
MATRICES = {None: np.eye(3), VARIANCES: np.diag(VARIANCES), COVARIANCE: np.array(COVARIANCE)}


@pytest.fixture
def sample(draw):
    return lambda task, num_prompts=4, num_examples=8: draw(
        task, num_prompts=num_prompts, num_examples=num_examples
    )


def _weights(prompts):
    """(B, D), from N >= D noiseless examples by NumPy."""
    return np.stack(
        [
            np.linalg.lstsq(inputs, targets, rcond=None)[0]
            for inputs, targets in zip(prompts.inputs_ND, prompts.targets_N, strict=True)
        ]
    )


@pytest.mark.parametrize("covariance", MATRICES)
def test_without_noise_one_linear_function_explains_examples_and_query(sample, covariance):
    prompts = sample(LinearRegression(3, covariance=covariance), num_examples=20000)
    weights_BD = _weights(prompts)
    np.testing.assert_allclose(
        np.einsum("bnd,bd->bn", prompts.inputs_ND, weights_BD), prompts.targets_N, atol=1e-12
    )
    np.testing.assert_allclose(
        np.einsum("bd,bd->b", prompts.query_D, weights_BD), prompts.query_target, atol=1e-12
    )


@pytest.mark.parametrize("covariance", MATRICES)
def test_inputs_have_the_covariance_asked_for(sample, covariance):
    prompt = sample(LinearRegression(3, covariance=covariance), num_examples=20000)
    inputs_ND = np.asarray(prompt.inputs_ND[0])
    expected_DD = MATRICES[covariance]
    # An entry of the sample covariance deviates by sqrt((c_ii c_jj + c_ij^2) / N).
    variances_D = np.diag(expected_DD)
    std_DD = np.sqrt((np.outer(variances_D, variances_D) + expected_DD**2) / 20000)
    assert np.all(np.abs(inputs_ND.T @ inputs_ND / 20000 - expected_DD) < 4 * std_DD)
    assert np.all(np.abs(inputs_ND.mean(0)) < 4 * np.sqrt(variances_D / 20000))


def test_weights_have_the_deviation_asked_for(sample):
    weights_BD = _weights(sample(LinearRegression(2, weight_std=3.0), num_prompts=1000))
    assert abs(weights_BD.std() - 3.0) < 4 * 3.0 / np.sqrt(2 * weights_BD.size)
    assert abs(weights_BD.mean()) < 4 * 3.0 / np.sqrt(weights_BD.size)


def test_noise_changes_the_examples_labels_and_nothing_else(sample):
    clean, noisy = (sample(LinearRegression(2, noise_std=std)) for std in (0.0, 0.5))
    np.testing.assert_array_equal(noisy.inputs_ND, clean.inputs_ND)
    np.testing.assert_array_equal(noisy.query_target, clean.query_target)
    assert np.all(noisy.targets_N != clean.targets_N)


def test_a_singular_covariance_keeps_inputs_in_its_subspace(sample):
    prompt = sample(LinearRegression(2, covariance=((1.0, 1.0), (1.0, 1.0))))
    np.testing.assert_allclose(prompt.inputs_ND[..., 0], prompt.inputs_ND[..., 1], atol=1e-7)


def test_a_covariance_that_is_none_is_refused():
    for unhashable in (np.eye(2), [1.0, 2.0], ([1.0, 0.0], [0.0, 1.0])):
        with pytest.raises(TypeError, match=r"must be a tuple of numbers or of tuples"):
            LinearRegression(2, covariance=unhashable)
    for misshapen in (((1.0,), (0.0, 1.0)), ((1.0,), (1.0,)), (1.0, (0.0, 1.0)), (1.0, 1.0, 1.0)):
        with pytest.raises(ValueError, match=r"must have 2 numbers or 2 rows of 2 numbers"):
            LinearRegression(2, covariance=misshapen)
    with pytest.raises(ValueError, match=r"positive semi-definite, got the eigenvalue -2"):
        LinearRegression(2, covariance=(1.0, -2.0))
    with pytest.raises(ValueError, match=r"must be finite and symmetric"):
        LinearRegression(2, covariance=((1.0, 0.5), (0.0, 1.0)))
    with pytest.raises(ValueError, match=r"must be finite and symmetric"):
        LinearRegression(1, covariance=((float("nan"),),))
    with pytest.raises(ValueError, match=r"positive semi-definite, got the eigenvalue -1"):
        LinearRegression(2, covariance=((1.0, 2.0), (2.0, 1.0)))


def test_a_weight_deviation_of_zero_is_refused():
    with pytest.raises(ValueError, match=r"weight_std must be a finite number above 0, got 0"):
        LinearRegression(2, weight_std=0)


def test_uniform_inputs_fill_their_range_evenly(sample):
    prompts = sample(LinearRegression(3, input_range=0.5), num_examples=20000)
    for inputs in (prompts.inputs_ND.reshape(-1), prompts.query_D.reshape(-1)):
        assert np.max(np.abs(inputs)) <= 0.5
    counts, _ = np.histogram(prompts.inputs_ND, bins=10, range=(-0.5, 0.5))
    np.testing.assert_allclose(counts / counts.mean(), 1.0, atol=0.05)


def test_uniform_inputs_take_no_covariance():
    with pytest.raises(ValueError, match="input_range=1.0 is for uniform inputs"):
        LinearRegression(3, covariance=VARIANCES, input_range=1.0)
    with pytest.raises(ValueError, match="input_range must be a finite number above 0"):
        LinearRegression(3, input_range=0.0)
