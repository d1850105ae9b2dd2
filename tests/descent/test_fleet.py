"""A fleet against a loop; on one device and on eight."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_jax.descent.finetune import descend
from icl_jax.descent.fleet import fleet
from icl_jax.sharding import shard_tasks, task_mesh
from tests.helpers import normal

RATES_X = jnp.array([0.05, 0.2, 0.4])
TASKS = (normal(0, 16, 5, 3), normal(1, 16, 5))
COLLECTIVES = re.compile(r"\b(all-reduce|all-gather|all-to-all|collective-permute)(?:-start)?\(")


def loss(weights_D, task):
    inputs_ND, targets_N = task
    return jnp.mean((inputs_ND @ weights_D - targets_N) ** 2)


def run(task, rate, start_D=None):
    start_D = jnp.zeros(3) if start_D is None else start_D
    found = descend(functools.partial(loss, task=task), start_D, optax.sgd(rate), num_steps=4)
    return {"final": found.final, "losses_S": found.losses_S}


def seeded(task, rate, key):
    return run(task, rate, jax.random.normal(key, (3,), jnp.float64))


@functools.cache
def together():
    return jax.jit(functools.partial(fleet, run))(TASKS, RATES_X)


def test_a_fleet_is_a_loop_over_tasks_and_rates():
    found = together()
    assert found["losses_S"].shape == (16, 3, 4) and found["final"].shape == (16, 3, 3)
    alone = jax.jit(run)
    for task, rate in ((0, 0), (7, 2), (15, 1)):
        want = alone(jax.tree.map(lambda leaf: leaf[task], TASKS), RATES_X[rate])  # noqa: B023
        np.testing.assert_allclose(found["final"][task, rate], want["final"], rtol=1e-12)
        np.testing.assert_allclose(found["losses_S"][task, rate], want["losses_S"], rtol=1e-12)


def test_seeds_are_a_third_axis():
    keys_S = jax.random.split(jax.random.key(0), 2)
    found = jax.jit(functools.partial(fleet, seeded))(TASKS, RATES_X, keys_S)
    assert found["final"].shape == (16, 3, 2, 3)
    task = jax.tree.map(lambda leaf: leaf[3], TASKS)
    want = jax.jit(seeded)(task, RATES_X[1], keys_S[1])
    np.testing.assert_allclose(found["final"][3, 1, 1], want["final"], rtol=1e-12)
    assert not np.allclose(found["final"][3, 1, 0], found["final"][3, 1, 1])


def test_groups_are_the_same_descents():
    found = jax.jit(functools.partial(fleet, run, batch_size=6))(TASKS, RATES_X)
    np.testing.assert_allclose(found["final"], together()["final"], rtol=1e-12)


def test_another_task_does_not_matter():
    spoilt = jax.tree.map(lambda leaf: leaf.at[1].set(jnp.nan), TASKS)
    found = jax.jit(functools.partial(fleet, run))(spoilt, RATES_X)
    kept = np.array([0, *range(2, 16)])
    np.testing.assert_array_equal(found["final"][kept], together()["final"][kept])
    assert np.all(np.isnan(found["final"][1]))


def test_on_eight_devices_nothing_is_said_between_them():
    placed = shard_tasks(TASKS, task_mesh())
    compiled = jax.jit(functools.partial(fleet, run)).lower(placed, RATES_X).compile()
    assert not COLLECTIVES.findall(compiled.as_text())
    found = compiled(placed, RATES_X)
    assert len(found["final"].sharding.device_set) == 8
    np.testing.assert_allclose(found["final"], together()["final"], rtol=1e-12)


def test_a_mean_over_tasks_costs_one_all_reduce():
    def mean_loss(tasks, rates_X):
        return jnp.mean(fleet(run, tasks, rates_X)["losses_S"], axis=0)

    placed = shard_tasks(TASKS, task_mesh())
    compiled = jax.jit(mean_loss).lower(placed, RATES_X).compile()
    assert COLLECTIVES.findall(compiled.as_text()) == ["all-reduce"]
    want = jnp.mean(together()["losses_S"], axis=0)
    np.testing.assert_allclose(compiled(placed, RATES_X), want, rtol=1e-12)


def test_what_cannot_run_is_refused():
    with pytest.raises(ValueError, match=r"fleet: rates_X must have 1 axes \(X\)"):
        fleet(run, TASKS, jnp.asarray(0.1))
    with pytest.raises(ValueError, match="fleet: tasks must share a leading axis B"):
        fleet(run, (TASKS[0], TASKS[1][:3]), RATES_X)
    with pytest.raises(ValueError, match="fleet: batch_size must be an integer"):
        fleet(run, TASKS, RATES_X, batch_size=0)
