"""Layers that carry what they remember from token to token: a state, of one size for any length."""

from typing import Any

from icl_jax import checks
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.views import Slots
from icl_jax.dims import Array


class CarriedState(ContextualLayer):
    """The base of these layers; a subclass defines ``_run`` and ``_kernels`` or ``_parameters``.

    An absent position leaves what is remembered as it is.
    """

    def __call__(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """See ``ContextualLayer``."""
        name = type(self).__name__
        checks.rank(name, "stream_TD", stream_TD, 2, "(T, D)")
        checks.places(name, stream_TD.shape[0], None, present_T)
        return self._run(self._parameters(stream_TD), stream_TD, present_T, None)[0]

    @property
    def has_memory(self) -> bool:
        """The state."""
        return True

    def extend(
        self, reads: tuple[Array, ...], memories: tuple[Any, ...], slots: tuple[Slots, ...]
    ) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
        """See ``ContextualLayer``."""
        parameters = self._parameters(reads[0])
        mixed, longer = [], []
        for read_MD, memory, place in zip(reads, memories, slots, strict=True):
            present_M = place.newest(read_MD.shape[0])[1]
            mixed_MD, memory = self._run(parameters, read_MD, present_M, memory)
            mixed.append(mixed_MD)
            longer.append(memory)
        return tuple(mixed), tuple(longer)

    def _parameters(self, stream_TD: Array) -> Any:
        """For a stream of this width and dtype; asked for once per call."""
        return self._kernels(stream_TD.shape[-1])

    def _kernels(self, width: int) -> Any:
        """The parameters for a stream of this width."""
        raise TypeError(f"{type(self).__name__} must define _kernels(width).")

    def _run(
        self, parameters: Any, stream_TD: Array, present_T: Array | None, memory: Any
    ) -> tuple[Array, Any]:
        """The output (T, D) and what is remembered then, from a memory, or from nothing (None)."""
        raise TypeError(f"{type(self).__name__} must define _run(parameters, stream_TD, ...).")
