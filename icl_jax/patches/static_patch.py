"""One change of a block's weights for all its tokens, as factors, and the block that has it.

A token patch belongs to one position. A ``StaticPatch`` belongs to none: the input side reads
``z + z M`` in the place of ``z`` (so every kernel there is ``(I + M) W``: fc, gate, up, router,
experts), the down kernel is ``W + D``, and a bias is added to what the block's MLP gives. Patches
of a stack are one such record per layer, ``PerLayer[StaticPatch]``; ``ladder.py`` makes them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, Params, accumulator
from icl_jax.patches import low_rank
from icl_jax.patches.block import NormedBlock, TokenPatch
from icl_jax.patches.low_rank import LowRank, apply_update
from icl_jax.patches.normed import BalancedPatch
from icl_jax.patches.output import BiasPatch, DownPatch
from icl_jax.patches.vectors import vector_norm
from icl_jax.shown import short
from icl_jax.stack.block import ContextualBlock, Midpoint
from icl_jax.stack.fold import check_given, fold
from icl_jax.stack.layers import Layers, PerLayer
from icl_jax.stack.run import check_run


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StaticPatch:
    """The change of one block's weights; what is None stays as it was.

    Attributes:
      input: ``M``, factors (R, D) and (R, D): ``W -> (I + M) W`` of every kernel that reads ``z``.
      down: ``D``, factors (R, H) and (R, D), added to the down kernel.
      bias_D: (D,), added to what the MLP gives, behind a norm on it.

    Examples:
      >>> first = jnp.eye(3)[0]
      >>> patch = StaticPatch(input=outer(first, 2 * first))  # the first entry counts three times
      >>> added = apply_update(jnp.array([1.0, 5.0, 5.0]), patch.input)  # z M, beside z itself
      >>> added.tolist(), patch.down is None
      ([2.0, 0.0, 0.0], True)
    """

    input: LowRank | None = None
    down: LowRank | None = None
    bias_D: Array | None = None

    __repr__ = short


def static_input(mlp_input_TD: Array, patch: StaticPatch) -> Array:
    """``z + z M``, (T, D): what the unpatched input kernels have to read."""
    if patch.input is None:
        return mlp_input_TD
    return mlp_input_TD + _each(mlp_input_TD, patch.input)


def static_block(
    block: ContextualBlock, params: Params, midpoint: Midpoint, patch: StaticPatch
) -> Array:
    """``apply_block`` with a static patch: the block's output (T, D) from its midpoint."""
    midpoint = Midpoint(midpoint.residual_TD, static_input(midpoint.mlp_input_TD, patch))
    hidden_TH = block.hidden(params, midpoint.mlp_input_TD, None)
    rows = None
    if patch.down is not None:
        rows = TokenPatch(None, _down_rows(block, hidden_TH, patch.down))
    if patch.bias_D is not None and isinstance(getattr(rows, "output", None), BalancedPatch):
        # Behind a norm the two are apart; every wiring with such a norm ends in a skip.
        output_TD = block.output(params, midpoint, hidden_TH, rows)
        return output_TD + jnp.broadcast_to(patch.bias_D.astype(output_TD.dtype), output_TD.shape)
    if patch.bias_D is not None:
        bias_TD = jnp.broadcast_to(
            patch.bias_D.astype(midpoint.mlp_input_TD.dtype), midpoint.mlp_input_TD.shape
        )
        if rows is not None and isinstance(rows.output, BiasPatch):
            bias_TD = bias_TD + rows.output.delta_D
        rows = TokenPatch(None, BiasPatch(bias_TD))
    return block.output(params, midpoint, hidden_TH, rows)


def static_forward(
    layers: Layers,
    stream_TD: Array,
    patches: PerLayer[StaticPatch],
    *,
    positions_T: Array | None = None,
    present_T: Array | None = None,
) -> Array:
    """``forward`` through the patched stack: (T, D) in, (T, D) out; no matrix is built.

    Args:
      layers: the stack.
      stream_TD: (T, D), the embedded tokens, of any text: the patches know no positions.
      patches: one ``StaticPatch`` per layer, of this stack.
      positions_T, present_T: as in ``forward``.

    Raises:
      ValueError: patches of another stack, or what ``forward`` refuses.
      TypeError: as ``forward``.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> patches = PerLayer(((StaticPatch(bias_D=jnp.ones((1, 8))),),), (1,))  # of one layer
      >>> moved = static_forward(layers, stream, patches) - forward(layers, stream)
      >>> bool(jnp.allclose(moved, 1.0, atol=1e-5))
      True
    """
    check_run("static_forward", layers, stream_TD, positions_T, present_T)
    check_given(layers, patches)

    def step(block: Any, params: Any, state_TD: Array, patch: StaticPatch) -> tuple[Array, None]:
        places = {"positions_T": positions_T, "present_T": present_T}
        return static_block(
            block, params, block.contextual(params, state_TD, **places), patch
        ), None

    return fold(layers, step, stream_TD, patches)[0]


