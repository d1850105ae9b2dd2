"""A path of weights, whoever walks it: a context that grows, or an optimiser."""

from dataclasses import dataclass
from typing import Any

import jax

from icl_jax.dims import Array
from icl_jax.patches.low_rank import LowRank
from icl_jax.shown import short


@jax.tree_util.register_dataclass
@dataclass(frozen=True, repr=False)
class Trajectory:
    """S steps between P = S + 1 points; what a path does not have is None.

    Attributes:
      points: of every point, with a leading axis P: ``W_i - W_0`` in factors where a context walks;
        of a descent what ``record`` kept of the weights, or the weights themselves. None for a
        peel-off, whose point i is the sum of its first i terms (``first_factors``).
      final: the last point: an update in factors, or the weights after a descent.
      step_norms_S: (S,), ``|W_{i+1} - W_i|_F``, of all weights that move together.
      losses_S: (S,), what each step goes down on, just before it.
      steps: ``W_{i+1} - W_i`` in factors with a leading axis S.
      gradients: ``G_i`` with ``W_{i+1} = W_i - step_size G_i``, in factors with a leading axis S.
      step_size: (), ``h`` of all steps.

    Examples:
      >>> inputs = jnp.array([[2.0, 0.0], [2.0, 1.0], [2.0, 1.5]])  # after 0, 1 and 2 tokens
      >>> path = anchored_trajectory(inputs, jnp.eye(2))
      >>> path.points.left_RD.shape, path.step_norms_S.tolist()
      ((3, 1, 2), [0.5, 0.25])
    """

    points: Any
    final: Any
    step_norms_S: Array
    losses_S: Any = None
    steps: LowRank | None = None
    gradients: LowRank | None = None
    step_size: Array | None = None

    __repr__ = short
