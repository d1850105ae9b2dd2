"""Descent in which nothing flows from a layer to those below it, as nothing does in a context.

What a context does to a layer depends on the layers below only; a gradient comes from above. In
layer-causal descent every layer has a loss of its own, read off its own output, and moves for that.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax.dims import Array
from icl_jax.stack.block import apply_block
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import Layers


def layer_causal_loss(
    layers: Layers, stream_TD: Array, read_loss: Callable[[Array], Array]
) -> Array:
    """The sum of the losses after every layer, each with a gradient in that layer's weights alone.

    Minimised by any optimiser in place of the loss after the last layer. All layers move at once;
    in the source one moves after the other, and each reads what the moved ones below it put out,
    which a small step makes the same to first order.

    Args:
      layers: of a stack.
      stream_TD: (T, D), what the first layer reads; no gradient reaches it.
      read_loss: the loss of a state as if it were the last layer's, (): the model's own head.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,), depth=3))
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 3))
      >>> params = stack.init(jax.random.key(1), tokens)["params"]
      >>> stream = stack.apply({"params": params}, tokens, method="embed")
      >>> def read_loss(state):
      ...     return jnp.mean(state**2)
      >>> layer_causal_loss(functional(stack, params), stream, read_loss).shape
      ()

    Source: Deutch et al. (arXiv 2311.07772), layer-causal gradient descent.
    """

    def step(block: Any, params: Any, state_TD: Array, _: None) -> tuple[Array, Array]:
        state_TD = jax.lax.stop_gradient(state_TD)
        state_TD = apply_block(block, params, block.contextual(params, state_TD))
        return state_TD, read_loss(state_TD)

    _, losses = fold(layers, step, stream_TD)
    return jnp.sum(losses.joined())
