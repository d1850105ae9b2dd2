"""The anchored trajectory: every ``W_i`` measured from the same start, on the same query.

With ``a_i = A(C_i, x)`` the MLP's input after i context tokens and ``v = a_0 / |a_0|^2``,
``W_i = W_0 + outer(v, (a_i - a_0) W_0)`` does to the lone query what the first i tokens do:
``a_0 W_i = a_i W_0``. Going from ``W_i`` to ``W_{i+1}`` is one step of gradient descent on a linear
loss that token i+1 defines.
"""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.dynamics.trajectory import Trajectory
from icl_jax.patches.low_rank import (
    LowRank,
    check_update,
    dense_inner,
    frobenius_norm,
)
from icl_jax.patches.token import dual_vector
from icl_jax.patches.vectors import inner_product


def anchored_trajectory(inputs_MD: Array, kernel_DH: Array) -> Trajectory:
    """The weights after every prefix, and the descent that leads through them.

    Args:
      inputs_MD: (M, D), ``a_0..a_N``: the kernel's input at the query after 0..N context tokens.
      kernel_DH: (D, H), ``W_0``, in the orientation ``y = z W``.

    Returns:
      The trajectory, all of it in factors of rank 1: S = N steps between P = M points, with step
      size ``h = 1 / |a_0|^2`` and losses ``L_i(W_i) = trace(G_i^T W_i)``.

    Raises:
      ValueError: shapes that do not match, fewer than two points, or (outside jit) ``a_0`` of
        length zero.
      TypeError: dtypes that differ.

    Examples:
      >>> inputs = jnp.array([[2.0, 0.0], [2.0, 1.0], [2.0, 1.5]])  # after 0, 1 and 2 tokens
      >>> path = anchored_trajectory(inputs, jnp.eye(2))
      >>> float(path.step_size), path.step_norms_S.tolist()
      (0.25, [0.5, 0.25])
      >>> (inputs[0] + apply_update(inputs[0], path.final)).tolist()
      [2.0, 1.5]

    Source: Dherin et al. 2025 (arXiv 2507.16003), Proposition 3.1.
    """
    checks.rank("anchored_trajectory", "inputs_MD", inputs_MD, 2, "(M, D)")
    checks.rank("anchored_trajectory", "kernel_DH", kernel_DH, 2, "(D, H)")
    checks.axis_size(
        "anchored_trajectory", "kernel_DH", kernel_DH, 0, inputs_MD.shape[1], "the inputs' width"
    )
    checks.same_dtype("anchored_trajectory", inputs_MD=inputs_MD, kernel_DH=kernel_DH)
    if inputs_MD.shape[0] < 2:
        raise ValueError(
            "anchored_trajectory: inputs_MD must hold a_0 and at least one a_i, got "
            f"{inputs_MD.shape[0]} row(s). Give it one row per prefix, the empty one first."
        )
    start_D = inputs_MD[0]
    anchor_D = dual_vector(start_D)
    highest = jax.lax.Precision.HIGHEST
    # Differences first, then the kernel: subtracting two products would lose small steps.
    totals_MH = jnp.matmul(inputs_MD - start_D[None, :], kernel_DH, precision=highest)
    moves_NH = jnp.matmul(inputs_MD[1:] - inputs_MD[:-1], kernel_DH, precision=highest)
    preactivations_NH = jnp.matmul(inputs_MD[:-1], kernel_DH, precision=highest)

    steps = _with_left(anchor_D, moves_NH)
    # trace(G_i^T W_i) = a_0 W_i . (a_i - a_{i+1}) W_0, and a_0 W_i = a_i W_0.
    losses_N = -jax.vmap(inner_product)(preactivations_NH, moves_NH)
    points = _with_left(anchor_D, totals_MH)
    return Trajectory(
        points=points,
        final=jax.tree.map(lambda leaf: leaf[-1], points),
        step_norms_S=jax.vmap(frobenius_norm)(steps),
        losses_S=losses_N,
        steps=steps,
        gradients=_with_left(start_D, -moves_NH),
        step_size=1 / inner_product(start_D, start_D),
    )


def linear_loss(gradient: LowRank, kernel_DH: Array) -> Array:
    """``L_i(W) = trace(G_i^T W)``, the loss whose gradient in ``W`` is ``G_i`` everywhere.

    Args:
      gradient: one ``G_i`` of ``Trajectory.gradients``, without the leading axis.
      kernel_DH: (D, H), any ``W``.

    Raises:
      ValueError: not the factors of one gradient, or a kernel of another shape.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> inputs = jnp.array([[2.0, 0.0], [2.0, 1.0], [2.0, 1.5]])
      >>> path = anchored_trajectory(inputs, jnp.eye(2))
      >>> first = jax.tree.map(lambda leaf: leaf[0], path.gradients)
      >>> float(linear_loss(first, jnp.ones((2, 2))))
      -2.0
    """
    check_update("linear_loss", gradient)
    return dense_inner(gradient, kernel_DH)


def _with_left(left_D: Array, rights_XH: Array) -> LowRank:
    """Rank-1 updates that share their left vector, with a leading axis X."""
    lefts_X1D = jnp.broadcast_to(left_D[None, None, :], (rights_XH.shape[0], 1, left_D.shape[0]))
    return LowRank(lefts_X1D, rights_XH[:, None, :])
