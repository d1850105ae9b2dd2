"""Attention with its whole matrix of weights: the definition, and the quickest way for few rows.

Every other implementation is this one on a part of the rows, or is tested against it.
"""

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.kernels.attention.products import scores, sloped, soft_capped, weighted_sum
from icl_jax.kernels.attention.shapes import Sees, distances, visible


def softmax(scores_AMT: Array, sees_MT: Array, sinks_A: Array | None = None) -> tuple[Array, Array]:
    """Weights (A, M, T) over what each row sees, and the log of what they were divided by (A, M).

    A row that sees nothing has weights 0 and a log-sum-exp of -inf, and finite derivatives.
    """
    # Python's numbers would be weakly typed constants; the lowest number, not -inf, because
    # differences with it must not be NaN.
    lowest = jnp.asarray(jnp.finfo(scores_AMT.dtype).min, scores_AMT.dtype)
    masked_AMT = jnp.where(sees_MT[None], scores_AMT, lowest)
    top_AM = jax.lax.stop_gradient(jnp.max(masked_AMT, axis=-1))
    if sinks_A is not None:
        sinks_A1 = sinks_A.astype(scores_AMT.dtype)[:, None]
        top_AM = jnp.maximum(top_AM, jax.lax.stop_gradient(sinks_A1))
    # Shifted by zero where nothing is seen, so that what is masked stays at zero there, too.
    top_AM = jnp.where(top_AM > lowest, top_AM, jnp.zeros_like(top_AM))
    unscaled_AMT = jnp.exp(masked_AMT - top_AM[..., None])
    total_AM = jnp.sum(unscaled_AMT, axis=-1)
    if sinks_A is not None:
        total_AM = total_AM + jnp.exp(sinks_A1 - top_AM)
    empty_AM = total_AM == 0
    safe_AM = jnp.where(empty_AM, jnp.ones_like(total_AM), total_AM)
    infinite_AM = jnp.full_like(top_AM, -jnp.inf)
    return (
        unscaled_AMT / safe_AM[..., None],
        jnp.where(empty_AM, infinite_AM, top_AM + jnp.log(safe_AM)),
    )


def attend(
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None = None,
    sinks_A: Array | None = None,
    slopes_A: Array | None = None,
) -> tuple[Array, Array]:
    """Softmax attention, see ``api.attend``; ``sees`` is filled."""
    scores_AMT = scores(query_MAF, key_TGF)
    if slopes_A is not None:
        scores_AMT = sloped(scores_AMT, distances(sees), slopes_A)
    capped_AMT = soft_capped(scores_AMT, cap)
    weights_AMT, log_sum_exp_AM = softmax(capped_AMT, visible(sees), sinks_A)
    return weighted_sum(weights_AMT, value_TGF), log_sum_exp_AM


def accumulate(query_MAF: Array, key_TGF: Array, value_TGF: Array, sees: Sees) -> Array:
    """Linear attention, see ``api.accumulate``; ``sees`` is filled."""
    scores_AMT = scores(query_MAF, key_TGF)
    weights_AMT = jnp.where(visible(sees)[None], scores_AMT, jnp.zeros_like(scores_AMT))
    return weighted_sum(weights_AMT, value_TGF)


def merge(
    first_MAF: Array, first_AM: Array, second_MAF: Array, second_AM: Array
) -> tuple[Array, Array]:
    """What ``attend`` gives over two disjoint sets of columns, from what it gives over each.

    ``o = (e^l1 o1 + e^l2 o2) / (e^l1 + e^l2)`` and ``l = log(e^l1 + e^l2)``: THEORY 3, where the
    second set is a probe itself, ``o2 = v_self`` and ``l2 = s_self``. Either may be empty
    (``l = -inf``). Sinks belong into one of the two only.

    Args:
      first_MAF: (M, A, F), mixed values over the first set of columns.
      first_AM: (A, M), its log-sum-exp.
      second_MAF: (M, A, F), over the second set.
      second_AM: (A, M).

    Returns:
      Mixed values (M, A, F) in the dtype of the first, and the log-sum-exp (A, M).
    """
    checks.same_shape("merge", first_MAF=first_MAF, second_MAF=second_MAF)
    checks.same_shape("merge", first_AM=first_AM, second_AM=second_AM)
    checks.same_dtype("merge", first_MAF=first_MAF, second_MAF=second_MAF)
    checks.same_dtype("merge", first_AM=first_AM, second_AM=second_AM)
    top_AM = jax.lax.stop_gradient(jnp.maximum(first_AM, second_AM))
    top_AM = jnp.where(top_AM > -jnp.inf, top_AM, jnp.zeros_like(top_AM))
    weight_1_AM, weight_2_AM = jnp.exp(first_AM - top_AM), jnp.exp(second_AM - top_AM)
    total_AM = weight_1_AM + weight_2_AM
    empty_AM = total_AM == 0
    safe_AM = jnp.where(empty_AM, jnp.ones_like(total_AM), total_AM)
    dtype = accumulator(first_MAF.dtype)
    mixed_MAF = (weight_1_AM / safe_AM).T[..., None].astype(dtype) * first_MAF.astype(dtype)
    mixed_MAF += (weight_2_AM / safe_AM).T[..., None].astype(dtype) * second_MAF.astype(dtype)
    infinite_AM = jnp.full_like(top_AM, -jnp.inf)
    log_sum_exp_AM = jnp.where(empty_AM, infinite_AM, top_AM + jnp.log(safe_AM))
    return mixed_MAF.astype(first_MAF.dtype), log_sum_exp_AM
