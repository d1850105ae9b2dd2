"""How much each further token of a context still changes the weights.

On the anchored path ``W_i = (I + outer(v, a_i - a_0)) W_0`` the i-th step of the input factor has
the size ``|a_{i+1} - a_i| / |a_0|``: how much one token taught, without a kernel. A mean over i
independent tokens settles like ``1/i``; ``decay_exponent`` says how a context really does.
"""

import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.patches.low_rank import LowRank
from icl_jax.patches.token import dual_vector
from icl_jax.patches.vectors import vector_norm


def marginal_sizes(inputs_MD: Array) -> Array:
    """The sizes (N,) of the steps between N + 1 prefixes, each a Frobenius norm.

    Args:
      inputs_MD: (M, D), the MLP's input at the query after each prefix, the shortest first: a layer
        of ``prefix_pass(...).full``, or those of demonstrations' ends.

    Raises:
      ValueError: not a matrix of two rows or more, or (outside jit) a first row of length zero.

    Examples:
      >>> marginal_sizes(jnp.array([[2.0, 0.0], [2.0, 1.0], [2.0, 1.5]])).tolist()
      [0.5, 0.25]

    Source: Dherin et al. 2025 (arXiv 2507.16003), Proposition 3.1, with the kernel taken off.
    """
    _check("marginal_sizes", inputs_MD)
    checks.non_zero_rows("marginal_sizes", "inputs_MD", inputs_MD[:1])
    wide_MD = inputs_MD.astype(accumulator(inputs_MD.dtype))
    return vector_norm(wide_MD[1:] - wide_MD[:-1]) / vector_norm(wide_MD[0])


def marginal_updates(inputs_MD: Array) -> LowRank:
    """The steps themselves, ``outer(v, a_{i+1} - a_i)``, rank-1 factors with a leading axis N.

    For ``alignment`` and ``effective_rank_of_updates``.

    Args:
      inputs_MD: as in ``marginal_sizes``.

    Raises:
      ValueError: as there.

    Examples:
      >>> inputs = jnp.array([[2.0, 0.0], [2.0, 1.0], [2.0, 1.5]])  # after 0, 1 and 2 tokens
      >>> jax.vmap(as_matrix)(marginal_updates(inputs)).tolist()
      [[[0.0, 0.5], [0.0, 0.0]], [[0.0, 0.25], [0.0, 0.0]]]
    """
    _check("marginal_updates", inputs_MD)
    steps_ND = inputs_MD[1:] - inputs_MD[:-1]
    v_D = dual_vector(inputs_MD[0])
    return LowRank(jnp.broadcast_to(v_D, (len(steps_ND), 1, len(v_D))), steps_ND[:, None])


def decay_exponent(sizes_N: Array, *, first: int = 1) -> Array:
    """The slope of ``log size`` over ``log i`` by least squares, (): -1 for sizes that fall as 1/i.

    Args:
      sizes_N: (N,), step i from 1, all above zero (a zero makes the slope NaN).
      first: the first step that counts.

    Raises:
      ValueError: fewer than two steps from ``first`` on.

    Examples:
      >>> round(float(decay_exponent(3.0 / jnp.arange(1.0, 50.0))), 4)
      -1.0
    """
    checks.rank("decay_exponent", "sizes_N", sizes_N, 1, "(N)")
    checks.positive_int("decay_exponent", "first", first)
    if sizes_N.shape[0] < first + 1:
        raise ValueError(
            f"decay_exponent: sizes_N must have two steps or more from first={first} on, got "
            f"{sizes_N.shape[0]} in all."
        )
    dtype = accumulator(sizes_N.dtype)
    places_N = jnp.log(jnp.arange(first, sizes_N.shape[0] + 1, dtype=dtype))
    values_N = jnp.log(sizes_N[first - 1 :].astype(dtype))
    values_N = jnp.where(jnp.isfinite(values_N), values_N, jnp.nan)
    centred_N = places_N - jnp.mean(places_N)
    return jnp.sum(centred_N * values_N) / jnp.sum(centred_N**2)


def _check(where: str, inputs_MD: Array) -> None:
    checks.rank(where, "inputs_MD", inputs_MD, 2, "(M, D)")
    if inputs_MD.shape[0] < 2:
        raise ValueError(
            f"{where}: inputs_MD must hold two prefixes or more, got {inputs_MD.shape[0]}."
        )
