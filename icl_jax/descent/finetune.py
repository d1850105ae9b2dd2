"""Gradient descent on the same examples: what an optimiser makes of what the context showed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.dynamics.trajectory import Trajectory
from icl_jax.patches.vectors import vector_norm

#: What is kept of the weights at every point of a descent; the weights themselves when left out.
Record = Callable[[Params], Any]


def finetune(
    loss: Callable[[Params, Any], Array],
    weights: Params,
    examples: Any,
    optimizer: optax.GradientTransformation,
    *,
    record: Record | None = None,
) -> Trajectory:
    """One optimiser step per example, in order.

    Args:
      loss: ``loss(weights, example) -> ()``.
      weights: the pytree that is trained (one kernel, an MLP, everything).
      examples: a pytree with a leading axis N, as many as there will be steps.
      optimizer: any optax transformation, those with a line search or that read the loss (lbfgs,
        polyak_sgd, momo, reduce_on_plateau) included.
      record: what to keep of the weights at every point, such as a prediction; all of them when
        left out, which is P times their memory.

    Returns:
      The trajectory, N + 1 points; vmap over tasks, seeds and learning rates outside.

    Raises:
      ValueError: no examples, or leaves of ``examples`` of different length.

    Examples:
      >>> import optax
      >>> def loss(weight, example):
      ...     return (weight - example) ** 2 / 2
      >>> path = finetune(loss, jnp.array(0.0), jnp.array([4.0, 4.0]), optax.sgd(0.5))
      >>> path.points.tolist(), path.losses_S.tolist()
      ([0.0, 2.0, 3.0], [8.0, 2.0])

    Source: the experiment of Dherin et al. 2025 (arXiv 2507.16003), section 4.
    """
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "finetune: examples must share one leading axis of at least one example, got lengths "
            f"{sorted(lengths)}."
        )
    return _descend(loss, weights, examples, None, optimizer, record)


def descend(
    loss: Callable[[Params], Array],
    weights: Params,
    optimizer: optax.GradientTransformation,
    *,
    num_steps: int,
    record: Record | None = None,
) -> Trajectory:
    """``num_steps`` optimiser steps on one loss: full-batch descent.

    Args:
      loss: ``loss(weights) -> ()``, of all examples together.
      weights, optimizer, record: as for ``finetune``.
      num_steps: S.

    Raises:
      ValueError: ``num_steps`` is no positive integer.

    Examples:
      >>> import optax
      >>> def loss(weight):
      ...     return (weight - 4.0) ** 2 / 2
      >>> path = descend(loss, jnp.array(0.0), optax.sgd(0.5), num_steps=2)
      >>> path.points.tolist(), path.losses_S.tolist()
      ([0.0, 2.0, 3.0], [8.0, 2.0])
    """
    checks.positive_int("descend", "num_steps", num_steps)
    return _descend(lambda current, _: loss(current), weights, None, num_steps, optimizer, record)


def _descend(
    loss: Callable[[Params, Any], Array],
    weights: Params,
    examples: Any,
    num_steps: int | None,
    optimizer: optax.GradientTransformation,
    record: Record | None,
) -> Trajectory:
    keep: Record = record or (lambda current: current)
    optimizer = optax.with_extra_args_support(optimizer)

    def step(carry: tuple[Params, Any], example: Any) -> tuple[tuple[Params, Any], Any]:
        current, state = carry
        value, gradient = jax.value_and_grad(loss)(current, example)
        # optax mixes dtypes (a step count with a moment) and ranks, which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            change, state = optimizer.update(
                gradient,
                state,
                current,
                value=value,
                grad=gradient,
                value_fn=lambda weights: loss(weights, example),
            )
        current = optax.apply_updates(current, change)
        return (current, state), (keep(current), value, _norm(change))

    carry = (weights, optimizer.init(weights))
    (final, _), (visited, losses_S, norms_S) = jax.lax.scan(step, carry, examples, length=num_steps)
    points = jax.tree.map(
        lambda start, path: jnp.concatenate([start[None], path]), keep(weights), visited
    )
    return Trajectory(points, final, norms_S, losses_S)


def _norm(change: Params) -> Array:
    """The length of a step, of all weights together, in float32 or wider."""
    norms = [vector_norm(jnp.ravel(leaf)) for leaf in jax.tree.leaves(change)]
    return vector_norm(jnp.stack([norm.astype(jnp.result_type(*norms)) for norm in norms]))
