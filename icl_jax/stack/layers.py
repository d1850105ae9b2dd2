"""A stack as data: equal layers lie on top of each other, so that what walks it is compiled once.

A stack is cut into segments. A segment is one period of block designs, repeated R times (Gemma 3:
five local blocks and a global one), with the parameters of the repeats stacked along a leading
axis. A stack of equal layers is one segment of period 1; a stack without a pattern is segments of
one layer each.
"""

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar, overload

import jax
import jax.numpy as jnp

from icl_jax.dims import Params
from icl_jax.shown import count
from icl_jax.stack.block import ContextualBlock

Tree = TypeVar("Tree")


class Place(NamedTuple):
    """Where a layer lies: its segment, its block in the period, and which repeat it is."""

    segment: int
    block: int
    repeat: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerLayer(Generic[Tree]):
    """One tree per layer, those of equal layers stacked; read like a sequence.

    Attributes:
      segments: for every segment a tuple, one tree per block of its period, with leaves (R, ...).
        Inside ``vmap`` that is what is seen; outside, the mapped axes stand in front of R.
      repeats: R of every segment.

    Examples:
      >>> found = PerLayer(((jnp.array([1.0, 2.0]), jnp.array([5.0, 6.0])),), (2,))  # A B A B
      >>> len(found), [float(one) for one in found]
      (4, [1.0, 5.0, 2.0, 6.0])
      >>> float(found.map(lambda stacked: 10 * stacked)[-1])
      60.0
    """

    segments: tuple[tuple[Tree, ...], ...]
    repeats: tuple[int, ...] = field(metadata={"static": True})

    def __repr__(self) -> str:
        layers = zip(self.segments, self.repeats, strict=True)
        cut = " + ".join(f"{repeats} x {len(period)}" for period, repeats in layers)
        kinds = {type(one).__name__: None for period in self.segments for one in period}
        return f"PerLayer({len(self)} layers as {cut}: {', '.join(kinds)})"

    def __len__(self) -> int:
        return sum(
            repeats * len(period)
            for period, repeats in zip(self.segments, self.repeats, strict=True)
        )

    @overload
    def __getitem__(self, layer: int) -> Tree: ...
    @overload
    def __getitem__(self, layer: slice) -> tuple[Tree, ...]: ...
    def __getitem__(self, layer: int | slice) -> Tree | tuple[Tree, ...]:
        """The tree of a layer, or of several; for leaves without mapped axes (see ``layer``)."""
        if isinstance(layer, slice):
            return tuple(self.layer(one) for one in range(*layer.indices(len(self))))
        return self.layer(layer)

    def __iter__(self) -> Iterator[Tree]:
        return (self.layer(layer) for layer in range(len(self)))

    def layer(self, layer: int, *, axis: int = 0) -> Tree:
        """The tree of one layer.

        Args:
          layer: its number, from 0; negative ones count from the end.
          axis: where R stands: the number of axes that ``vmap`` has put in front.

        Raises:
          IndexError: there is no such layer.
        """
        where = self.place(layer)
        index = (slice(None),) * axis + (where.repeat,)
        return jax.tree.map(lambda leaf: leaf[index], self.segments[where.segment][where.block])

    def place(self, layer: int) -> Place:
        """Where a layer lies.

        Raises:
          IndexError: there is no such layer.
        """
        places = self.places()
        if not -len(places) <= layer < len(places):
            raise IndexError(f"layer {layer} of a stack of {len(places)} layers.")
        return places[layer]

    def places(self) -> tuple[Place, ...]:
        """Where every layer lies, from below."""
        return tuple(
            Place(segment, block, repeat)
            for segment, (period, repeats) in enumerate(
                zip(self.segments, self.repeats, strict=True)
            )
            for repeat in range(repeats)
            for block in range(len(period))
        )

    def map(self, function: Callable[[Tree], Any]) -> "PerLayer[Any]":
        """``function`` of every stacked tree (leaves (R, ...)), as it is."""
        return PerLayer(
            tuple(tuple(function(tree) for tree in period) for period in self.segments),
            self.repeats,
        )

    def rebuilt(self, trees: Sequence[Any]) -> "PerLayer[Any]":
        """Other trees, one per layer, stacked in the same way.

        Raises:
          ValueError: another number of trees than layers.
        """
        if len(trees) != len(self):
            raise ValueError(
                f"PerLayer.rebuilt: trees must hold one for each of {len(self)} layers, got "
                f"{len(trees)}."
            )
        rows = iter(trees)
        segments = []
        for period, repeats in zip(self.segments, self.repeats, strict=True):
            layers = [[next(rows) for _ in period] for _ in range(repeats)]
            segments.append(tuple(_stacked(column) for column in zip(*layers, strict=True)))
        return PerLayer(tuple(segments), self.repeats)

    def joined(self, *, axis: int = 0) -> Tree:
        """One tree with leaves (L, ...); those of all layers must have one shape.

        Args:
          axis: where R stands, and L will.
        """

        def period_of(*leaves: Any) -> Any:
            rows = jnp.stack(leaves, axis + 1)  # (..., R, P, ...)
            shape = rows.shape[:axis] + (-1,) + rows.shape[axis + 2 :]
            return rows.reshape(shape)

        periods = [jax.tree.map(period_of, *period) for period in self.segments]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis), *periods)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Layers:
    """The layers of a stack: what each computes, and the parameters it computes with.

    Attributes:
      designs: for every segment the blocks of its period.
      params: their parameters, stacked over the repeats.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> params = stack.init(jax.random.key(1), jnp.zeros((6, 3)))["params"]
      >>> layers = functional(stack, params)
      >>> len(layers), layers.params.repeats  # three layers, one program
      (3, (3,))
    """

    designs: tuple[tuple[ContextualBlock, ...], ...] = field(metadata={"static": True})
    params: PerLayer[Params]

    def __repr__(self) -> str:
        cut = zip(self.designs, self.params.repeats, strict=True)
        segments = " + ".join(f"{repeats} x {len(period)}" for period, repeats in cut)
        numbers = sum(math.prod(jnp.shape(leaf)) for leaf in jax.tree.leaves(self.params))
        return f"Layers({len(self)} as {segments}, {count(numbers)} parameters)"

    def __len__(self) -> int:
        return len(self.params)

    @overload
    def __getitem__(self, layer: int) -> tuple[Any, Params]: ...
    @overload
    def __getitem__(self, layer: slice) -> "Layers": ...
    def __getitem__(self, layer: int | slice) -> "tuple[Any, Params] | Layers":
        """Block and parameters of one layer, or a stack of some of the layers."""
        if isinstance(layer, slice):
            chosen = [self[one] for one in range(*layer.indices(len(self)))]
            return stack_layers([block for block, _ in chosen], [params for _, params in chosen])
        return self.block(layer), self.params.layer(layer)

    def __iter__(self) -> Iterator[tuple[Any, Params]]:
        return (self[layer] for layer in range(len(self)))

    def block(self, layer: int) -> Any:
        """The block of a layer, without its parameters."""
        where = self.params.place(layer)
        return self.designs[where.segment][where.block]

    @property
    def blocks(self) -> tuple[Any, ...]:
        """The block of every layer, from below."""
        return tuple(self.block(layer) for layer in range(len(self)))


