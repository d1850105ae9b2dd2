"""Which context token and which head an update came from.

Attention is a sum: ``A(S)_k = sum_{head, j} weight_j passed_j``. Taking the removed tokens out of a
softmax rescales what is left, so the change is again a sum over the removed ones,
``A_S - A_K = sum_{head, j in Y} weight_j (passed_j - A_K,head)``; without a softmax the others stay
as they are and ``passed_j`` alone counts. A sink is one more token that stays and passes on zero,
so the sum is the same one. No gradients, no heuristics: the contributions add up to the update.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.patches.token import dual_vector
from icl_jax.shown import short
from icl_jax.stack.block import ContextualBlock

#: What of a block is attributed: the change of the MLP's input, or that of the residual stream.
Part = Literal["mlp_input", "residual"]
PARTS = ("mlp_input", "residual")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Attribution:
    """The update of one kept position, split over heads and tokens; ``dW`` is never built.

    Attributes:
      v_D: (D,), the left vector that all terms share; (1,), the number 1, of a residual stream.
      contributions_ATD: (A, T, D), what each head reading each token adds to the MLP's input; zero
        at kept tokens.
      remainder_D: (D,), what no token contributes: the change of the norm's denominator between the
        attention and the kernel. Exactly zero where no norm stands there.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> found = attribute_block(*functional(stack, params)[0], stream, [5])
      >>> one = jax.tree.map(lambda leaf: leaf[0], found)  # of the one kept position
      >>> one.v_D.shape, one.contributions_ATD.shape
      ((8,), (2, 6, 8))
      >>> jnp.abs(one.contributions_ATD[:, 5]).max().item()  # what is kept contributes nothing
      0.0
    """

    v_D: Array
    contributions_ATD: Array
    remainder_D: Array

    __repr__ = short


def attention_contributions(
    weights_AT: Array,
    passed_ATD: Array,
    kept_T: Array,
    *,
    normalised: bool,
    sink_A: Array | None = None,
) -> Array:
    """The change of an attention layer's output, split over heads and removed tokens.

    Args:
      weights_AT: (A, T), the attention weights of one position with everything there; zero at
        tokens that it does not see.
      passed_ATD: (A, T, D), ``value_aj W_out,a``: what token j passes on through head a.
      kept_T: (T,), True at kept positions.
      normalised: whether the weights are renormalised when tokens go (softmax) or not (linear
        attention).
      sink_A: (A,), the weight of a sink, which stays and passes on nothing; None for none.

    Returns:
      (A, T, D); its sum over heads and tokens is ``A_S - A_K``.

    Raises:
      ValueError: shapes that do not match.
      TypeError: ``kept_T`` is not boolean.

    Examples:
      >>> weights = jnp.array([[0.5, 0.25, 0.25]])  # one head, three tokens
      >>> passed = jnp.array([[[4.0], [8.0], [0.0]]])
      >>> kept = jnp.array([False, False, True])
      >>> attention_contributions(weights, passed, kept, normalised=True).tolist()
      [[[2.0], [2.0], [0.0]]]

    Source: Dherin et al. 2025 (arXiv 2507.16003) for the update; the split is worked out for this
      library (for ``K = {x}`` it is ``weight_j (W_OV c_j - W_OV x)``).
    """
    checks.rank("attention_contributions", "weights_AT", weights_AT, 2, "(A, T)")
    checks.rank("attention_contributions", "passed_ATD", passed_ATD, 3, "(A, T, D)")
    checks.same_shape("attention_contributions", weights=weights_AT, passed=passed_ATD[..., 0])
    checks.mask("attention_contributions", "kept_T", kept_T, weights_AT.shape[1], "T")
    weights_AT = weights_AT.astype(passed_ATD.dtype)
    removed_AT = jnp.where(kept_T[None, :], jnp.zeros_like(weights_AT), weights_AT)
    if not normalised:
        return removed_AT[..., None] * passed_ATD
    staying_AT = weights_AT - removed_AT
    share_A1 = jnp.sum(staying_AT, axis=-1, keepdims=True)
    if sink_A is not None:
        share_A1 = share_A1 + sink_A.astype(share_A1.dtype)[:, None]
    kept_output_AD = jnp.einsum(
        "at,atd->ad", staying_AT / share_A1, passed_ATD, precision=jax.lax.Precision.HIGHEST
    )
    return removed_AT[..., None] * (passed_ATD - kept_output_AD[:, None, :])


class AttentionBlock(ContextualBlock, Protocol):
    """A contextual block whose contextual layer is a sum over heads and tokens."""

    @property
    def normalised(self) -> bool | None:
        """Whether the weights are renormalised when tokens go (softmax); None: not said."""

    @property
    def has_sink(self) -> bool:
        """Whether they add up to 1 only together with a sink's, which stays."""

    def sink_weights(
        self,
        params: Params,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
        rows_M: Array | None = None,
    ) -> Array:
        """The sink's weights (A, M), where there is one."""

    @property
    def has_norm(self) -> bool:
        """Whether a norm stands between the sum and the MLP's input."""

    def parts(
        self,
        params: Params,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
        rows_M: Array | None = None,
    ) -> tuple[Array, Array, tuple[Array, Array]]:
        """Of the rows in these places the weights (A, M, T); what is passed on (A, T, D); and what
        norms read: the sum, and the residual stream with it, each (T, D)."""

    def to_mlp_input(
        self, params: Params, changes_ND: Array, references: tuple[Array, Array]
    ) -> Array:
        """Changes of the sum as changes of the MLP's input, the norms' denominators frozen."""

    @property
    def norms_residual(self) -> bool:
        """Whether a norm stands between the sum and the residual stream; for ``residual`` only."""

    def to_residual(
        self, params: Params, changes_ND: Array, references: tuple[Array, Array]
    ) -> Array:
        """Changes of the sum as changes of the residual stream; for ``residual`` only."""


