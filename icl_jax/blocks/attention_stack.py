"""Attention with skips and nothing else: the model whose training theory can follow."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from icl_jax.blocks.linear_attention import LinearAttention
from icl_jax.dims import Array


class AttentionStack(nn.Module):
    """Tokens ``(x, y)`` in, the query's label out: ``S <- S + A(S)`` in every layer.

    There is no embedding and no MLP. The last token is the query, ``(x_query, 0)``: it reads the
    examples and is read by nobody, and *minus* what stands in its label's place in the end is the
    prediction. The sign is that of the examples' labels, which layers turn into residuals
    ``y - f``: so every layer can be a step of gradient descent, exactly
    (``icl_jax.descent.linear_attention``).

    Attributes:
      layers: of linear attention that is not causal; the same instance twice is one layer looped.

    Examples:
      >>> layer = LinearAttention(num_heads=1, causal=False)
      >>> model = AttentionStack((layer, layer))  # one layer, looped
      >>> tokens = jax.random.normal(jax.random.key(0), (5, 3)).at[-1, -1].set(0.0)
      >>> variables = model.init(jax.random.key(1), tokens)
      >>> steps = model.apply(variables, tokens, method="predictions")  # after 0, 1 and 2 layers
      >>> steps.shape, bool(steps[-1] == model.apply(variables, tokens))
      ((3,), True)

    Source: von Oswald et al. (arXiv 2212.07677); Ahn et al. (arXiv 2306.00297) for the mask.
    """

    layers: tuple[LinearAttention, ...]

    def __call__(self, tokens_TC: Array) -> Array:
        """The prediction, ()."""
        return self.predictions(tokens_TC)[-1]

    def predictions(self, tokens_TC: Array) -> Array:
        """What would be predicted before and after every layer, (L + 1,)."""
        present_T = jnp.arange(tokens_TC.shape[0]) < tokens_TC.shape[0] - 1
        predictions = [-tokens_TC[-1, -1]]
        for layer in self.layers:
            tokens_TC = tokens_TC + layer(tokens_TC, present_T=present_T)
            predictions.append(-tokens_TC[-1, -1])
        return jnp.stack(predictions)


def linear_attention_stack(
    depth: int, num_examples: int, *, looped: bool = False
) -> AttentionStack:
    """``depth`` layers of one head each, scores divided by the number of examples.

    Args:
      depth: number of layers.
      num_examples: N, so that a layer's sum is a mean.
      looped: whether all layers share their weights.

    Examples:
      >>> model = linear_attention_stack(2, num_examples=3)
      >>> tokens = jnp.ones((4, 3))  # three examples and a query, D + 1 = 3 channels
      >>> model.apply(model.init(jax.random.key(0), tokens), tokens).shape
      ()
    """
    layer: Any = LinearAttention(num_heads=1, causal=False, scale=1 / num_examples)
    layers = (layer,) * depth if looped else tuple(layer.clone() for _ in range(depth))
    return AttentionStack(layers)
