"""What a query's output would be had a group of context tokens, such as a demonstration, not been.

In one block every group's absence is read off one run: taking tokens out of attention rescales what
stays. In a deeper stack the tokens behind a group have read it, so each absence is a run of its
own, many side by side in one program. In both, the others keep their places.
"""

import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.dynamics.attribution import AttentionBlock
from icl_jax.stack.block import Midpoint, apply_block
from icl_jax.stack.layers import Layers
from icl_jax.stack.run import check_run, forward


class JoinedBlock(AttentionBlock, Protocol):
    """An attention block that says what its layer gives, and how the stream takes it up."""

    def mixed(self, params: Params, stream_TD: Array) -> Array:
        """What the contextual layer gives, (T, D)."""

    def join(self, params: Params, stream_TD: Array, mixed_TD: Array) -> Midpoint:
        """The midpoint of a stream and what the layer gave."""


def leave_out_block(
    block: JoinedBlock, params: Params, stream_TD: Array, groups_NT: Array, *, row: int = -1
) -> Array:
    """The output of one block at a position without each of N groups, (N, D), from one run.

    Exact for the block on what it is given: so for a stack of one block, and in a deeper one for
    the first. ``A_{S - Y} = sum_j (1 - y_j) weight_j passed_j / sum_j (1 - y_j) weight_j`` where
    the weights are those of a softmax, and without the division where they are not.

    Args:
      block: an attention block that says whether its weights add up to 1.
      params: its parameters.
      stream_TD: (T, D), everything there.
      groups_NT: (N, T) booleans, the tokens of each group; none of them the position's own.
      row: the position that is asked.

    Raises:
      ValueError: shapes or a row that cannot be, or a layer that does not say whether its weights
        add up to 1.
      TypeError: ``groups_NT`` is not boolean.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> groups = jnp.array([[True, True, False, False, False, False]])  # the first demonstration
      >>> without = leave_out_block(*layers[0], stream, groups)
      >>> again = forward(layers, stream, present_T=~groups[0])[-1]
      >>> bool(jnp.allclose(without[0], again, atol=1e-5))
      True

    Source: worked out for this library, from THEORY section 4's sum over tokens.
    """
    where = "leave_out_block"
    checks.rank(where, "stream_TD", stream_TD, 2, "(T, D)")
    check_groups(where, groups_NT, stream_TD.shape[0])
    row = _row(where, row, stream_TD.shape[0])
    if block.normalised is None:
        raise ValueError(
            f"{where}: the contextual layer does not say whether its weights add up to 1. Define "
            "the property normalised in it, or use leave_out_by_reruns."
        )
    rows_1 = jnp.asarray([row], jnp.int32)
    weights_A1T, passed_ATD, _ = block.parts(params, stream_TD, rows_M=rows_1)
    weights_AT = weights_A1T[:, 0].astype(passed_ATD.dtype)
    staying_NAT = jnp.where(groups_NT[:, None], jnp.zeros_like(weights_AT), weights_AT[None])
    if block.normalised:
        share_NA1 = jnp.sum(staying_NAT, axis=-1, keepdims=True)
        if block.has_sink:
            sink_A1 = block.sink_weights(params, stream_TD, rows_M=rows_1)
            share_NA1 = share_NA1 + sink_A1[None].astype(share_NA1.dtype)
        staying_NAT = staying_NAT / share_NA1
    highest = jax.lax.Precision.HIGHEST
    without_ND = jnp.einsum("nat,atd->nd", staying_NAT, passed_ATD, precision=highest)
    with_D = jnp.einsum("at,atd->d", weights_AT, passed_ATD, precision=highest)
    # What a layer adds after the sum, such as a bias, stays as it is.
    mixed_D = block.mixed(params, stream_TD)[row]
    mixed_ND = mixed_D[None] + (without_ND - with_D[None])
    stream_ND = jnp.broadcast_to(stream_TD[row], mixed_ND.shape)
    midpoint = block.join(params, stream_ND, mixed_ND)
    return apply_block(block, params, midpoint)


def leave_out_by_reruns(
    layers: Layers, stream_TD: Array, groups_NT: Array, *, row: int = -1, chunk: int = 8
) -> Array:
    """The stack's output at a position without each of N groups, (N, D), by one run per group.

    Args:
      layers: any stack.
      stream_TD, groups_NT, row: as in ``leave_out_block``.
      chunk: how many runs are side by side.

    Raises:
      ValueError: shapes or a row that cannot be.
      TypeError: ``groups_NT`` is not boolean.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> groups = jnp.arange(6) == jnp.arange(5)[:, None]  # each context token by itself
      >>> without = leave_out_by_reruns(layers, stream, groups)
      >>> without.shape, bool((without != forward(layers, stream)[-1]).any(1).all())
      ((5, 8), True)
    """
    where = "leave_out_by_reruns"
    check_run(where, layers, stream_TD)
    check_groups(where, groups_NT, stream_TD.shape[0])
    checks.positive_int(where, "chunk", chunk)
    row = _row(where, row, stream_TD.shape[0])
    return masked_outputs(layers, stream_TD, ~groups_NT, row=row, chunk=chunk)


@functools.partial(jax.jit, static_argnames=("row", "chunk"))
def masked_outputs(
    layers: Layers, stream_TD: Array, present_XT: Array, *, row: int = -1, chunk: int = 8
) -> Array:
    """The output (X, D) at a position for each of X sets of tokens that are there.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> there = jnp.array([[True] * 6, [False] * 5 + [True]])  # everything, and the query alone
      >>> outputs = masked_outputs(layers, stream, there)
      >>> bool(jnp.allclose(outputs[0], forward(layers, stream)[-1], atol=1e-5))
      True
      >>> bool(jnp.allclose(outputs[1], forward(layers, stream[5:])[0], atol=1e-5))
      True
    """

    def one(present_T: Array) -> Array:
        return forward(layers, stream_TD, present_T=present_T)[row]

    return jax.lax.map(one, present_XT, batch_size=chunk)


def check_groups(where: str, groups_NT: Any, length: int) -> None:
    """Raises unless ``groups_NT`` are N sets of T tokens.

    Raises:
      ValueError: another shape.
      TypeError: not boolean.
    """
    checks.rank(where, "groups_NT", groups_NT, 2, "(N, T)")
    checks.axis_size(where, "groups_NT", groups_NT, 1, length, "one per token")
    if groups_NT.dtype != bool:
        raise TypeError(
            f"{where}: groups_NT must be booleans, True at a group's tokens, got {groups_NT.dtype}."
        )


def _row(where: str, row: int, length: int) -> int:
    if not -length <= row < length:
        raise ValueError(
            f"{where}: row must be one of the {length} positions, 0 to {length - 1} (or -1 for the "
            f"last one), got {row}."
        )
    return row % length