def attribute_block(
    block: AttentionBlock,
    params: Params,
    stream_TD: Array,
    kept_K: Array | Sequence[int],
    *,
    positions_T: Array | None = None,
    present_T: Array | None = None,
    present_K: Array | None = None,
    rows_X: Array | None = None,
    of: Part = "mlp_input",
) -> Attribution:
    """Attributes the patch of every kept position of one block to heads and removed tokens.

    Args:
      block: an attention block.
      params: its parameters.
      stream_TD: (T, D), the embedded sequence, everything there.
      kept_K: (K,), the kept positions, increasing.
      positions_T: (T,), position ids; 0..T-1 when left out.
      present_T: (T,), False where a position is padding.
      present_K: (K,), False where a kept row is padding, which may then be any row again.
      rows_X: (X,), which of the kept positions to attribute, by their numbers among the K; all of
        them when left out.
      of: ``mlp_input`` for the input patch; ``residual`` for the output patch: the change ``r`` of
        the residual stream as that of a bias, ``outer(1, r)``, with ``v_D`` the number 1.

    Returns:
      The attributions, with a leading axis K (or X).

    Raises:
      ValueError: a sequence, position ids or a mask that cannot be, bad kept positions
        (``checks.kept_positions``) or rows of them, a parallel block (whose MLP input does not
        change), or (outside jit) an MLP input of length zero.
      TypeError: the contextual layer is no sum over heads and tokens; dtypes that cannot be.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> block, block_params = functional(stack, params)[0]
      >>> found = attribute_block(block, block_params, stream, [5])  # keep the last token only
      >>> found.contributions_ATD.shape  # one kept position, two heads, six tokens
      (1, 2, 6, 8)
    """
    checks.one_of("attribute_block", "of", of, PARTS)
    if of == "residual" and not getattr(block, "has_skip", False):
        raise ValueError(
            "attribute_block: of='residual' needs a block that has (and says so in has_skip) a "
            "residual stream around its MLP that the context is added to; elsewhere no output "
            "patch gives that back."
        )
    if of == "mlp_input" and not block.patches_input:
        raise ValueError(
            "attribute_block: a parallel block's MLP reads nothing of the context, so its input "
            "patch is zero and there is nothing to attribute. Its output patch has of='residual'."
        )
    where = "attribute_block"
    checks.rank(where, "stream_TD", stream_TD, 2, "(T, D)")
    checks.floating(where, "stream_TD", stream_TD)
    checks.places(where, stream_TD.shape[0], positions_T, present_T)
    # In a program, rows may be padding: fewer are kept than there are, perhaps.
    some_removed = checks.is_concrete(kept_K) and present_K is None
    kept_K = jnp.asarray(
        checks.positions(where, kept_K, stream_TD.shape[0], some_removed=some_removed)
    )
    if present_K is not None:
        checks.mask(where, "present_K", present_K, kept_K.shape[0], "one per kept position")
    if rows_X is not None:
        _check_rows(rows_X, kept_K.shape[0])
    if positions_T is None:
        positions_T = jnp.arange(stream_TD.shape[0], dtype=jnp.int32)
    if present_K is None and present_T is not None:
        present_K = present_T[kept_K]
    full = block.contextual(params, stream_TD, positions_T=positions_T, present_T=present_T)
    kept = block.contextual(
        params,
        stream_TD[kept_K],
        positions_T=positions_T[kept_K],
        present_T=present_K,
    )
    # Nobody is asked how the other rows read: the memory is linear in the context.
    rows_X = jnp.arange(kept_K.shape[0], dtype=jnp.int32) if rows_X is None else rows_X
    places: dict[str, Any] = {"positions_T": positions_T, "present_T": present_T}
    places["rows_M"] = kept_K[rows_X]
    weights_AXT, passed_ATD, (mixed_TD, residual_TD) = block.parts(params, stream_TD, **places)
    normalised = block.normalised
    if normalised is None:
        raise ValueError(
            "attribute_block: the contextual layer does not say whether its weights add up to 1, "
            "and the split depends on it. Define the property normalised in the layer (True for a "
            "softmax), and ask check_layer whether it is so."
        )
    sink_AX = block.sink_weights(params, stream_TD, **places) if block.has_sink else None
    kept_T = jnp.zeros(stream_TD.shape[0], bool).at[kept_K].set(True)

    is_input = of == "mlp_input"
    to_part = block.to_mlp_input if is_input else block.to_residual
    has_norm = block.has_norm if is_input else block.norms_residual

    def one(
        weights_AT: Array, sink_A: Array | None, sums: tuple[Array, Array], *ends: Array
    ) -> Attribution:
        kept_D, full_D = ends
        changes_ATD = attention_contributions(
            weights_AT, passed_ATD, kept_T, normalised=normalised, sink_A=sink_A
        )
        rows_ND = changes_ATD.reshape(-1, changes_ATD.shape[-1])
        mapped_ND = to_part(params, rows_ND, sums)
        contributions_ATD = mapped_ND.reshape(changes_ATD.shape)
        remainder_D = jnp.zeros_like(kept_D)
        if has_norm:
            remainder_D = full_D - kept_D - jnp.sum(contributions_ATD, axis=(0, 1))
        v_D = dual_vector(kept_D) if is_input else jnp.ones_like(kept_D[:1])
        return Attribution(v_D, contributions_ATD, remainder_D)

    if is_input:
        checks.non_zero_rows("attribute_block", "the MLP's input", kept.mlp_input_TD)
        sides = (kept.mlp_input_TD, full.mlp_input_TD[kept_K])
    else:
        assert kept.residual_TD is not None and full.residual_TD is not None  # It has a skip.
        sides = (kept.residual_TD, full.residual_TD[kept_K])
    sums = (mixed_TD[places["rows_M"]], residual_TD[places["rows_M"]])
    ends = (side_KD[rows_X] for side_KD in sides)
    axes = (1, 1, 0, 0, 0)
    return jax.vmap(one, in_axes=axes)(weights_AXT, sink_AX, sums, *ends)


def _check_rows(rows_X: Array, count: int) -> None:
    """Raises where ``rows_X`` does not number kept positions: JAX would read others."""
    checks.rank("attribute_block", "rows_X", rows_X, 1, "(X)")
    if not jnp.issubdtype(jnp.result_type(rows_X), jnp.integer):
        raise TypeError(f"attribute_block: rows_X must be integers, got {jnp.result_type(rows_X)}.")
    if checks.is_concrete(rows_X) and any(not 0 <= row < count for row in rows_X.tolist()):
        raise ValueError(
            f"attribute_block: rows_X must number the {count} kept positions, from 0 to "
            f"{count - 1}, got {rows_X.tolist()}."
        )