def stack_layers(blocks: Sequence[Any], params: Sequence[Params]) -> Layers:
    """A stack of blocks of any kind, from the block and the parameters of every layer.

    Args:
      blocks: hashable values; equal ones whose parameters have the same shapes share a program.
      params: the parameters of each.

    Raises:
      ValueError: not as many parameters as blocks.
      TypeError: a block that cannot be hashed.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> params = stack.init(jax.random.key(1), jnp.zeros((6, 3)))["params"]
      >>> layers = functional(stack, params)
      >>> backwards = stack_layers(layers.blocks[::-1], list(layers.params)[::-1])
      >>> len(backwards)
      3
    """
    if len(blocks) != len(params):
        raise ValueError(
            f"stack_layers: params must hold the parameters of each of the {len(blocks)} blocks, "
            f"got {len(params)} trees."
        )
    for layer, block in enumerate(blocks):
        if not isinstance(block, Hashable):
            raise TypeError(
                f"stack_layers: block {layer} ({type(block).__name__}) cannot be hashed, so no "
                "program can be kept for it. Make it a frozen dataclass whose arrays are in params."
            )
    kinds = [(block, _shapes(tree)) for block, tree in zip(blocks, params, strict=True)]
    segments, repeats, designs, start = [], [], [], 0
    for length, times in periods(kinds):
        designs.append(tuple(blocks[start : start + length]))
        segments.append(
            tuple(
                _stacked([params[start + time * length + one] for time in range(times)])
                for one in range(length)
            )
        )
        repeats.append(times)
        start += length * times
    return Layers(tuple(designs), PerLayer(tuple(segments), tuple(repeats)))


def side_by_side(first: PerLayer[Any], *others: PerLayer[Any]) -> PerLayer[tuple[Any, ...]]:
    """Several trees per layer as one tuple of them; all of one stack."""
    segments = zip(*(one.segments for one in (first, *others)), strict=True)
    return PerLayer(tuple(tuple(zip(*period, strict=True)) for period in segments), first.repeats)


def periods(kinds: Sequence[Any]) -> list[tuple[int, int]]:
    """Cuts a sequence into few periods, repeated, that are short in all.

    A period costs a program of its own for each of its layers, and a loop: length + 1. Of equal
    costs the cut with fewer segments is taken, and of these the one that starts with most layers.

    Args:
      kinds: what is compared, layer by layer.

    Returns:
      ``(length, repeats)`` of every segment, from below: ``LLLLLGLLLLLGLL`` is ``(6, 2), (1, 2)``.
    """
    count = len(kinds)
    # Least (cost, segments) from a layer on, and the first segment of it.
    best: list[tuple[tuple[int, int], tuple[int, int]]] = [((0, 0), (0, 0))] * (count + 1)
    for start in range(count - 1, -1, -1):
        options = []
        for length in range(1, max(2, (count - start) // 2 + 1)):
            times = 1
            end = start + length
            while True:
                cost, segments = best[end][0]
                if times > 1 or length == 1:
                    options.append(((cost + length + 1, segments + 1), (length, times)))
                if kinds[end : end + length] != kinds[start : start + length]:
                    break
                times, end = times + 1, end + length
        best[start] = min(options, key=lambda option: (option[0], -math.prod(option[1])))
    found, start = [], 0
    while start < count:
        length, times = best[start][1]
        found.append((length, times))
        start += length * times
    return found


def _shapes(params: Params) -> Any:
    """What has to agree before parameters can be stacked."""
    leaves, tree = jax.tree.flatten(params)
    return tree, tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _stacked(trees: Sequence[Params]) -> Params:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
