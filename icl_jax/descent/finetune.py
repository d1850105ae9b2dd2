"""Gradient descent on the same examples: what an optimiser makes of what the context showed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import optax

from icl_jax.dims import Array, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class DescentTrajectory:
    """The weights after every step, and what the optimiser saw on the way; N steps, M = N + 1.

    Attributes:
      weights: the weights with a leading axis M, the start included.
      losses_N: (N,), the loss of each example just before the step that it caused.
    """

    weights: Params
    losses_N: Array


def finetune(
    loss: Callable[[Params, Any], Array],
    weights: Params,
    examples: Any,
    optimizer: optax.GradientTransformation,
) -> DescentTrajectory:
    """One optimiser step per example, in order.

    Args:
      loss: ``loss(weights, example) -> ()``.
      weights: the pytree that is trained (one kernel, an MLP, everything).
      examples: a pytree with a leading axis N.
      optimizer: any optax transformation.

    Returns:
      The trajectory, N + 1 points; vmap over tasks, seeds and learning rates outside.

    Raises:
      ValueError: no examples, or leaves of ``examples`` of different length.

    Source: the experiment of Dherin et al. 2025 (arXiv 2507.16003), section 4.
    """
    lengths = {leaf.shape[0] for leaf in jax.tree.leaves(examples)}
    if len(lengths) != 1 or 0 in lengths:
        raise ValueError(
            "finetune: examples must share one leading axis of at least one example, got lengths "
            f"{sorted(lengths)}."
        )

    def step(carry: tuple[Params, Any], example: Any) -> tuple[tuple[Params, Any], Any]:
        current, state = carry
        value, gradient = jax.value_and_grad(loss)(current, example)
        # optax mixes dtypes (a step count with a moment), which strict promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            change, state = optimizer.update(gradient, state, current)
        current = optax.apply_updates(current, change)
        return (current, state), (current, value)

    _, (visited, losses_N) = jax.lax.scan(step, (weights, optimizer.init(weights)), examples)
    with_start = jax.tree.map(
        lambda start, path: jax.numpy.concatenate([start[None], path]), weights, visited
    )
    return DescentTrajectory(with_start, losses_N)
