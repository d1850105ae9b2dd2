"""A configuration gives the optimizer that it describes, or an error that says what to change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_jax.optimizers import OptimizerConfig
from icl_jax.training.config import TrainingConfig, make_optimizer, usual_optimizer


@pytest.fixture(autouse=True)
def standard_promotion():
    """What the loop gives optax, which multiplies floats by integer counts."""
    with jax.numpy_dtype_promotion("standard"):
        yield


def first_change(config, gradient, params=(1.0, 1.0)):
    params = jnp.asarray(params)
    optimizer = make_optimizer(config)
    change, _ = optimizer.update(jnp.asarray(gradient), optimizer.init(params), params)
    return np.asarray(change)


def first_rates(config, steps):
    """The learning rates of gradient descent at some steps: it moves by them times the gradient."""
    optimizer = make_optimizer(config)
    weights = jnp.ones(())
    state, rates = optimizer.init(weights), []
    for _ in range(max(steps) + 1):
        change, state = optimizer.update(jnp.ones(()), state, weights)
        rates.append(-float(change))
    return [rates[step] for step in steps]


def test_the_usual_optimizer_rises_to_its_peak_and_falls_to_zero():
    sgd = usual_optimizer("sgd", warmup_steps=10)
    config = TrainingConfig(num_steps=110, learning_rate=0.5, optimizer=sgd)
    rates = first_rates(config, (0, 5, 10, 60, 110))
    np.testing.assert_allclose(rates, [0.0, 0.25, 0.5, 0.25, 0.0], atol=1e-7)


def test_the_gradient_is_clipped_to_its_largest_norm():
    sgd = OptimizerConfig("sgd", gradient_clip=1.0)
    config = TrainingConfig(learning_rate=0.5, optimizer=sgd)
    np.testing.assert_allclose(first_change(config, [3.0, -4.0]), [-0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(first_change(config, [0.3, -0.4]), [-0.15, 0.2], rtol=1e-6)


def test_any_optimiser_of_optax_trains():
    config = TrainingConfig(
        learning_rate=0.5, optimizer=OptimizerConfig("adamw", ("weight_decay=0.1",))
    )
    expected = optax.adamw(0.5, weight_decay=0.1)
    params, gradient = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, -4.0])
    change, _ = expected.update(gradient, expected.init(params), params)
    np.testing.assert_allclose(first_change(config, gradient, params), change, rtol=1e-6)
    assert TrainingConfig(optimizer=usual_optimizer("lion")).optimizer.schedule == "cosine"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be an integer of at least 1, got -1"),
        ({"steps_per_call": 0}, "steps_per_call must be"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be .* got nan"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_remedy(changes, message):
    with pytest.raises(ValueError, match=f"TrainingConfig: {message}"):
        TrainingConfig(**changes)


def test_more_warm_up_than_training_is_refused():
    with pytest.raises(ValueError, match="warmup_steps=5000 must be below the number of steps, 50"):
        TrainingConfig(optimizer=usual_optimizer(warmup_steps=5000), num_steps=5000)
    with pytest.raises(ValueError, match="gradient_clip must be"):
        usual_optimizer(gradient_clip=0.0)
