"""Any optimiser of optax by name: the same steps as the function itself takes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_jax.descent.finetune import descend
from icl_jax.optimizers import OptimizerConfig


def loss(weights):
    return jnp.sum((weights["w"] @ jnp.array([[1.0], [2.0]]) - 3.0) ** 2) + jnp.sum(
        weights["b"] ** 2
    )


START = {"w": jnp.array([[0.3, -0.2], [0.5, 1.0]]), "b": jnp.ones(3)}


def path(optimizer):
    return descend(loss, START, optimizer, num_steps=4).points


@pytest.mark.parametrize(
    ("config", "same"),
    [
        (OptimizerConfig(), optax.sgd(0.05)),
        (OptimizerConfig("gd"), optax.sgd(0.05)),
        (OptimizerConfig("momentum"), optax.sgd(0.05, momentum=0.9)),
        (OptimizerConfig("momentum", ("momentum=0.5",)), optax.sgd(0.05, momentum=0.5)),
        (OptimizerConfig("nesterov"), optax.sgd(0.05, momentum=0.9, nesterov=True)),
        (OptimizerConfig("adam", ("b1=0.5", "eps=1e-3")), optax.adam(0.05, b1=0.5, eps=1e-3)),
        (OptimizerConfig("adamw", ("weight_decay=0.1",)), optax.adamw(0.05, weight_decay=0.1)),
        (OptimizerConfig("lion"), optax.lion(0.05)),
        (OptimizerConfig("muon", ("nesterov=false",)), optax.contrib.muon(0.05, nesterov=False)),
        (
            OptimizerConfig("sgd", schedule="cosine"),
            optax.sgd(optax.cosine_decay_schedule(0.05, 4)),
        ),
        (
            OptimizerConfig("adam", schedule="linear", warmup_steps=2),
            optax.adam(
                optax.join_schedules(
                    [optax.linear_schedule(0.0, 0.05, 2), optax.linear_schedule(0.05, 0.0, 2)], [2]
                )
            ),
        ),
    ],
    ids=lambda value: value.name if isinstance(value, OptimizerConfig) else "",
)
def test_a_name_takes_the_steps_of_the_function(config, same):
    got, want = path(config.make(0.05, 4)), path(same)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)
        assert not np.array_equal(mine[0], mine[-1])


@pytest.mark.parametrize("name", ["sgd", "momentum", "adam", "adamw", "lion", "muon"])
def test_rates_are_traced_and_vmapped_as_one_program(name):
    config = OptimizerConfig(name)
    rates_X = jnp.array([0.01, 0.1])

    @jax.jit
    def ends(rates_X):
        return jax.vmap(lambda rate: descend(loss, START, config.make(rate, 4), num_steps=4).final)(
            rates_X
        )

    got = ends(rates_X)
    for index, rate in enumerate((0.01, 0.1)):
        want = descend(loss, START, config.make(rate, 4), num_steps=4).final
        np.testing.assert_allclose(got["w"][index], want["w"], rtol=1e-9)


def test_what_optax_does_not_have_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'adamm' is no optimiser.*Did you mean 'adam'"):
        OptimizerConfig("adamm")
    with pytest.raises(ValueError, match="is no optimiser"):
        OptimizerConfig("GradientTransformation")
    with pytest.raises(ValueError, match="is no optimiser"):
        OptimizerConfig("apply_updates")


def test_arguments_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="sgd has no argument 'b1'; it has momentum"):
        OptimizerConfig("sgd", ("b1=0.9",))
    with pytest.raises(ValueError, match="has no argument 'learning_rate'"):
        OptimizerConfig("sgd", ("learning_rate=0.9",))
    with pytest.raises(ValueError, match="written name=value, got 'b1'"):
        OptimizerConfig("adam", ("b1",))
    with pytest.raises(ValueError, match="is no number, true, false or none"):
        OptimizerConfig("adam", ("b1=big",))
    with pytest.raises(ValueError, match="schedule must be one of"):
        OptimizerConfig(schedule="stairs")
    with pytest.raises(ValueError, match="warmup_steps=4 must be below the number of steps, 4"):
        OptimizerConfig(warmup_steps=4).make(0.1, 4)
