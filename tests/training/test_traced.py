"""A training as a pure function is the training that the loop does, and can be vectorised."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.training.config import TrainingConfig, make_optimizer, usual_optimizer
from icl_jax.training.loop import train
from icl_jax.training.traced import train_traced
from tests.training.test_loop import init, loss

CONFIG = TrainingConfig(
    num_steps=23, learning_rate=0.05, steps_per_call=10, optimizer=usual_optimizer(warmup_steps=4)
)


def traced(seed, rate):
    optimizer = make_optimizer(CONFIG, rate)
    return train_traced(init, loss, optimizer, jax.random.key(seed), num_steps=CONFIG.num_steps)


def looped(seed, rate):
    optimizer = make_optimizer(CONFIG, rate)
    return train(
        init,
        loss,
        optimizer,
        jax.random.key(seed),
        num_steps=CONFIG.num_steps,
        steps_per_call=CONFIG.steps_per_call,
        show_progress=False,
    )


def test_it_is_what_the_loop_computes():
    params, metrics = jax.jit(traced)(3, 0.05)
    reference = looped(3, 0.05)
    # Float64, and the same steps in another program: a rounding each, as in the loop's own test.
    chex.assert_trees_all_close(params, reference.params, rtol=1e-12)
    assert metrics.keys() == reference.metrics.keys()
    for name, values in reference.metrics.items():
        np.testing.assert_allclose(metrics[name], values, rtol=1e-11, err_msg=name)


def test_seeds_and_learning_rates_may_be_vectorised():
    seeds, rates = jnp.arange(3), jnp.asarray([0.01, 0.05, 0.2])
    params, metrics = jax.jit(jax.vmap(traced))(seeds, rates)
    for i in range(3):
        reference = looped(i, float(rates[i]))
        # Optax's schedules are float32 where the rate is Python's and float64 where it is an
        # array's: one rounding of float32 in the rate of each step.
        chex.assert_trees_all_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], params), reference.params, rtol=1e-7
        )
        np.testing.assert_allclose(metrics["loss"][i], reference.metrics["loss"], rtol=1e-5)


def test_without_a_rate_the_configured_one_is_taken():
    given, configured = traced(0, 0.05), traced(0, None)
    chex.assert_trees_all_equal(given, configured)


def test_a_number_of_steps_below_one_is_refused():
    with pytest.raises(ValueError, match="train_traced: num_steps must be .*, got 0"):
        train_traced(init, loss, make_optimizer(CONFIG), jax.random.key(0), num_steps=0)
