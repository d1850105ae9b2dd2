"""A contextual layer with ``__call__`` alone, and one parameter."""

import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.affine import dense
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.dims import Array


class RunningMean(ContextualLayer):
    """The mean of what has been read, through a kernel.

    Examples:
      >>> stream = jax.random.normal(jax.random.key(0), (6, 8))
      >>> layer = RunningMean()
      >>> layer.apply(layer.init(jax.random.key(1), stream), stream).shape
      (6, 8)
    """

    @nn.compact
    def __call__(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """``mean(x_1..x_t) W``, (T, D)."""
        length, width = stream_TD.shape
        checks.places("RunningMean", length, positions_T, present_T)
        blend_DH = self.param("blend", nn.initializers.lecun_normal(), (width, width), jnp.float32)
        here_T = jnp.ones(length, bool) if present_T is None else present_T
        here_T1 = here_T[:, None].astype(stream_TD.dtype)
        count_T1 = jnp.maximum(jnp.cumsum(here_T1, axis=0), 1)
        mean_TD = jnp.cumsum(here_T1 * stream_TD, axis=0) / count_T1
        return dense(mean_TD, blend_DH.astype(stream_TD.dtype))
