"""A configuration gives the optimizer that it describes, or an error that says what to change."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_jax.training.config import TrainingConfig, make_optimizer, make_schedule


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


def test_the_schedule_rises_to_its_peak_and_falls_to_zero():
    schedule = make_schedule(TrainingConfig(num_steps=110, warmup_steps=10, learning_rate=0.5))
    rates = np.asarray([schedule(step) for step in (0, 5, 10, 60, 110)])
    np.testing.assert_allclose(rates, [0.0, 0.25, 0.5, 0.25, 0.0], atol=1e-7)


def test_the_constant_schedule_stays_at_its_peak():
    config = TrainingConfig(num_steps=110, warmup_steps=10, learning_rate=0.5, schedule="constant")
    rates = np.asarray([make_schedule(config)(step) for step in (0, 5, 10, 110)])
    np.testing.assert_allclose(rates, [0.0, 0.25, 0.5, 0.5], atol=1e-7)


def test_without_warmup_the_first_step_has_the_peak_rate():
    config = TrainingConfig(warmup_steps=0, optimizer="sgd", learning_rate=0.5, gradient_clip=None)
    np.testing.assert_allclose(first_change(config, [3.0, -4.0]), [-1.5, 2.0])


def test_the_gradient_is_clipped_to_its_largest_norm():
    config = TrainingConfig(warmup_steps=0, optimizer="sgd", learning_rate=0.5, gradient_clip=1.0)
    np.testing.assert_allclose(first_change(config, [3.0, -4.0]), [-0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(first_change(config, [0.3, -0.4]), [-0.15, 0.2], rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"), [("adam", optax.adam(0.5)), ("adamw", optax.adamw(0.5, weight_decay=0.1))]
)
def test_the_optimizer_is_the_one_of_that_name(name, expected):
    decay = 0.1 if name == "adamw" else 0.0
    config = TrainingConfig(
        warmup_steps=0,
        optimizer=name,
        learning_rate=0.5,
        schedule="constant",
        gradient_clip=None,
        weight_decay=decay,
    )
    params, gradient = jnp.asarray([1.0, 2.0]), jnp.asarray([3.0, -4.0])
    change, _ = expected.update(gradient, expected.init(params), params)
    np.testing.assert_allclose(first_change(config, gradient, params), change, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "num_steps must be an integer of at least 1, got 0"),
        ({"batch_size": -1}, "batch_size must be an integer of at least 1, got -1"),
        ({"steps_per_call": 0}, "steps_per_call must be"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be .* got nan"),
        ({"optimizer": "lion"}, "optimizer must be one of 'adam', 'adamw', 'sgd', got 'lion'"),
        ({"schedule": "linear"}, "schedule must be one of 'constant', 'cosine', got 'linear'"),
        ({"gradient_clip": 0.0}, "gradient_clip must be"),
        ({"weight_decay": -1.0, "optimizer": "adamw"}, "weight_decay must be"),
        ({"weight_decay": 0.1}, "weight_decay=0.1 does nothing with optimizer='adam'; set it to 0"),
        ({"warmup_steps": 5000}, "warmup_steps must be .* below num_steps=5000, got 5000. Warm up"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_remedy(changes, message):
    with pytest.raises(ValueError, match=f"TrainingConfig: {message}"):
        TrainingConfig(**changes)
