"""The queries that a static patch is fitted on, and what each block sees of them.

A row is one token of one query, in two runs: with its context and without.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, Params, accumulator
from icl_jax.patches.block import NormedBlock
from icl_jax.patches.fit import Side
from icl_jax.patches.normed import OutputNorm
from icl_jax.shown import short
from icl_jax.stack.block import ContextualBlock, Midpoint, apply_block
from icl_jax.stack.layers import Layers
from icl_jax.stack.settled import settled

#: A norm's gain near zero asks for a huge change in front of it: below this share of the mean
#: square of the gains an entry is asked for less, and its change is given up.
GAIN_DAMPING = 0.1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Queries:
    """B calibration queries, each with its context and without, embedded.

    Attributes:
      full_BTD: (B, T, D), with everything.
      kept_BKD: (B, K, D), the kept tokens alone.
      rows_BK: (B, K), where these stand among the T.
      fitted_BK: (B, K) booleans, whose states are fitted; padding is not.
      positions_BT, positions_BK: position ids of the two; 0.. when None.
      present_BT, present_BK: False at padding that others would read; None where nobody does.
      anchored: whether the first kept token is one and the same in front of every context, such as
        a BOS: the context cannot change it, so the patches are made to leave its states alone.

    Examples:
      >>> whole = jax.random.normal(jax.random.key(0), (3, 6, 8))  # three queries of two tokens
      >>> rows = jnp.tile(jnp.array([4, 5]), (3, 1))  # behind four of context
      >>> queries = Queries(whole, whole[:, 4:], rows, jnp.ones((3, 2), bool))
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> params = stack.init(jax.random.key(1), jnp.zeros((6, 3)))["params"]
      >>> patches = fit_static(functional(stack, params), queries, Fit(rank=2))
      >>> patches[0].input.left_RD.shape, patches[0].down.left_RD.shape
      ((2, 8), (2, 16))
    """

    full_BTD: Array
    kept_BKD: Array
    rows_BK: Array
    fitted_BK: Array
    positions_BT: Array | None = None
    positions_BK: Array | None = None
    present_BT: Array | None = None
    present_BK: Array | None = None
    anchored: bool = field(default=False, metadata={"static": True})

    __repr__ = short


@runtime_checkable
class DownBlock(Protocol):
    """What a block says of its down kernel; one that says nothing has one for all tokens."""

    @property
    def shares_down(self) -> bool:
        """Whether every token goes through the same down kernel (not so among experts)."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """The rows of all queries, N = B K: midpoints (N, D) in both runs, and which are fitted."""

    full: Midpoint
    kept: Midpoint
    fitted_N: Array


def midpoints(
    block: ContextualBlock,
    params: Params,
    state: tuple[Array, Array],
    queries: Queries,
    chunk: int,
) -> tuple[Array, Midpoint, Midpoint]:
    """The full run's output (B, T, D), and both runs' midpoints (B, K, D) at the kept tokens."""

    def plain(one: Any) -> tuple[Array, Midpoint]:
        stream_TD, positions_T, present_T, rows_K = one
        full = block.contextual(params, stream_TD, positions_T=positions_T, present_T=present_T)
        kept_rows = jax.tree.map(lambda rows_TD: rows_TD[rows_K], full)
        return apply_block(block, params, full), kept_rows

    def alone(one: Any) -> Midpoint:
        stream_KD, positions_K, present_K = one
        return block.contextual(params, stream_KD, positions_T=positions_K, present_T=present_K)

    whole = (state[0], queries.positions_BT, queries.present_BT, queries.rows_BK)
    full_BTD, full = jax.lax.map(plain, whole, batch_size=chunk)
    rest = (state[1], queries.positions_BK, queries.present_BK)
    return settled((full_BTD, full, jax.lax.map(alone, rest, batch_size=chunk)))


def missing_output(
    block: ContextualBlock, params: Params, rows: Rows, read_ND: Array
) -> tuple[Array, Array]:
    """Hidden activations of what the MLP reads, and what the output lacks in front of a norm on it.

    That of the sum (post-norm); a norm on the MLP's output alone is behind what is compared.
    """
    kept = Midpoint(rows.kept.residual_TD, read_ND)
    hidden_NH = block.hidden(params, read_ND, None)
    if not isinstance(block, NormedBlock) or block.norms_output:
        kept_ND = block.output(params, kept, hidden_NH, None)
        return hidden_NH, apply_block(block, params, rows.full) - kept_ND
    full_NH = block.hidden(params, rows.full.mlp_input_TD, None)
    full_ND = block.mlp_output(params, rows.full.mlp_input_TD, full_NH, None)
    missing_ND = full_ND - block.mlp_output(params, read_ND, hidden_NH, None)
    if rows.full.residual_TD is not None and kept.residual_TD is not None:
        missing_ND = missing_ND + (rows.full.residual_TD - kept.residual_TD)
    return hidden_NH, missing_ND


def down_rows(
    block: ContextualBlock, params: Params, rows: Rows, read_ND: Array | None
) -> tuple[Array, Array]:
    """Hidden activations, and what the down kernel would have to add to its output, (N, D)."""
    read_ND = rows.kept.mlp_input_TD if read_ND is None else read_ND
    hidden_NH, missing_ND = missing_output(block, params, rows, read_ND)
    norm = block.output_norm(params) if isinstance(block, NormedBlock) else None
    if norm is None or not isinstance(block, NormedBlock):
        return hidden_NH, missing_ND
    output_ND = block.mlp_output(params, read_ND, hidden_NH, None)
    return hidden_NH, _through_norm(wide(missing_ND), wide(output_ND), norm)


def _through_norm(missing_ND: Array, output_ND: Array, norm: OutputNorm) -> Array:
    """What has to be added in front of a norm, to first order and damped, (N, D)."""
    gain_D = norm.gain_D.astype(output_ND.dtype)
    weight_D = gain_D / (gain_D**2 + GAIN_DAMPING * jnp.mean(gain_D**2))

    def one(missing_D: Array, output_D: Array) -> Array:
        length = jnp.sqrt(jnp.mean(output_D**2) + norm.epsilon)
        return length * missing_D * weight_D

    return jax.vmap(one)(missing_ND, output_ND)


def changes_input(block: ContextualBlock, side: Side) -> bool:
    """Whether the kernels that read ``z`` change in this block."""
    return side != "down" and block.patches_input


def wide(array: Array) -> Array:
    """In float32 or wider."""
    return array.astype(accumulator(array.dtype))


def flat(midpoint: Midpoint) -> Midpoint:
    """(B, K, D) -> (N, D)."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, leaf.shape[-1]), midpoint)


