"""What a contextual layer is: the base class of every layer that reads a context.

A layer maps a token sequence to one vector per position. To plug in a layer of your own, subclass
``ContextualLayer``, write ``__call__``, and pass it to a ``Block``: patches, trajectories and
attribution by removal work at once. The passes over all prefixes and suffixes have a default that
runs the layer once per row; a layer that can share work between the rows overrides them. What a
layer is, it declares itself; ``check_layer`` tells its author whether it is so.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax.blocks.views import Extend, Prefixes, Slots, Suffixes, View, Whole
from icl_jax.dims import Array


class ContextualLayer(nn.Module):
    """A map ``A`` from a token sequence (T, D) to (T, D).

    Where the MLP alone reads what it gives (the wiring ``mixer``), that may have another width.

    Attributes:
      causal: whether position t reads positions up to t only. (Recurrent layers always do.)

    Examples:
      >>> class MeanSoFar(ContextualLayer):
      ...     def __call__(self, stream_TD, *, positions_T=None, present_T=None):
      ...         present_T = jnp.ones(len(stream_TD), bool) if present_T is None else present_T
      ...         weights_TT = jnp.tri(len(stream_TD)) * present_T
      ...         return weights_TT @ stream_TD / jnp.maximum(weights_TT.sum(1, keepdims=True), 1)
      >>> check_layer(MeanSoFar(), length=4)
      >>> block = Block(MeanSoFar(), Dense(hidden_widths=(16,)))  # patches and trajectories work
    """

    causal: bool = True

    @property
    def has_memory(self) -> bool:
        """Whether ``extend`` can go on after the tokens so far."""
        return False

    @property
    def is_sum(self) -> bool:
        """Whether it is a sum over heads and tokens that ``parts`` can open."""
        return False

    @property
    def normalised(self) -> bool | None:
        """Whether the weights of that sum add up to 1 over what is there; None: not declared.

        With a sink (``has_sink``) it is they and the sink's that do.
        """
        return None

    @property
    def has_sink(self) -> bool:
        """Whether a share of the weights goes to something that is always there, and gives nothing.

        When tokens go, the weights of the others and the sink's grow by one factor. A layer that
        has one says with ``sink_weights`` how much that is.
        """
        return False

    @property
    def reads_length(self) -> bool:
        """Whether the largest position id changes what tokens before it get (longrope does)."""
        return False

    def sink_weights(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
        rows_M: Array | None = None,
    ) -> Array:
        """What each head of each row gives to the sink, (A, M); arguments as in ``parts``.

        Raises:
          TypeError: the layer has no sink.
        """
        del stream_TD, positions_T, present_T, rows_M
        raise TypeError(f"{type(self).__name__} has no sink.")

    def mix(self, read: Any, view: View) -> tuple[Any, tuple[Any, ...] | None]:
        """Answers a view: the mixed vectors for what was read, and the memories of ``Extend``.

        Args:
          read: what the view describes: (T, D), a pair, or a tuple of (M, D).
          view: how to read it.
        """
        if isinstance(view, Prefixes):
            return self.prefixes(*read, positions_M=view.positions_M), None
        if isinstance(view, Suffixes):
            context_ND, query_1D = read
            return self.suffixes(context_ND, query_1D[0], positions_T=view.positions_T), None
        if isinstance(view, Extend):
            return self.extend(read, view.memories, view.slots)
        assert isinstance(view, Whole)
        return self(read, positions_T=view.positions_T, present_T=view.present_T), None

    def __call__(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """Reads the sequence.

        Args:
          stream_TD: (T, D), in sequence order.
          positions_T: (T,), integer position ids; 0..T-1 when left out. Kept tokens keep the ids
            they had in the full sequence.
          present_T: (T,), False where a position must contribute nothing to the others.

        Returns:
          (T, D), in the dtype of ``stream_TD``.
        """
        raise TypeError(f"{type(self).__name__} must define __call__(stream_TD, ...).")

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

    def empty_memory(self, slots: int, width: int, dtype: Any) -> Any:
        """What the layer remembers of no tokens, with room for ``slots`` of ``width``.

        Raises:
          TypeError: the layer has no memory.
        """
        del slots, width, dtype
        raise TypeError(_no_memory(self))

    def extend(
        self, reads: tuple[Array, ...], memories: tuple[Any, ...], slots: tuple[Slots, ...]
    ) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
        """Reads new tokens after those in the memories, and puts them there.

        Args:
          reads: (M, D) of each sequence, its new tokens.
          memories: of each sequence.
          slots: of each sequence, the new tokens in them.

        Returns:
          The layer's outputs (M, D) on the new tokens, and the memories with them.

        Raises:
          TypeError: the layer has no memory.
        """
        del reads, memories, slots
        raise TypeError(_no_memory(self))


def _no_memory(layer: ContextualLayer) -> str:
    return (
        f"{type(layer).__name__} has no memory to go on from. Use a causal layer that defines "
        "has_memory, empty_memory and extend, or run the sequence again."
    )


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
        stream_TD = jnp.concatenate([context_ND, probe_D[None, :]])
        positions_T = jnp.concatenate([positions_N, position[None]])
        present_T = jnp.concatenate([present_N, jnp.ones(1, bool)])
        return layer(stream_TD, positions_T=positions_T, present_T=present_T)[-1]

    return jax.vmap(row)(probes_MD, present_MN, probe_positions_M)
