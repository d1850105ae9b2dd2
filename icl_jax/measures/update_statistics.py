"""What a family of rank-1 updates looks like, from its factors in one pass.

The updates of all tokens in all layers are (L, K) pairs of vectors. Every number here comes from
those: no matrix of a kernel's size is built, and nothing larger than what is returned.
"""

from dataclasses import dataclass

import jax

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.measures.subspaces import effective_rank_of_updates
from icl_jax.measures.weight_space import alignment
from icl_jax.patches.low_rank import LowRank, frobenius_norm, subtract
from icl_jax.patches.vectors import vector_norm
from icl_jax.shown import short


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class UpdateStatistics:
    """Sizes and angles of updates with leading axes (..., K); X of them in all.

    Attributes:
      norms: (..., K), ``|dW|_F``.
      step_norms: (..., K - 1), ``|dW_{k+1} - dW_k|_F`` along the last leading axis.
      cosines_XX: (X, X), of every update with every other, the leading axes in row-major order; NaN
        where an update is zero, which has no direction.
      effective_rank: (), how many of the updates differ.

    Examples:
      >>> updates = LowRank(jnp.array([[[3.0, 4.0]], [[0.0, 1.0]]]), jnp.array([[[2.0]], [[3.0]]]))
      >>> found = update_statistics(updates)
      >>> jnp.round(found.norms, 4).tolist()
      [10.0, 3.0]
      >>> [round(float(cosine), 4) for cosine in found.cosines_XX[0]]
      [1.0, 0.8]
    """

    norms: Array
    step_norms: Array
    cosines_XX: Array
    effective_rank: Array

    __repr__ = short


def update_norms(updates: LowRank) -> Array:
    """``|dW|_F`` of rank-1 updates with any leading axes, (...), in float32 or wider.

    Examples:
      >>> updates = LowRank(jnp.array([[[3.0, 4.0]], [[0.0, 1.0]]]), jnp.array([[[2.0]], [[3.0]]]))
      >>> jnp.round(update_norms(updates), 4).tolist()
      [10.0, 3.0]
    """
    _check("update_norms", updates)
    return vector_norm(updates.left_RD[..., 0, :]) * vector_norm(updates.right_RH[..., 0, :])


def update_step_norms(updates: LowRank) -> Array:
    """``|dW_{k+1} - dW_k|_F`` along the last leading axis, (..., K - 1), of (..., K) updates.

    Of the difference itself, not of its square by inner products, which would lose half of the
    digits of small steps.

    Raises:
      ValueError: no leading axis, or not rank 1.

    Examples:
      >>> updates = LowRank(jnp.array([[[3.0, 4.0]], [[0.0, 4.0]]]), jnp.array([[[1.0]], [[1.0]]]))
      >>> jnp.round(update_step_norms(updates), 4).tolist()
      [3.0]
    """
    _check("update_step_norms", updates)
    if updates.left_RD.ndim < 3:
        raise ValueError(
            "update_step_norms: updates need a leading axis to step along, got factors of shape "
            f"{updates.left_RD.shape}."
        )
    before = jax.tree.map(lambda factors: factors[..., :-1, :, :], updates)
    after = jax.tree.map(lambda factors: factors[..., 1:, :, :], updates)
    leading = before.left_RD.shape[:-2]
    steps_X = jax.vmap(lambda old, new: frobenius_norm(subtract(new, old)))(
        _flat(before), _flat(after)
    )
    return steps_X.reshape(leading)


def update_statistics(updates: LowRank) -> UpdateStatistics:
    """Norms, step norms, all cosines and the effective rank of updates of one shape of kernel.

    Args:
      updates: rank-1 factors with one leading axis or more, (..., K, 1, D) and (..., K, 1, H): such
        as layers, then tokens (Innocenti and Achour's token and block alignment are the blocks and
        the stripes of the cosines), or prefixes of a context.

    Returns:
      The statistics, in float32 or wider; memory linear in them and in the factors.

    Raises:
      ValueError: no leading axis, or not rank 1.

    Examples:
      >>> updates = LowRank(jnp.array([[[3.0, 4.0]], [[0.0, 4.0]]]), jnp.array([[[1.0]], [[1.0]]]))
      >>> found = update_statistics(updates)
      >>> found.norms.tolist()
      [5.0, 4.0]

    Source: Innocenti and Achour (arXiv 2512.11255) for the cosines; Roy and Vetterli 2007 for the
      effective rank.
    """
    _check("update_statistics", updates)
    step_norms = update_step_norms(updates)
    rows = _flat(updates)
    return UpdateStatistics(
        norms=update_norms(updates),
        step_norms=step_norms,
        cosines_XX=alignment(rows),
        effective_rank=effective_rank_of_updates(rows),
    )


def _flat(updates: LowRank) -> LowRank:
    """The leading axes as one."""
    return jax.tree.map(lambda factors: factors.reshape(-1, *factors.shape[-2:]), updates)


def _check(where: str, updates: LowRank) -> None:
    left, right = updates.left_RD, updates.right_RH
    checks.floating(where, "updates.left_RD", left)
    checks.same_dtype(where, **{"updates.left_RD": left, "updates.right_RH": right})
    if left.ndim < 2 or left.shape[:-1] != right.shape[:-1] or left.shape[-2] != 1:
        raise ValueError(
            f"{where}: updates must be rank-1 factors (..., 1, D) and (..., 1, H) with the same "
            f"leading axes, got {left.shape} and {right.shape}."
        )
