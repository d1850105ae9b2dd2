"""The one walk over the layers of a stack.

Everything that visits layers is a step of this fold: forward passes, patches, prefixes, generation,
attribution. Equal layers share the step's program, so compile time does not grow with depth.
"""

from collections.abc import Callable
from typing import Any

import jax

from icl_jax.stack.layers import Layers, PerLayer

#: ``step(block, params, state, given) -> (state, found)``, of one layer.
Step = Callable[[Any, Any, Any, Any], tuple[Any, Any]]


def fold(
    layers: Layers,
    step: Step,
    state: Any,
    given: PerLayer[Any] | None = None,
    *,
    remat: bool = False,
) -> tuple[Any, PerLayer[Any]]:
    """Carries a state through the layers, from below.

    Args:
      layers: the stack.
      step: of one layer: its block, its parameters, the state so far and what this layer is
        ``given``, to the next state (of the same shapes and dtypes) and what is ``found`` there.
      state: what the first layer starts from, a tree of arrays.
      given: one tree per layer, such as its patches or its memory; None for nothing.
      remat: whether a gradient keeps only the states between periods and computes the rest again.

    Returns:
      The last state, and what was found in every layer.

    Raises:
      ValueError: ``given`` belongs to another stack.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> def step(block, block_params, stream, given):
      ...     midpoint = block.contextual(block_params, stream)
      ...     return apply_block(block, block_params, midpoint), midpoint.mlp_input_TD[-1]
      >>> last, read = fold(functional(stack, params), step, stream)
      >>> last.shape, len(read), read.layer(2).shape
      ((6, 8), 3, (8,))
    """
    if given is not None:
        check_given(layers, given)
    found = []
    for segment, (designs, repeats) in enumerate(
        zip(layers.designs, layers.params.repeats, strict=True)
    ):
        period = _period(designs, step)
        if remat:
            period = jax.checkpoint(period)
        rows = (
            layers.params.segments[segment],
            (None,) * len(designs) if given is None else given.segments[segment],
        )
        if repeats > 1:
            state, out = jax.lax.scan(period, state, rows)
        else:  # A loop of one turn is no loop.
            state, out = period(state, jax.tree.map(lambda leaf: leaf[0], rows))
            out = jax.tree.map(lambda leaf: leaf[None], out)
        found.append(out)
    return state, PerLayer(tuple(found), layers.params.repeats)


def check_given(layers: Layers, given: PerLayer[Any]) -> None:
    """Raises ValueError for one tree per layer of another stack."""
    if given.repeats != layers.params.repeats or [len(period) for period in given.segments] != [
        len(one) for one in layers.designs
    ]:
        raise ValueError(
            f"fold: given holds one tree for each of {len(given)} layers, cut as repeats "
            f"{given.repeats}; the stack has {len(layers)} layers, cut as {layers.params.repeats}. "
            "Use what was made with this stack."
        )


def _period(
    designs: tuple[Any, ...], step: Step
) -> Callable[[Any, tuple[Any, Any]], tuple[Any, tuple[Any, ...]]]:
    """One period of a segment, as the body of a scan."""

    def body(state: Any, row: tuple[Any, Any]) -> tuple[Any, tuple[Any, ...]]:
        found = []
        for block, params, given in zip(designs, *row, strict=True):
            state, one = step(block, params, state, given)
            found.append(one)
        return state, tuple(found)

    return body