def check_queries(where: str, layers: Layers, queries: Queries, side: Side | None) -> None:
    """Raises where shapes do not fit, or for a side that these blocks do not have.

    Args:
      where: the caller, for errors.
      layers: the stack.
      queries: what is fitted.
      side: what is to change; None where no kernel is.

    Raises:
      ValueError: as said.
    """
    checks.rank(where, "queries.full_BTD", queries.full_BTD, 3, "(B, T, D)")
    checks.rank(where, "queries.kept_BKD", queries.kept_BKD, 3, "(B, K, D)")
    for name in ("rows_BK", "fitted_BK"):
        got, want = jnp.shape(getattr(queries, name)), jnp.shape(queries.kept_BKD)[:2]
        if got != want:
            raise ValueError(f"{where}: queries.{name} must have shape {want} (B, K), got {got}.")
    for segment, period in enumerate(layers.designs):
        for place, block in enumerate(period):
            shown = f"block {place} of segment {segment}"
            if side == "input" and not block.patches_input:
                raise ValueError(
                    f"{where}: side='input' changes nothing in {shown}, whose MLP does not read "
                    "the context (it is parallel). Use side='down'."
                )
            if side in ("down", "both"):
                _check_down(where, shown, block)


def _check_down(where: str, shown: str, block: Any) -> None:
    ends_in_bias: bool = block.has_output_bias
    if isinstance(block, DownBlock) and not block.shares_down:
        raise ValueError(
            f"{where}: {shown} has experts, so no down kernel that every token goes through: an "
            "update of one expert's is none for the others. Use side='input': router and experts "
            "share the factor."
        )
    if isinstance(block, NormedBlock) and block.norms_output and ends_in_bias:
        raise ValueError(
            f"{where}: {shown} has a layer norm on its MLP's output, which takes the mean of what "
            "a down kernel adds away. Use side='input' or rung='thought'."
        )