def scale_static(patches: PerLayer[StaticPatch], strength: float | Array) -> PerLayer[StaticPatch]:
    """The patches at a strength: 0 is the plain model, 1 the patches, more than 1 exaggerates.

    Raises:
      ValueError: not one number.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> params = model.init(jax.random.key(0), jnp.arange(3, 13))["params"]
      >>> patches = compile_context(model, params, [5, 6, 7], [[8, 9], [10, 11]])
      >>> off = static_logits(model, params, [8, 9], [1], scale_static(patches, 0.0))
      >>> bool(jnp.allclose(off, full_logits(model, params, [8, 9], [1]), atol=1e-5))
      True
    """
    checks.rank("scale_static", "strength", strength, 0, "()")

    def one(patch: StaticPatch) -> StaticPatch:
        def times(update: LowRank | None) -> LowRank | None:
            if update is None:
                return None
            factor = jnp.asarray(strength, update.right_RH.dtype)
            return LowRank(update.left_RD, update.right_RH * factor)

        bias_D = patch.bias_D
        return StaticPatch(
            times(patch.input),
            times(patch.down),
            None if bias_D is None else bias_D * jnp.asarray(strength, bias_D.dtype),
        )

    return patches.map(one)


def combine_static(
    first: PerLayer[StaticPatch], *others: PerLayer[StaticPatch]
) -> PerLayer[StaticPatch]:
    """The sum of the patches of several contexts: their factors side by side, ranks added up.

    Raises:
      ValueError: patches of different stacks, or kernels.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> params = model.init(jax.random.key(0), jnp.arange(3, 13))["params"]
      >>> one, other = (
      ...     compile_context(model, params, context, [[8, 9], [10, 11]], fit=Fit(rank=2))
      ...     for context in ([5, 6, 7], [20, 21, 22])
      ... )
      >>> both = combine_static(one, other)
      >>> [patches[0].down.left_RD.shape for patches in (one, other, both)]  # ranks add up
      [(2, 16), (2, 16), (4, 16)]
    """
    for other in others:
        if other.repeats != first.repeats or len(other) != len(first):
            raise ValueError(
                f"combine_static: patches of stacks of {len(first)} layers (as {first.repeats}) "
                f"and of {len(other)} (as {other.repeats}) have no sum. Combine patches of one "
                "model."
            )
    segments = zip(*(one.segments for one in (first, *others)), strict=True)
    return PerLayer(
        tuple(tuple(_sum(column) for column in zip(*periods, strict=True)) for periods in segments),
        first.repeats,
    )


def ranked(patches: PerLayer[StaticPatch]) -> dict[str, int]:
    """The largest rank of each side: ``{"input": 8, "down": 8}``; 0 where there is none."""
    found = {"input": 0, "down": 0}
    for period in patches.segments:
        for patch in period:
            for side in found:
                update = getattr(patch, side)
                if update is not None:
                    found[side] = max(found[side], update.left_RD.shape[-2])
    return found


def map_updates(
    patches: PerLayer[StaticPatch], function: Callable[[LowRank], LowRank]
) -> PerLayer[StaticPatch]:
    """The patches with ``function`` of every update, such as ``truncate`` at a lower rank."""

    def one(patch: StaticPatch) -> StaticPatch:
        change, down = (
            None if update is None else jax.vmap(function)(update)
            for update in (patch.input, patch.down)
        )
        return StaticPatch(change, down, patch.bias_D)

    return patches.map(one)


def _each(rows_TD: Array, update: LowRank) -> Array:
    """``rows dW``, in the dtype of the rows."""
    return jax.vmap(apply_update, (0, None))(rows_TD, update).astype(rows_TD.dtype)


def _down_rows(
    block: ContextualBlock, hidden_TH: Array, update: LowRank
) -> BiasPatch | BalancedPatch:
    """What the changed down kernel adds, row by row, in front of a norm on the output."""
    added_TD = _each(hidden_TH, update)
    if not (isinstance(block, NormedBlock) and block.norms_output):
        return BiasPatch(added_TD)
    dtype = accumulator(hidden_TH.dtype)
    length_T = vector_norm(hidden_TH)
    # A compact down patch weighs its change by |a / length|^2, which is 1; of zeros, nothing.
    down = DownPatch(None, added_TD, jnp.where(length_T == 0, jnp.ones_like(length_T), length_T))
    return BalancedPatch(down, jnp.ones_like(length_T, dtype), jnp.zeros_like(added_TD, dtype))


def _sum(patches: tuple[StaticPatch, ...]) -> StaticPatch:
    def total(side: str) -> LowRank | None:
        there = [update for one in patches if (update := getattr(one, side)) is not None]
        return jax.vmap(low_rank.add)(*there) if there else None

    biases = [one.bias_D for one in patches if one.bias_D is not None]
    return StaticPatch(
        total("input"), total("down"), sum(biases[1:], biases[0]) if biases else None
    )
