"""Static patches beside each other: how alike two are, and one moved to other layers.

Sums and strengths are ``combine_static`` and ``scale_static``; what they do to a model's answers is
measured by running it.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from icl_jax.dims import Array
from icl_jax.patches.low_rank import (
    LowRank,
    frobenius_inner,
    frobenius_norm,
    subtract,
)
from icl_jax.patches.static_patch import StaticPatch
from icl_jax.shown import short
from icl_jax.stack.layers import PerLayer


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Agreement:
    """How a layer's update compares with another of the same kernel, (R,) each: one per layer.

    Attributes:
      cosine: the normalised Frobenius product; NaN where an update is zero.
      norm_ratio: ``|first| / |second|``.
      difference: ``|first - second| / |second|``.

    Examples:
      >>> update = LowRank(jnp.ones((2, 1, 3)), jnp.ones((2, 1, 4)))  # of two layers
      >>> one = PerLayer(((StaticPatch(down=update),),), (2,))
      >>> found = compare_static(scale_static(one, -0.5), one)[1].down  # of the second layer
      >>> [round(float(number), 4) for number in (found.cosine, found.norm_ratio, found.difference)]
      [-1.0, 0.5, 1.5]
    """

    cosine: Array
    norm_ratio: Array
    difference: Array

    __repr__ = short


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StaticAgreement:
    """The agreement of both sides of a static patch; None for a side that neither has.

    Examples:
      >>> update = LowRank(jnp.ones((2, 1, 3)), jnp.ones((2, 1, 4)))  # of two layers
      >>> one = PerLayer(((StaticPatch(down=update),),), (2,))
      >>> found = compare_static(one, one)[0]
      >>> found.input is None, round(float(found.down.cosine), 4)
      (True, 1.0)
    """

    input: Agreement | None
    down: Agreement | None

    __repr__ = short


def compare_static(
    first: PerLayer[StaticPatch], second: PerLayer[StaticPatch]
) -> PerLayer[StaticAgreement]:
    """Two static patches of one stack, layer by layer, from their factors.

    With ``combine_static(patch_of_A, patch_of_B)`` as the first and the patch of A and B together
    as the second: how far two contexts' updates are from adding up.

    Raises:
      ValueError: patches of different stacks, or of different sides.

    Examples:
      >>> units = jnp.eye(2)[None]  # of one layer
      >>> one, other = (
      ...     PerLayer(((StaticPatch(down=LowRank(unit, unit)),),), (1,))
      ...     for unit in (units[:, :1], units[:, 1:])
      ... )
      >>> found = compare_static(combine_static(one, other), one)[0].down
      >>> [round(float(number), 4) for number in (found.cosine, found.norm_ratio, found.difference)]
      [0.7071, 1.4142, 1.0]
    """
    _same_stack("compare_static", first, second)

    def one(mine: StaticPatch, other: StaticPatch) -> StaticAgreement:
        sides: list[Agreement | None] = []
        for side in ("input", "down"):
            left, right = getattr(mine, side), getattr(other, side)
            if (left is None) != (right is None):
                raise ValueError(
                    f"compare_static: only one of the patches changes the {side} side. Fit both "
                    "with the same Fit."
                )
            sides.append(None if left is None else jax.vmap(_agreement)(left, right))
        return StaticAgreement(*sides)

    pairs = zip(first.segments, second.segments, strict=True)
    return PerLayer(
        tuple(tuple(map(one, *periods)) for periods in pairs),
        first.repeats,
    )


def move_layers(patches: PerLayer[StaticPatch], by: int) -> PerLayer[StaticPatch]:
    """Every layer's patch given to the layer ``by`` above it, the last ones to the first: a null.

    Raises:
      ValueError: layers of different kinds, whose patches do not fit each other.

    Examples:
      >>> rights = jnp.array([[[1.0]], [[2.0]], [[3.0]]])  # of three layers
      >>> patches = PerLayer(((StaticPatch(down=LowRank(jnp.ones((3, 1, 2)), rights)),),), (3,))
      >>> [patch.down.right_RH.item() for patch in move_layers(patches, 1)]
      [3.0, 1.0, 2.0]
    """
    if len(patches.segments) != 1 or len(patches.segments[0]) != 1:
        raise ValueError(
            "move_layers: the stack has layers of different kinds, whose patches do not fit each "
            f"other (repeats={patches.repeats}). Move those of a stack of one kind of layer."
        )
    return patches.map(lambda patch: jax.tree.map(lambda leaf: jnp.roll(leaf, by, axis=0), patch))


def _agreement(first: LowRank, second: LowRank) -> Agreement:
    sizes = (frobenius_norm(first), frobenius_norm(second))
    product = frobenius_inner(first, second)
    return Agreement(
        cosine=product / (sizes[0] * sizes[1]),
        norm_ratio=sizes[0] / sizes[1],
        difference=frobenius_norm(subtract(first, second)) / sizes[1],
    )


def _same_stack(where: str, first: PerLayer[StaticPatch], second: PerLayer[StaticPatch]) -> None:
    if first.repeats != second.repeats or len(first) != len(second):
        raise ValueError(
            f"{where}: patches of stacks of {len(first)} layers (as {first.repeats}) and of "
            f"{len(second)} (as {second.repeats}) cannot be compared. Give two of one model."
        )
