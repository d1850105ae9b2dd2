"""What a contextual layer is: the base class of every layer that reads a context.

A layer maps a token sequence to one vector per position. To plug in a layer of your own, subclass
``ContextualLayer``, write ``__call__``, and pass it to a ``Block``: patches, trajectories and
attribution by removal work at once. The two passes over all prefixes and suffixes have a default
that runs the layer once per row; a layer that can share work between the rows overrides them.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax.dims import Array


class ContextualLayer(nn.Module):
    """A map ``A`` from a token sequence (T, D) to (T, D).

    Attributes:
      causal: whether position t reads positions up to t only. (Recurrent layers always do.)
    """

    causal: bool = True

    def __call__(
        self,
        hidden_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """Reads the sequence.

        Args:
          hidden_TD: (T, D), in sequence order.
          positions_T: (T,), integer position ids; 0..T-1 when left out. Kept tokens keep the ids
            they had in the full sequence.
          present_T: (T,), False where a position must contribute nothing to the others.

        Returns:
          (T, D), in the dtype of ``hidden_TD``.
        """
        raise TypeError(f"{type(self).__name__} must define __call__(hidden_TD, ...).")

    def prefixes(
        self, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Array, Array]:
        """One probe after every prefix: probe i stands after ``c_1..c_i`` and sees itself.

        Args:
          context_ND: (N, D), the context tokens; token j has position id ``positions_M[j]``.
          probes_MD: (M, D) with M = N + 1; probe i has position id ``positions_M[i]``.
          positions_M: (M,), increasing position ids.

        Returns:
          The layer's output on the context (N, D), where no token sees a probe, and on the probes
          (M, D).
        """
        num_context = context_ND.shape[0]
        present_MT = jnp.tri(num_context + 1, num_context, -1, dtype=bool)
        context_out_ND = self(context_ND, positions_T=positions_M[:-1])
        return context_out_ND, _one_run_per_row(
            self, context_ND, probes_MD, present_MT, positions_M[:-1], positions_M
        )

    def suffixes(self, context_ND: Array, query_D: Array, *, positions_T: Array) -> Array:
        """The query's output after every suffix: row i sees ``c_{i+1}..c_N`` and the query.

        Args:
          context_ND: (N, D), the context tokens.
          query_D: (D,), the query, which stands last and keeps its position.
          positions_T: (T,) with T = N + 1, position ids of the context and of the query.

        Returns:
          (M, D) with M = N + 1: everything there in row 0, the query alone in row N.
        """
        num_context = context_ND.shape[0]
        num_rows = num_context + 1
        present_MT = ~jnp.tri(num_rows, num_context, -1, dtype=bool)
        queries_MD = jnp.broadcast_to(query_D[None, :], (num_rows, query_D.shape[0]))
        last_M = jnp.broadcast_to(positions_T[-1:], (num_rows,))
        return _one_run_per_row(self, context_ND, queries_MD, present_MT, positions_T[:-1], last_M)


def _one_run_per_row(
    layer: ContextualLayer,
    context_ND: Array,
    probes_MD: Array,
    present_MN: Array,
    positions_N: Array,
    probe_positions_M: Array,
) -> Array:
    """Output of each probe (M, D) after the context tokens that its row of ``present_MN`` shows."""

    def row(probe_D: Array, present_N: Array, position: Array) -> Array:
        hidden_TD = jnp.concatenate([context_ND, probe_D[None, :]])
        positions_T = jnp.concatenate([positions_N, position[None]])
        present_T = jnp.concatenate([present_N, jnp.ones(1, bool)])
        return layer(hidden_TD, positions_T=positions_T, present_T=present_T)[-1]

    return jax.vmap(row)(probes_MD, present_MN, probe_positions_M)
