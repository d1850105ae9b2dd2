"""Sizes of the steps that a context takes, and how they fall."""

import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.dynamics.anchored import anchored_trajectory
from icl_jax.dynamics.marginal import decay_exponent, marginal_sizes, marginal_updates
from icl_jax.patches.low_rank import frobenius_norm
from tests.helpers import normal


def test_the_sizes_are_those_of_the_anchored_path_with_the_identity_as_kernel():
    inputs_MD = normal(0, 6, 4)
    path = anchored_trajectory(inputs_MD, jnp.eye(4, dtype=inputs_MD.dtype))
    np.testing.assert_allclose(marginal_sizes(inputs_MD), path.step_norms_S, rtol=1e-5)
    steps = marginal_updates(inputs_MD)
    norms = [frobenius_norm(type(steps)(*pair)) for pair in zip(*vars(steps).values(), strict=True)]
    np.testing.assert_allclose(norms, path.step_norms_S, rtol=1e-5)


def test_a_running_mean_settles_like_one_over_i_and_a_walk_does_not():
    rng = np.random.default_rng(0)
    draws_ND = rng.normal(size=(400, 30))
    counts_N1 = np.arange(1, 401)[:, None]
    mean_MD = np.cumsum(draws_ND, axis=0) / counts_N1
    exponent = decay_exponent(marginal_sizes(jnp.asarray(mean_MD)), first=5)
    assert abs(float(exponent) + 1) < 0.05
    walk_MD = np.cumsum(draws_ND, axis=0)
    assert abs(float(decay_exponent(marginal_sizes(jnp.asarray(walk_MD)), first=5))) < 0.1


def test_a_step_of_zero_has_no_exponent_and_too_few_are_refused():
    assert np.isnan(decay_exponent(jnp.array([1.0, 0.0, 0.5])))
    with pytest.raises(ValueError, match="two steps or more from first=3"):
        decay_exponent(jnp.ones(3), first=3)
    with pytest.raises(ValueError, match="two prefixes or more"):
        marginal_sizes(jnp.ones((1, 3)))
