"""Descent in which nothing flows from a layer to those below it, as nothing does in a context.

What a context does to a layer depends on the layers below only; a gradient comes from above. In
layer-causal descent every layer has a loss of its own, read off its own output, and moves for that.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax.dims import Array, Params

#: ``layer(params, state) -> state``.
Layer = Callable[[Params, Any], Any]


def layer_causal_loss(
    layers: Sequence[Layer],
    params: Sequence[Params],
    state: Any,
    read_loss: Callable[[Any], Array],
) -> Array:
    """The sum of the losses after every layer, each with a gradient in that layer's weights alone.

    Minimised by any optimiser in place of the loss after the last layer. All layers move at once;
    in the source one moves after the other, and each reads what the moved ones below it put out,
    which a small step makes the same to first order.

    Args:
      layers: of a stack, from below.
      params: the weights of each.
      state: what the first layer reads; no gradient reaches it.
      read_loss: the loss of a state as if it were the last layer's, (): the model's own head.

    Source: Deutch et al. (arXiv 2311.07772), layer-causal gradient descent.
    """
    total = jnp.zeros(())
    for layer, layer_params in zip(layers, params, strict=True):
        state = layer(layer_params, jax.lax.stop_gradient(state))
        loss = read_loss(state)
        total = total.astype(loss.dtype) + loss
    return total
