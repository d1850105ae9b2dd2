"""Any optimiser of optax by name: the same steps as the function itself takes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_jax.descent.finetune import descend, finetune
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


@pytest.mark.parametrize("name", ["scale_by_rprop", "scale_by_learning_rate", "scale_by_madgrad"])
def test_a_part_of_an_optimiser_is_none(name):
    # The first one climbs: 12.9 becomes 1,483 in twenty steps.
    with pytest.raises(ValueError, match=f"'{name}' is no optimiser.*parts of one"):
        OptimizerConfig(name)
    with pytest.raises(ValueError, match="Did you mean 'rprop'"):
        OptimizerConfig("scale_by_rprop")


def test_arguments_that_are_missing_are_named():
    with pytest.raises(ValueError, match="dpsgd needs noise_multiplier and seed as well"):
        OptimizerConfig("dpsgd", ("l2_norm_clip=1.0",))


#: Optimisers that want to see the loss, its gradient or the function itself.
WITH_MORE = {
    "lbfgs": optax.lbfgs(),
    "polyak_sgd": optax.polyak_sgd(max_learning_rate=0.05),
    "momo": optax.contrib.momo(0.05),
    "backtracking": optax.chain(
        optax.sgd(1.0), optax.scale_by_backtracking_linesearch(max_backtracking_steps=15)
    ),
    "reduce_on_plateau": optax.chain(
        optax.sgd(0.05), optax.contrib.reduce_on_plateau(patience=2, factor=0.5)
    ),
}


@pytest.mark.wide(3)
@pytest.mark.parametrize("name", WITH_MORE)
def test_an_optimiser_that_reads_the_loss_takes_its_own_steps(name):
    optimizer = WITH_MORE[name]
    # The oracle: the loop that the documentation of optax writes.
    current, state, losses = START, optimizer.init(START), []
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for _ in range(4):
            value, gradient = jax.value_and_grad(loss)(current)
            change, state = optimizer.update(
                gradient, state, current, value=value, grad=gradient, value_fn=loss
            )
            current = optax.apply_updates(current, change)
            losses.append(value)
    got = descend(loss, START, optimizer, num_steps=4)
    np.testing.assert_allclose(got.losses_S, losses, rtol=1e-9)
    np.testing.assert_allclose(got.final["w"], current["w"], rtol=1e-9)
    assert loss(got.final) < losses[0]


def test_each_example_has_its_own_loss_to_search_on():
    targets_N = jnp.array([1.0, -2.0, 3.0])
    square = lambda weights, target: (weights - target) ** 2  # noqa: E731
    got = finetune(square, jnp.zeros(()), targets_N, WITH_MORE["backtracking"])
    # A full step goes as far beyond the bottom of the parabola as it was before it, and lowers
    # nothing: only a search on the example's own loss shortens it.
    after_N, before_N = square(got.points[1:], targets_N), square(got.points[:-1], targets_N)
    np.testing.assert_allclose(got.losses_S, before_N, rtol=1e-12)
    assert np.all(after_N < 0.5 * before_N)


def test_the_largest_rate_of_polyak_is_its_rate():
    got = path(OptimizerConfig("polyak_sgd").make(0.05, 4))
    want = path(optax.polyak_sgd(max_learning_rate=0.05))
    np.testing.assert_allclose(got["w"], want["w"], rtol=1e-12)
    with pytest.raises(ValueError, match="polyak_sgd finds its own rate.*schedule='cosine'"):
        OptimizerConfig("polyak_sgd", schedule="cosine")


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
