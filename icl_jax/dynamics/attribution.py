"""Which context token and which head an update came from.

Attention is a sum: ``A(S)_k = sum_{head, j} weight_j passed_j``. Taking the removed tokens out of a
softmax rescales what is left, so the change is again a sum over the removed ones,
``A_S - A_K = sum_{head, j in Y} weight_j (passed_j - A_K,head)``; without a softmax the others stay
as they are and ``passed_j`` alone counts. No gradients, no heuristics: the contributions add up to
the update.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array
from icl_jax.patches.low_rank import LowRank, inner_product, outer
from icl_jax.patches.token import dual_vector


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attribution:
    """The update of one kept position, split over heads and tokens; ``dW`` is never built.

    Attributes:
      v_D: (D,), the left vector that all terms share.
      contributions_ATD: (A, T, D), what each head reading each token adds to the MLP's input; zero
        at kept tokens.
      remainder_D: (D,), what no token contributes: the change of the norm's denominator between the
        attention and the kernel. Exactly zero where no norm stands there.
    """

    v_D: Array
    contributions_ATD: Array
    remainder_D: Array


def attention_contributions(
    weights_AT: Array,
    passed_ATD: Array,
    kept_T: Array,
    *,
    normalised: bool,
) -> Array:
    """The change of an attention layer's output, split over heads and removed tokens.

    Args:
      weights_AT: (A, T), the attention weights of one position with everything there; zero at
        tokens that it does not see.
      passed_ATD: (A, T, D), ``value_aj W_out,a``: what token j passes on through head a.
      kept_T: (T,), True at kept positions.
      normalised: whether the weights are renormalised when tokens go (softmax) or not (linear
        attention).

    Returns:
      (A, T, D); its sum over heads and tokens is ``A_S - A_K``.

    Raises:
      ValueError: shapes that do not match.
      TypeError: ``kept_T`` is not boolean.

    Source: Dherin et al. 2025 (arXiv 2507.16003) for the update; the split is worked out for this
      library (for ``K = {x}`` it is ``weight_j (W_OV c_j - W_OV x)``).
    """
    checks.rank("attention_contributions", "weights_AT", weights_AT, 2, "(A, T)")
    checks.rank("attention_contributions", "passed_ATD", passed_ATD, 3, "(A, T, D)")
    checks.same_shape("attention_contributions", weights=weights_AT, passed=passed_ATD[..., 0])
    checks.axis_size("attention_contributions", "kept_T", kept_T, 0, weights_AT.shape[1], "T")
    if jnp.result_type(kept_T) != jnp.bool_:
        raise TypeError(
            "attention_contributions: kept_T must be a boolean mask over the sequence, got dtype "
            f"{jnp.result_type(kept_T)}."
        )
    weights_AT = weights_AT.astype(passed_ATD.dtype)
    removed_AT = jnp.where(kept_T[None, :], jnp.zeros_like(weights_AT), weights_AT)
    if not normalised:
        return removed_AT[..., None] * passed_ATD
    staying_AT = weights_AT - removed_AT
    share_A1 = jnp.sum(staying_AT, axis=-1, keepdims=True)
    kept_output_AD = jnp.einsum(
        "at,atd->ad", staying_AT / share_A1, passed_ATD, precision=jax.lax.Precision.HIGHEST
    )
    return removed_AT[..., None] * (passed_ATD - kept_output_AD[:, None, :])


def attribute_update(
    contributions_ATD: Array, full_D: Array, kept_D: Array, *, has_norm: bool
) -> Attribution:
    """Attributes a token update to heads and tokens.

    Args:
      contributions_ATD: (A, T, D), ``attention_contributions``, mapped to the MLP's input: through
        the norm with its denominator frozen at the value it has with the context, if there is one.
      full_D: (D,), ``z_S``.
      kept_D: (D,), ``z_K``.
      has_norm: whether a norm stands between the attention and the MLP's kernel.

    Returns:
      The attribution; ``contribution_update`` gives each part as factors.

    Raises:
      ValueError, TypeError: as ``dual_vector``; shapes or dtypes that do not match.
    """
    checks.rank("attribute_update", "contributions_ATD", contributions_ATD, 3, "(A, T, D)")
    checks.same_shape("attribute_update", full_D=full_D, kept_D=kept_D)
    checks.same_dtype(
        "attribute_update", contributions_ATD=contributions_ATD, full_D=full_D, kept_D=kept_D
    )
    remainder_D = jnp.zeros_like(full_D)
    if has_norm:
        remainder_D = (full_D - kept_D) - jnp.sum(contributions_ATD, axis=(0, 1))
    return Attribution(dual_vector(kept_D), contributions_ATD, remainder_D)


def contribution_update(
    attribution: Attribution, head: int, token: int, kernel_DH: Array
) -> LowRank:
    """What one head reading one token adds to ``dW``, as factors."""
    return outer(
        attribution.v_D,
        jnp.matmul(
            attribution.contributions_ATD[head, token],
            kernel_DH,
            precision=jax.lax.Precision.HIGHEST,
        ),
    )


def summed_update(attribution: Attribution, kernel_DH: Array) -> LowRank:
    """All contributions and the remainder together: the token update again."""
    total_D = jnp.sum(attribution.contributions_ATD, axis=(0, 1)) + attribution.remainder_D
    return outer(
        attribution.v_D, jnp.matmul(total_D, kernel_DH, precision=jax.lax.Precision.HIGHEST)
    )


def contribution_norms(attribution: Attribution, kernel_DH: Array) -> Array:
    """``|dW|_F`` of every contribution, (A, T)."""
    mapped_ATH = jnp.matmul(
        attribution.contributions_ATD, kernel_DH, precision=jax.lax.Precision.HIGHEST
    )
    length = jnp.sqrt(inner_product(attribution.v_D, attribution.v_D))
    return length * jnp.linalg.norm(mapped_ATH, axis=-1)


def contribution_shares(attribution: Attribution, kernel_DH: Array) -> Array:
    """The signed share of every contribution in ``dW``, (A, T): ``<dW_aj, dW> / |dW|^2``.

    The shares and the remainder's add up to 1, so they can be read as parts of the whole.
    """
    highest = jax.lax.Precision.HIGHEST
    total_D = jnp.sum(attribution.contributions_ATD, axis=(0, 1)) + attribution.remainder_D
    total_H = jnp.matmul(total_D, kernel_DH, precision=highest)
    mapped_ATH = jnp.matmul(attribution.contributions_ATD, kernel_DH, precision=highest)
    return jnp.matmul(mapped_ATH, total_H, precision=highest) / inner_product(total_H, total_H)
