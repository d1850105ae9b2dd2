"""The update of a context, taken apart by groups of its tokens: demonstrations, sentences, tokens.

All that is asked of the parts (how large, how much of the whole, how alike, which few come nearest
to it) is in their inner products, a matrix of N + 1 by N + 1 whatever the width.
"""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.dynamics.attribution import Attribution
from icl_jax.dynamics.leave_out import check_groups
from icl_jax.patches.vectors import inner_product


def group_gram(attribution: Attribution, groups_NT: Array) -> Array:
    """Inner products of what N groups of tokens add to the update, and of the rest, (N + 1, N + 1).

    The update is that of the input factor, which all kernels that read the MLP's input share:
    ``outer(v, c)`` with ``c`` a sum over tokens. ``gram_XX[i, j] = |v|^2 c_i . c_j``, the last row
    that of tokens in no group and of a norm's remainder; the sum of all entries is ``|dW|_F^2``.

    Args:
      attribution: of one kept position.
      groups_NT: (N, T) booleans, the tokens of each group; no token in two.

    Raises:
      ValueError: several positions at once, or shapes that do not fit.
      TypeError: ``groups_NT`` is not boolean.

    Examples:
      >>> from icl_jax.dynamics.attribution import Attribution
      >>> parts = jnp.array([[[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]]])  # one head, three tokens
      >>> found = Attribution(jnp.array([1.0, 0.0]), parts, jnp.zeros(2))
      >>> groups = jnp.array([[True, False, False], [False, True, False]])  # the last token is kept
      >>> group_gram(found, groups).tolist()
      [[9.0, 0.0, 0.0], [0.0, 16.0, 0.0], [0.0, 0.0, 0.0]]

    Source: worked out for this library, from the split of THEORY section 4.
    """
    where = "group_gram"
    parts_ATD = attribution.contributions_ATD
    checks.rank(where, "contributions_ATD", parts_ATD, 3, "(A, T, D)")
    check_groups(where, groups_NT, parts_ATD.shape[1])
    dtype = accumulator(parts_ATD.dtype)
    tokens_TD = jnp.sum(parts_ATD, axis=0, dtype=dtype)
    rest_T = ~jnp.any(groups_NT, axis=0)
    member_XT = jnp.concatenate([groups_NT, rest_T[None]]).astype(dtype)
    highest = jax.lax.Precision.HIGHEST
    parts_XD = jnp.matmul(member_XT, tokens_TD, precision=highest)
    parts_XD = parts_XD.at[-1].add(attribution.remainder_D.astype(dtype))
    v_D = attribution.v_D.astype(dtype)
    return jnp.matmul(parts_XD, parts_XD.T, precision=highest) * inner_product(v_D, v_D)


def group_sizes(gram_XX: Array) -> Array:
    """``|dW_i|_F`` of each part, (X,), in float32 or wider.

    Raises:
      ValueError: not square.
      TypeError: not floating point.

    Examples:
      >>> gram = jnp.diag(jnp.array([9.0, 16.0, 0.0]))  # two groups, and no rest
      >>> group_sizes(gram).tolist()
      [3.0, 4.0, 0.0]
    """
    return jnp.sqrt(jnp.diagonal(_square("group_sizes", gram_XX)))


def group_shares(gram_XX: Array) -> Array:
    """The signed share ``<dW_i, dW> / |dW|^2`` of each part, (X,); they add up to 1.

    Raises:
      ValueError: not square.
      TypeError: not floating point.

    Examples:
      >>> gram = jnp.array([[4.0, -1.0], [-1.0, 2.0]])  # the rest works against a group
      >>> group_shares(gram).tolist()
      [0.75, 0.25]
    """
    wide_XX = _square("group_shares", gram_XX)
    return jnp.sum(wide_XX, axis=1) / jnp.sum(wide_XX)


def group_cosines(gram_XX: Array) -> Array:
    """Cosines between what the parts add, (X, X); NaN where a part adds nothing.

    Raises:
      ValueError: not square.
      TypeError: not floating point.

    Examples:
      >>> group_cosines(jnp.array([[4.0, -3.0], [-3.0, 9.0]])).tolist()
      [[1.0, -0.5], [-0.5, 1.0]]
    """
    wide_XX = _square("group_cosines", gram_XX)
    sizes_X = jnp.sqrt(jnp.diagonal(wide_XX))
    return wide_XX / sizes_X[:, None] / sizes_X[None, :]


def choose_by_update(gram_XX: Array, count: int) -> tuple[Array, Array]:
    """Groups, one after another, whose sum points most nearly where the whole update does.

    Greedy: each next one makes the cosine between the chosen parts' sum and the whole largest. The
    length does not count: attention gives to those that stay what the others had. One choice for
    several layers: give the sum of their matrices, each divided by its own sum, so that every layer
    counts the same.

    Args:
      gram_XX: (X, X) of ``group_gram``; its last part, the rest, is never chosen.
      count: how many to choose, at most X - 1.

    Returns:
      The chosen groups in their order, (count,), and the cosine after each, (count,).

    Raises:
      ValueError: not square, or more than there are.
      TypeError: not floating point.

    Examples:
      >>> gram = jnp.diag(jnp.array([9.0, 16.0, 0.0]))  # two groups, and no rest
      >>> order, cosines = choose_by_update(gram, 2)
      >>> order.tolist(), [round(float(cosine), 4) for cosine in cosines]
      ([1, 0], [0.8, 1.0])
    """
    where = "choose_by_update"
    gram_XX = _square(where, gram_XX)
    checks.positive_int(where, "count", count)
    groups = gram_XX.shape[0] - 1
    if count > groups:
        raise ValueError(f"{where}: count must be at most the {groups} groups, got {count}.")
    along_N = jnp.sum(gram_XX, axis=1)[:groups]
    whole = jnp.sum(gram_XX)

    def step(
        state: tuple[Array, Array, Array], _: None
    ) -> tuple[tuple[Array, Array, Array], tuple[Array, Array]]:
        chosen_N, dot, square = state
        crossed_N = jnp.sum(jnp.where(chosen_N[None], gram_XX[:groups, :groups], 0), axis=1)
        squares_N = square + 2 * crossed_N + jnp.diagonal(gram_XX)[:groups]
        cosines_N = (dot + along_N) / jnp.sqrt(squares_N * whole)
        usable_N = ~chosen_N & jnp.isfinite(cosines_N)
        best = jnp.argmax(jnp.where(usable_N, cosines_N, jnp.where(chosen_N, -jnp.inf, -2.0)))
        state = (chosen_N.at[best].set(True), dot + along_N[best], squares_N[best])
        return state, (best, cosines_N[best])

    zero = jnp.zeros((), gram_XX.dtype)
    start = (jnp.zeros(groups, bool), zero, zero)
    _, (order_K, cosines_K) = jax.lax.scan(step, start, length=count)
    return order_K, cosines_K


def _square(where: str, gram_XX: Array) -> Array:
    """The matrix in float32 or wider, after checking that it is one of inner products."""
    checks.rank(where, "gram_XX", gram_XX, 2, "(X, X)")
    checks.floating(where, "gram_XX", gram_XX)
    checks.axis_size(where, "gram_XX", gram_XX, 1, gram_XX.shape[0], "as many as rows")
    return gram_XX.astype(accumulator(gram_XX.dtype))
