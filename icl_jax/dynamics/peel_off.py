"""The peel-off trajectory: context tokens removed from the left, one factor for each.

``W^(i+1) = (I + outer(v_{i+1}, a^(i) - a^(i+1))) W^(i)`` with ``a^(i) = A(c_{i+1}..c_n, x)`` and
``v_i = a^(i) / |a^(i)|^2``. Each factor moves what one token did from the input into the weights:
``a^(i) W^(i) = a^(0) W`` throughout. It ends at the same output on the query as the anchored
update, in another matrix, of rank up to n.
"""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.dynamics.trajectory import Trajectory
from icl_jax.patches.carry import varying_like
from icl_jax.patches.low_rank import LowRank, check_update, frobenius_norm
from icl_jax.patches.token import dual_vector


def peel_off_trajectory(inputs_MD: Array, kernel_DH: Array) -> Trajectory:
    """The weights as the context is peeled off the query.

    The product ``E_N ... E_1`` with ``E_r = I + outer(v_r, d_r)`` is ``I + sum_r outer(v_r, g_r)``
    where ``g_r = d_r + sum_{s<r} (d_r . v_s) g_s``: N small steps, and no D x D matrix.

    Args:
      inputs_MD: (M, D), ``a^(0)..a^(N)``: the kernel's input at the query with everything there
        first, and with nothing but the query last (``suffix_midpoints``).
      kernel_DH: (D, H), ``W``.

    Returns:
      The trajectory of S = N steps: ``final`` is ``W^(N) - W``, rank up to N, whose term r is what
      removing token r + 1 added (``steps``, one by one); its first i terms are point i (see
      ``first_factors``).

    Raises:
      ValueError: shapes that do not match, or fewer than two points. (A zero-length ``a^(i)`` with
        i > 0 gives NaN from its term on.)
      TypeError: dtypes that differ.

    Examples:
      >>> inputs = jnp.array([[2.0, 1.5], [2.0, 1.0], [2.0, 0.0]])  # 0, 1 and 2 tokens removed
      >>> path = peel_off_trajectory(inputs, jnp.eye(2))
      >>> jnp.round(inputs[-1] + apply_update(inputs[-1], path.final), 4).tolist()
      [2.0, 1.5]

    Source: Dherin et al. 2025 (arXiv 2507.16003v4), Proposition 2.6 and Corollary C.3.
    """
    checks.rank("peel_off_trajectory", "inputs_MD", inputs_MD, 2, "(M, D)")
    checks.rank("peel_off_trajectory", "kernel_DH", kernel_DH, 2, "(D, H)")
    checks.axis_size(
        "peel_off_trajectory", "kernel_DH", kernel_DH, 0, inputs_MD.shape[1], "the inputs' width"
    )
    checks.same_dtype("peel_off_trajectory", inputs_MD=inputs_MD, kernel_DH=kernel_DH)
    if inputs_MD.shape[0] < 2:
        raise ValueError(
            "peel_off_trajectory: inputs_MD must hold at least two rows (with and without one "
            f"token), got {inputs_MD.shape[0]}."
        )
    highest = jax.lax.Precision.HIGHEST
    deltas_ND = inputs_MD[:-1] - inputs_MD[1:]
    lefts_ND = jax.vmap(dual_vector)(inputs_MD[1:])
    overlaps_NN = jnp.tril(jnp.matmul(deltas_ND, lefts_ND.T, precision=highest), -1)
    factors_ND = _forward_substitution(overlaps_NN, deltas_ND)
    update = LowRank(lefts_ND, jnp.matmul(factors_ND, kernel_DH, precision=highest))
    terms = LowRank(update.left_RD[:, None, :], update.right_RH[:, None, :])
    return Trajectory(
        points=None, final=update, step_norms_S=jax.vmap(frobenius_norm)(terms), steps=terms
    )


def _forward_substitution(overlaps_NN: Array, deltas_ND: Array) -> Array:
    """``g = d + L g`` for a strictly lower triangular ``L``, row by row.

    A scan in place of LAPACK's triangular solve, for the reason given in ``vectors.row_triangle``.
    """

    def step(done_ND: Array, inputs: tuple[Array, Array, Array]) -> tuple[Array, None]:
        row, overlaps_N, delta_D = inputs
        carried_D = jnp.matmul(overlaps_N, done_ND, precision=jax.lax.Precision.HIGHEST)
        return done_ND.at[row].set(delta_D + carried_D), None

    rows_N = jnp.arange(deltas_ND.shape[0])
    start_ND = varying_like(jnp.zeros_like(deltas_ND), overlaps_NN, deltas_ND)
    return jax.lax.scan(step, start_ND, (rows_N, overlaps_NN, deltas_ND))[0]


def first_factors(update: LowRank, count: Array | int) -> LowRank:
    """``W^(count) - W``: the first terms of a peel-off update, the others set to zero.

    The shape stays the same, so ``count`` may be traced.

    Raises:
      ValueError: not the factors of one update, sides that do not fit, or no single count.
      TypeError: not floating point, or dtypes that differ.

    Examples:
      >>> inputs = jnp.array([[2.0, 1.5], [2.0, 1.0], [2.0, 0.0]])  # 0, 1 and 2 tokens removed
      >>> path = peel_off_trajectory(inputs, jnp.eye(2))
      >>> as_matrix(first_factors(path.final, 0)).tolist()
      [[0.0, 0.0], [0.0, 0.0]]
      >>> bool(jnp.allclose(as_matrix(first_factors(path.final, 2)), as_matrix(path.final)))
      True
    """
    check_update("first_factors", update)
    checks.rank("first_factors", "count", count, 0, "()")
    shown_R = jnp.arange(update.left_RD.shape[0]) < count
    right_RH = jnp.where(shown_R[:, None], update.right_RH, jnp.zeros_like(update.right_RH))
    return LowRank(update.left_RD, right_RH)
