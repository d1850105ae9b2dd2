"""One contextual block, many wirings: a contextual layer, an MLP, and what stands between."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.attention_steps import AttentionSteps, attention_steps
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.feedforward import Feedforward
from icl_jax.blocks.norms import NORMS, Norm, NormName
from icl_jax.blocks.views import Extend, Prefixes, Slots, Suffixes, Whole
from icl_jax.blocks.wiring import WIRINGS, Wiring, WiringName
from icl_jax.dims import Array
from icl_jax.patches.block import TokenPatch
from icl_jax.patches.normed import BalancedPatch, OutputNorm, ScalePatch, normed_sum
from icl_jax.patches.output import DownPatch, apply_output, down_sum
from icl_jax.patches.token import InputFactor
from icl_jax.stack.block import Midpoint
from icl_jax.stack.settled import settled


class Block(nn.Module):
    """A contextual layer and an MLP, wired together.

    Attributes:
      contextual_layer: any ``ContextualLayer``; your own included.
      mlp: any ``Feedforward``.
      wiring: a name in ``WIRINGS``; see the table at the top of ``wiring.py``.
      norm: ``layer``, ``rms`` or ``none``, at the places that the wiring has for norms.
      norm_epsilon: of the norms, in squared units of their input.
      separate_norms: whether the MLP of a parallel block has a norm of its own.
      dtype: of the norms' parameters.

    Examples:
      >>> mlp = Gated(hidden_width=16, activation="silu")
      >>> block = Block(SoftmaxAttention(num_heads=2), mlp, "pre_norm", norm="rms")
      >>> stream = jax.random.normal(jax.random.key(0), (6, 8))
      >>> block.apply(block.init(jax.random.key(1), stream), stream).shape
      (6, 8)
    """

    contextual_layer: ContextualLayer
    mlp: Feedforward
    wiring: WiringName = "pre_norm"
    norm: NormName = "layer"
    norm_epsilon: float = 1e-6
    separate_norms: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        checks.one_of("Block", "wiring", self.wiring, tuple(WIRINGS))
        checks.one_of("Block", "norm", self.norm, NORMS)
        norm = functools.partial(Norm, self.norm, self.norm_epsilon, dtype=self.dtype)
        wired = self.wired
        if wired.norms_read or wired.norms_sum:
            self.norm_1 = norm()
        if wired.norms_sum or (wired.norms_mlp_input and not self._shares_norm):
            self.norm_2 = norm()
        if wired.norms_mixed:
            self.norm_1_out = norm()
        if wired.norms_mlp_output:
            self.norm_2_out = norm()

    @property
    def wired(self) -> Wiring:
        """What stands where."""
        return WIRINGS[self.wiring]

    @property
    def norms_output(self) -> bool:
        """Whether a norm stands on the MLP's output."""
        return self.wired.norms_mlp_output

    @property
    def _shares_norm(self) -> bool:
        """Whether the MLP reads through the contextual layer's own norm."""
        return self.wired.mlp_reads == "input" and not self.separate_norms

    def __call__(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """The block on a whole sequence, (T, D) in and out; arguments as in ``ContextualLayer``."""
        midpoint = self.contextual(stream_TD, positions_T=positions_T, present_T=present_T)
        return self.output(midpoint, self.hidden(midpoint.mlp_input_TD, None), None)

    def contextual(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Midpoint:
        """The first half: everything before the MLP."""
        mixed_TD = self.mixed(stream_TD, positions_T=positions_T, present_T=present_T)
        return self.join(stream_TD, mixed_TD)

    def mixed(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """What the contextual layer gives (T, D), before a norm on it and the skip."""
        view = Whole(positions_T, present_T)
        mixed_TD, _ = self.contextual_layer.mix(self._read(stream_TD), view)
        return mixed_TD

    def hidden(self, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """The activations (T, H) that enter the MLP's last kernel, input-patched row by row."""
        return self.mlp.hidden(mlp_input_TD, factor)

    def output(self, midpoint: Midpoint, hidden_TH: Array, patch: TokenPatch | None) -> Array:
        """The rest: last kernel, output patch row by row, norms and skip."""
        factor = None if patch is None else patch.input
        output_TD = self.mlp_output(midpoint.mlp_input_TD, hidden_TH, factor)
        if patch is not None:  # What the output patch was made for.
            output_TD = settled(output_TD)
        return self.finish(midpoint, output_TD, hidden_TH, patch)

    def finish(
        self, midpoint: Midpoint, output_TD: Array, hidden_TH: Array, patch: TokenPatch | None
    ) -> Array:
        """What is behind ``mlp_output``: output patch row by row, norms and skip."""
        output_patch = None if patch is None else patch.output
        if isinstance(output_patch, (ScalePatch, BalancedPatch)):
            norm = OutputNorm(self.norm_2_out.gain(output_TD.shape[-1]), self.norm_epsilon)
            assert midpoint.residual_TD is not None  # All wirings with such a norm have a skip.
            total_TD, low_TD = jax.vmap(normed_sum, in_axes=(0, 0, 0, None, 0))(
                midpoint.residual_TD, output_TD, hidden_TH, norm, output_patch
            )
            # Rounded once: a patch that is right in float32 is right in bfloat16.
            return (total_TD + low_TD).astype(output_TD.dtype)
        if self.wired.norms_mlp_output:
            output_TD = self.norm_2_out(output_TD)
        if midpoint.residual_TD is not None:
            self._check_width(midpoint.residual_TD, output_TD, self.mlp)
        if isinstance(output_patch, DownPatch) and midpoint.residual_TD is not None:
            total_TD, low_TD = jax.vmap(down_sum)(
                midpoint.residual_TD, output_TD, hidden_TH, output_patch
            )
            output_TD = (total_TD + low_TD).astype(output_TD.dtype)
        else:
            if output_patch is not None:
                output_TD = jax.vmap(apply_output)(output_TD, hidden_TH, output_patch)
            if midpoint.residual_TD is not None:
                output_TD = midpoint.residual_TD + output_TD
        return self.norm_2(output_TD) if self.wired.norms_sum else output_TD

    def mlp_output(
        self, mlp_input_TD: Array, hidden_TH: Array, factor: InputFactor | None
    ) -> Array:
        """What leaves the MLP's last kernel (T, D), before any output patch, norm or skip."""
        return self.mlp.output(hidden_TH, mlp_input_TD, factor)

    def extend(
        self, streams: tuple[Array, ...], memories: tuple[Any, ...], slots: tuple[Slots, ...]
    ) -> tuple[tuple[Midpoint, ...], tuple[Any, ...]]:
        """The first half for new tokens after those in the memories, sequences side by side."""
        mixed, longer = self.extend_mixed(streams, memories, slots)
        return tuple(map(self.join, streams, mixed)), longer

    def extend_mixed(
        self, streams: tuple[Array, ...], memories: tuple[Any, ...], slots: tuple[Slots, ...]
    ) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
        """As ``mixed``, for new tokens after those in the memories; and the longer memories."""
        read = tuple(self._read(stream_MD) for stream_MD in streams)
        mixed, longer = self.contextual_layer.mix(read, Extend(memories, slots))
        assert longer is not None  # Extending is what was asked for.
        return mixed, longer

    def prefixes(
        self, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Midpoint, Midpoint]:
        """The first half for all prefixes: midpoints of the context (N) and the probes (M)."""
        read = (self._read(context_ND), self._read(probes_MD))
        mixed, _ = self.contextual_layer.mix(read, Prefixes(positions_M))
        return self.join(context_ND, mixed[0]), self.join(probes_MD, mixed[1])

    def suffixes(self, context_ND: Array, query_D: Array, *, positions_T: Array) -> Midpoint:
        """The first half for all suffixes of the context: midpoints (M) of the query."""
        read = (self._read(context_ND), self._read(query_D[None]))
        mixed_MD, _ = self.contextual_layer.mix(read, Suffixes(positions_T))
        rows = (mixed_MD.shape[0], query_D.shape[0])
        return self.join(jnp.broadcast_to(query_D[None], rows), mixed_MD)

    def parts(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
        rows_M: Array | None = None,
    ) -> tuple[Array, Array, tuple[Array, Array]]:
        """The contextual layer's sum over heads and tokens, opened (attention only).

        Returns:
          Weights (A, M, T) of the rows in these places (all T when left out), what each head passes
          on from each token (A, T, D), and what norms between here and the MLP read: the sum, and
          the residual stream with it, each (T, D).

        Raises:
          TypeError: the contextual layer is no such sum.
        """
        layer = self._sum("parts")
        read_TD = self._read(stream_TD)
        places: dict[str, Any] = {"positions_T": positions_T, "present_T": present_T}
        weights_AMT, passed_ATD = layer.parts(read_TD, **places, rows_M=rows_M)
        mixed_TD = layer(read_TD, **places)
        if not self.wired.adds_mixed:
            return weights_AMT, passed_ATD, (mixed_TD, mixed_TD)
        skipped_TD = self.norm_1_out(mixed_TD) if self.wired.norms_mixed else mixed_TD
        return weights_AMT, passed_ATD, (mixed_TD, stream_TD + skipped_TD)

    def sink_weights(
        self,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
        rows_M: Array | None = None,
    ) -> Array:
        """What each head of the contextual layer gives to its sink at each row, (A, M)."""
        return self.contextual_layer.sink_weights(
            self._read(stream_TD), positions_T=positions_T, present_T=present_T, rows_M=rows_M
        )

    def scores(self, stream_TD: Array, rows_M: Array | None = None) -> tuple[Array, Array]:
        """What attention reads (T, D), and its scores before mask, cap and softmax (A, M, T).

        Raises:
          TypeError: the contextual layer is no attention.
        """
        layer = self._sum("scores")
        read_TD = self._read(stream_TD)
        return read_TD, layer.raw_scores(read_TD, rows_M=rows_M)

    def attention_steps(
        self, stream_TD: Array, *, positions_T: Array | None = None
    ) -> tuple[Array, AttentionSteps]:
        """What attention reads (T, D), and every step of it.

        Raises:
          TypeError: the contextual layer is no attention.
        """
        layer = self._sum("attention_steps")
        read_TD = self._read(stream_TD)
        return read_TD, attention_steps(layer, read_TD, positions_T=positions_T)

    def _sum(self, method: str) -> Any:
        layer = self.contextual_layer
        if not layer.is_sum:
            raise TypeError(
                f"Block.{method}: {type(layer).__name__} is not a sum over heads and tokens; use a "
                "SoftmaxAttention or LinearAttention block, or a layer that declares is_sum."
            )
        return layer

    def to_mlp_input(self, changes_ND: Array, references: tuple[Array, Array]) -> Array:
        """Maps changes (N, D) of the contextual layer's output to changes of the MLP's input.

        Linear: norms in between keep the denominators that they have with everything there, at the
        ``references`` (D,) of ``parts``. In a parallel block nothing gets through.
        """
        if not self.wired.reads_context:
            return jnp.zeros_like(changes_ND)
        if not self.wired.adds_mixed:
            return changes_ND
        changes_ND = self.to_residual(changes_ND, references)
        if self.wired.norms_mlp_input:
            changes_ND = self.norm_2.frozen(changes_ND, references[1])
        return changes_ND

    def to_residual(self, changes_ND: Array, references: tuple[Array, Array]) -> Array:
        """Maps changes (N, D) of the contextual layer's output to changes of the residual stream.

        Linear, as ``to_mlp_input`` is; the changes themselves where no norm stands in between. In a
        mixer nothing gets through.
        """
        mixed_D, residual_D = references
        if not self.wired.adds_mixed:
            return jnp.zeros_like(changes_ND)
        if self.wired.norms_mixed:
            changes_ND = self.norm_1_out.frozen(changes_ND, mixed_D)
        if self.wired.norms_sum:
            changes_ND = self.norm_1.frozen(changes_ND, residual_D)
        return changes_ND

    def _read(self, stream_TD: Array) -> Array:
        """What the contextual layer reads."""
        return self.norm_1(stream_TD) if self.wired.norms_read else stream_TD

    def join(self, stream_TD: Array, mixed_TD: Array) -> Midpoint:
        """The contextual layer's output joined to the stream, and what the MLP reads of it."""
        wired = self.wired
        if not wired.skips:
            return Midpoint(None, mixed_TD)
        if not wired.adds_mixed:
            return Midpoint(stream_TD, mixed_TD)
        self._check_width(stream_TD, mixed_TD, self.contextual_layer)
        if wired.norms_mixed:
            mixed_TD = self.norm_1_out(mixed_TD)
        residual_TD = stream_TD + mixed_TD
        if wired.norms_sum:
            residual_TD = self.norm_1(residual_TD)
        read_TD = residual_TD if wired.reads_context else stream_TD
        if wired.norms_mlp_input:
            read_TD = self.norm_1(read_TD) if self._shares_norm else self.norm_2(read_TD)
        return Midpoint(residual_TD, read_TD)

    def _check_width(self, stream_TD: Array, added_TD: Array, part: nn.Module) -> None:
        """Raises ValueError where a part gives vectors that do not fit the stream."""
        if added_TD.shape[-1] != stream_TD.shape[-1]:
            raise ValueError(
                f"Block: the stream has width {stream_TD.shape[-1]} and {type(part).__name__} adds "
                f"vectors of width {added_TD.shape[-1]} to it (wiring={self.wiring!r}). Only with "
                "wiring='mixer' a contextual layer has a width of its own, and Dense(width="
                f"{stream_TD.shape[-1]}) leads back."
            )
