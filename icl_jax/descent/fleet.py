"""Thousands of descents in one program: every task, at every learning rate, from every seed."""

from collections.abc import Callable
from typing import Any

import jax

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.sharding import constrain
from icl_jax.sharding.table import OF_TASKS

#: ``run(task, rate) -> outputs`` or ``run(task, rate, key) -> outputs``, for one of each.
Descent = Callable[..., Any]


def fleet(
    run: Descent,
    tasks: Any,
    rates_X: Array,
    keys_S: Array | None = None,
    *,
    batch_size: int | None = None,
) -> Any:
    """``run`` for every task, learning rate and seed.

    Nothing passes between tasks: with ``tasks`` placed by ``sharding.shard_tasks``, or on the mesh
    that is set, the jitted call runs on all devices without a word between them, and a mean over
    tasks costs one all-reduce.

    Args:
      run: a descent and what is to be known of it, such as ``descend(...).losses_S``; pure.
      tasks: a pytree of arrays with a leading axis B.
      rates_X: (X,), learning rates.
      keys_S: (S,), PRNG keys, where ``run`` takes one.
      batch_size: tasks that run side by side, to bound memory; all of them when left out. (With
        tasks on several devices leave it out: groups would have to be gathered.)

    Returns:
      The outputs with leading axes (B, X), or (B, X, S) with seeds.

    Raises:
      ValueError: rates that are no vector, tasks whose leading axes differ, a batch size below 1.
      TypeError: keys_S that are no PRNG keys.

    Examples:
      >>> import optax
      >>> def run(target, rate):
      ...     def loss(weight):
      ...         return (weight - target) ** 2
      ...     return descend(loss, jnp.array(0.0), optax.sgd(rate), num_steps=1).final
      >>> fleet(run, jnp.array([1.0, 2.0, 3.0]), jnp.array([0.25, 0.5])).tolist()
      [[0.5, 1.0], [1.0, 2.0], [1.5, 3.0]]
    """
    checks.rank("fleet", "rates_X", rates_X, 1, "(X)")
    if keys_S is not None:
        checks.prng_keys("fleet", "keys_S", keys_S)
    lengths = {jax.numpy.shape(leaf)[:1] for leaf in jax.tree.leaves(tasks)}
    if len(lengths) != 1 or lengths == {()}:
        raise ValueError(
            f"fleet: tasks must share a leading axis B, got leading axes {sorted(lengths)}."
        )

    tasks = constrain(tasks, leading="B", table=OF_TASKS)

    def of_task(task: Any) -> Any:
        if keys_S is None:
            return jax.vmap(lambda rate: run(task, rate))(rates_X)
        over_seeds = jax.vmap(run, in_axes=(None, None, 0))
        return jax.vmap(lambda rate: over_seeds(task, rate, keys_S))(rates_X)

    if batch_size is None:
        return jax.vmap(of_task)(tasks)
    checks.positive_int("fleet", "batch_size", batch_size)
    return jax.lax.map(of_task, tasks, batch_size=batch_size)
