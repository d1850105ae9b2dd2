"""The layers of a Flax model as data, and back.

A model keeps the parameters of its layers stacked, ``params["layers_S_B"]`` for block B of the
period of segment S, with leaves (R, ...) over the repeats: what ``stack.fold`` scans over.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from icl_jax.blocks.block import Block
from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.dims import Array, Params
from icl_jax.stack.layers import Layers, PerLayer, periods


class HasBlocks(Protocol):
    """A Flax model whose layers are blocks."""

    blocks: tuple[Block, ...]


def unbound(block: Block) -> Block:
    """The design of a block, without the name and the parent that a model gives it."""
    return block.clone(
        parent=None,
        name=None,
        contextual_layer=block.contextual_layer.clone(parent=None, name=None),
        mlp=block.mlp.clone(parent=None, name=None),
    )


def designs(blocks: Sequence[Block]) -> list[FlaxBlock]:
    """The blocks of a model, one for each layer, as pure functions."""
    return [FlaxBlock(unbound(block)) for block in blocks]


def _segments(blocks: Sequence[Block]) -> list[tuple[tuple[FlaxBlock, ...], int]]:
    flax_blocks = designs(blocks)
    found, start = [], 0
    for length, repeats in periods(flax_blocks):
        found.append((tuple(flax_blocks[start : start + length]), repeats))
        start += length * repeats
    return found


def layer_name(segment: int, block: int) -> str:
    """The name of the parameters of one block of a period."""
    return f"layers_{segment}_{block}"


def layer_places(blocks: Sequence[Block]) -> list[tuple[str, int]]:
    """Where each layer's parameters lie: the name in the model's parameters, and the row there."""
    return [
        (layer_name(segment, place), repeat)
        for segment, (period, repeats) in enumerate(_segments(blocks))
        for repeat in range(repeats)
        for place in range(len(period))
    ]


def declare_layers(model: Any, width: int) -> None:
    """Makes the parameters of a model's layers when it is initialised; called in its ``setup``.

    Args:
      model: has ``blocks`` and ``dtype``.
      width: D, of the residual stream.
    """
    if not model.is_initializing():
        return
    stream_TD = jnp.zeros((2, width), model.dtype)
    for segment, (period, repeats) in enumerate(_segments(model.blocks)):
        for place, block in enumerate(period):

            def init(key: Array, module: Block = block.module, repeats: int = repeats) -> Params:
                keys_R = jax.random.split(key, repeats)
                return jax.vmap(lambda one: module.init(one, stream_TD)["params"])(keys_R)

            model.param(layer_name(segment, place), init)


def functional(model: HasBlocks, params: Params) -> Layers:
    """The layers of a stack or a language model as data, for ``stack_patches`` and the others.

    Args:
      model: the (unbound) Flax model.
      params: its parameters, ``variables["params"]`` of ``model.init``.

    Raises:
      ValueError: ``params`` lacks layers, or are those of a model of another depth.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params)
      >>> len(layers), layers.params.layer(2)["mlp"]["layer_0"]["kernel"].shape
      (3, (8, 16))
    """
    segments = _segments(model.blocks)
    names = [
        [layer_name(segment, block) for block in range(len(period))]
        for segment, (period, _) in enumerate(segments)
    ]
    missing = [name for period in names for name in period if name not in params]
    if missing:
        raise ValueError(
            f"functional: params has no {', '.join(missing)}; pass the 'params' collection of "
            "stack.init(key, tokens)."
        )
    for period, (_, repeats) in zip(names, segments, strict=True):
        for name in period:
            counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(params[name])}
            if counts - {(repeats,)}:  # A loop would walk over as many as there are.
                raise ValueError(
                    f"functional: {name} in params holds {min(counts)[0]} layers, and the model "
                    f"has {repeats} there. Use the parameters of this model; those of a deeper "
                    "one's first layers are made by first_layers."
                )
    return Layers(
        tuple(period for period, _ in segments),
        PerLayer(
            tuple(tuple(params[name] for name in period) for period in names),
            tuple(repeats for _, repeats in segments),
        ),
    )


def layer_params(model: HasBlocks, params: Params, layer: int, *, axis: int = 0) -> Params:
    """The parameters of one layer, out of a model's or of a part of them (see ``select``).

    Args:
      model: the Flax model.
      params: its parameters, perhaps with further axes in front.
      layer: the number of the layer, from 0.
      axis: how many axes stand in front.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> mlp = layer_params(stack, params, 2)["mlp"]
      >>> {name: leaf["kernel"].shape for name, leaf in sorted(mlp.items())}
      {'down': (16, 8), 'layer_0': (8, 16)}
    """
    name, repeat = layer_places(model.blocks)[layer]
    index = (slice(None),) * axis + (repeat,)
    return jax.tree.map(lambda leaf: leaf[index], params[name])


def first_kernels(model: HasBlocks) -> Callable[[tuple[str, ...]], bool]:
    """The choice of every block's first kernel that reads the MLP's input, for ``select``.

    The gate of a gated MLP, the first layer of another; of experts none.

    Args:
      model: the Flax model.

    Returns:
      Whether a leaf is one of them, by its path in the model's parameters.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> params = stack.init(jax.random.key(0), jnp.zeros((6, 3)))["params"]
      >>> part, rest = select(params, first_kernels(stack))
      >>> jax.tree.map(jnp.shape, part)["layers_0_0"]["mlp"]["layer_0"]
      {'bias': None, 'kernel': (3, 8, 16)}
    """
    blocks = model.blocks
    chosen = {
        (name, "mlp", block.input_kernels[0], "kernel")
        for (name, _), block in zip(layer_places(blocks), designs(blocks), strict=True)
        if block.shares_down
    }
    return lambda path: path in chosen


def first_layers(model: Any, params: Params, depth: int) -> tuple[Any, Params]:
    """The model that ends after its first ``depth`` layers, with its parameters.

    Args:
      model: the Flax model; what comes before and after its layers stays.
      params: its parameters.
      depth: how many layers to keep, at least one.

    Raises:
      ValueError: the model has not so many layers.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> shorter, its_params = first_layers(stack, params, 2)
      >>> len(functional(shorter, its_params)), shorter.apply({"params": its_params}, tokens).shape
      (2, (6, 1))
    """
    if not 1 <= depth <= len(model.blocks):
        raise ValueError(
            f"first_layers: depth must be 1 to {len(model.blocks)}, the layers of the model, got "
            f"{depth}."
        )
    kept = functional(model, params)[:depth].params
    old = {name for name, _ in layer_places(model.blocks)}
    others = {name: leaf for name, leaf in params.items() if name not in old}
    return model.clone(blocks=model.blocks[:depth]), with_layers(others, kept)


def with_layers(params: Params, layers: PerLayer[Params]) -> Params:
    """A model's parameters with other layers, such as ``fold`` found them.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> layers = functional(stack, params).params
      >>> halved = with_layers(params, layers.map(lambda tree: jax.tree.map(lambda a: a / 2, tree)))
      >>> sorted(name for name in params if halved[name] is not params[name])
      ['layers_0_0']
    """
    named = {
        layer_name(segment, block): tree
        for segment, period in enumerate(layers.segments)
        for block, tree in enumerate(period)
    }
    return {**params, **named}


def cast(params: Params, dtype: jnp.dtype) -> Params:
    """All parameters in another floating-point dtype.

    Examples:
      >>> params = cast({"bias": jnp.zeros(3), "kernel": jnp.ones((2, 3))}, jnp.bfloat16)
      >>> {name: str(leaf.dtype) for name, leaf in sorted(params.items())}
      {'bias': 'bfloat16', 'kernel': 'bfloat16'}
    """
    return jax.tree.map(lambda array: array.astype(dtype), params)
