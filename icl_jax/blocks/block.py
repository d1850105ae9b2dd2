"""One contextual block, many wirings: where the skips go and where the norms stand.

no_skip     z = A(x)                         out = M(z)                  (Dherin et al., v1)
skip        h = x + A(x)         z = h       out = h + M(z)
pre_norm    h = x + A(N1 x)      z = N2 h    out = h + M(z)              (GPT-2, Llama, ...)
post_norm   h = N1(x + A(x))     z = h       out = N2(h + M(z))          (BERT)
parallel    h = x + A(N1 x)      z = N1 x    out = h + M(z)              (GPT-J, Falcon, ...)
sandwich    h = x + N1'(A(N1 x)) z = N2 h    out = h + N2'(M(z))         (Gemma 2 and 3)
output_norm h = x + N1'(A(x))    z = h       out = h + N2'(M(z))         (OLMo 2)

A parallel block with separate norms reads ``z = N2 x`` (GPT-NeoX).
"""

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.attention import Attention
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.feedforward import Feedforward
from icl_jax.blocks.memory import KeyValues
from icl_jax.blocks.norms import NORMS, Norm, NormName
from icl_jax.dims import Array
from icl_jax.patches.block import Midpoint, TokenPatch
from icl_jax.patches.normed import BalancedPatch, OutputNorm, ScalePatch, apply_normed
from icl_jax.patches.output import apply_output
from icl_jax.patches.token import InputFactor

Wiring = Literal["no_skip", "skip", "pre_norm", "post_norm", "parallel", "sandwich", "output_norm"]
WIRINGS: tuple[Wiring, ...] = (
    "no_skip",
    "skip",
    "pre_norm",
    "post_norm",
    "parallel",
    "sandwich",
    "output_norm",
)


class Block(nn.Module):
    """A contextual layer and an MLP, wired together.

    Attributes:
      contextual_layer: any ``ContextualLayer``; your own included.
      mlp: any ``Feedforward``.
      wiring: see the table at the top of this file.
      norm: ``layer``, ``rms`` or ``none``, at the places that the wiring has for norms.
      norm_epsilon: of the norms, in squared units of their input.
      separate_norms: whether the MLP of a parallel block has a norm of its own.
      dtype: of the norms' parameters.
    """

    contextual_layer: ContextualLayer
    mlp: Feedforward
    wiring: Wiring = "pre_norm"
    norm: NormName = "layer"
    norm_epsilon: float = 1e-6
    separate_norms: bool = False
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        checks.one_of("Block", "wiring", self.wiring, WIRINGS)
        checks.one_of("Block", "norm", self.norm, NORMS)
        norm = functools.partial(Norm, self.norm, self.norm_epsilon, dtype=self.dtype)
        parallel_2 = self.wiring == "parallel" and self.separate_norms
        if self.wiring in ("pre_norm", "post_norm", "parallel", "sandwich"):
            self.norm_1 = norm()
        if self.wiring in ("pre_norm", "post_norm", "sandwich") or parallel_2:
            self.norm_2 = norm()
        if self.norms_output:
            self.norm_1_out = norm()
            self.norm_2_out = norm()

    @property
    def norms_output(self) -> bool:
        """Whether norms stand on the outputs of the contextual layer and of the MLP."""
        return self.wiring in ("sandwich", "output_norm")

    def __call__(
        self,
        hidden_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """The block on a whole sequence, (T, D) in and out; arguments as in ``ContextualLayer``."""
        midpoint = self.contextual(hidden_TD, positions_T=positions_T, present_T=present_T)
        return self.output(midpoint, self.hidden(midpoint.mlp_input_TD, None), None)

    def contextual(
        self,
        hidden_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Midpoint:
        """The first half: everything before the MLP."""
        mixed_TD = self.contextual_layer(
            self._read(hidden_TD), positions_T=positions_T, present_T=present_T
        )
        return self._midpoint(hidden_TD, mixed_TD)

    def hidden(self, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """The activations (T, H) that enter the MLP's last kernel, input-patched row by row."""
        return self.mlp.hidden(mlp_input_TD, factor)

    def output(self, midpoint: Midpoint, hidden_TH: Array, patch: TokenPatch | None) -> Array:
        """The rest: last kernel, output patch row by row, norms and skip."""
        factor = None if patch is None else patch.input
        output_TD = self.mlp_output(midpoint.mlp_input_TD, hidden_TH, factor)
        output_patch = None if patch is None else patch.output
        if isinstance(output_patch, (ScalePatch, BalancedPatch)):
            norm = OutputNorm(self.norm_2_out.gain(output_TD.shape[-1]), self.norm_epsilon)
            output_TD = jax.vmap(apply_normed, in_axes=(0, 0, None, 0))(
                output_TD, hidden_TH, norm, output_patch
            )
        else:
            if self.norms_output:
                output_TD = self.norm_2_out(output_TD)
            if output_patch is not None:
                output_TD = jax.vmap(apply_output)(output_TD, hidden_TH, output_patch)
        if midpoint.residual_TD is not None:
            output_TD = midpoint.residual_TD + output_TD
        return self.norm_2(output_TD) if self.wiring == "post_norm" else output_TD

    def mlp_output(
        self, mlp_input_TD: Array, hidden_TH: Array, factor: InputFactor | None
    ) -> Array:
        """What leaves the MLP's last kernel (T, D), before any output patch, norm or skip."""
        return self.mlp.output(hidden_TH, mlp_input_TD, factor)

    def extend(
        self,
        hidden_MD: Array,
        memory: KeyValues,
        *,
        positions_M: Array,
        present_M: Array | None = None,
    ) -> tuple[Midpoint, KeyValues]:
        """The first half for new tokens after those in the memory (attention only)."""
        layer = self.contextual_layer
        if not isinstance(layer, Attention):
            raise TypeError(
                f"Block.extend: {type(layer).__name__} has no key-value memory; use a causal "
                "attention block, or run the sequence again."
            )
        mixed_MD, memory = layer.extend(
            self._read(hidden_MD), memory, positions_M=positions_M, present_M=present_M
        )
        return self._midpoint(hidden_MD, mixed_MD), memory

    def prefixes(
        self, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Midpoint, Midpoint]:
        """The first half for all prefixes: midpoints of the context (N) and the probes (M)."""
        context_mixed_ND, probes_mixed_MD = self.contextual_layer.prefixes(
            self._read(context_ND), self._read(probes_MD), positions_M=positions_M
        )
        return (
            self._midpoint(context_ND, context_mixed_ND),
            self._midpoint(probes_MD, probes_mixed_MD),
        )

    def suffixes(self, context_ND: Array, query_D: Array, *, positions_T: Array) -> Midpoint:
        """The first half for all suffixes of the context: midpoints (M) of the query."""
        mixed_MD = self.contextual_layer.suffixes(
            self._read(context_ND), self._read(query_D[None])[0], positions_T=positions_T
        )
        return self._midpoint(jnp.broadcast_to(query_D[None], mixed_MD.shape), mixed_MD)

    def parts(
        self,
        hidden_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> tuple[Array, Array, tuple[Array, Array]]:
        """The contextual layer's sum over heads and tokens, opened (attention only).

        Returns:
          Weights (A, T, T), what each head passes on from each token (A, T, D), and what norms
          between here and the MLP read: the sum (T, D), and the residual stream with it (T, D).

        Raises:
          TypeError: the contextual layer is no such sum.
        """
        layer = self._attention("parts")
        read_TD = self._read(hidden_TD)
        weights_ATT, passed_ATD = layer.parts(read_TD, positions_T=positions_T, present_T=present_T)
        mixed_TD = layer(read_TD, positions_T=positions_T, present_T=present_T)
        if self.wiring == "no_skip":
            return weights_ATT, passed_ATD, (mixed_TD, mixed_TD)
        skipped_TD = self.norm_1_out(mixed_TD) if self.norms_output else mixed_TD
        return weights_ATT, passed_ATD, (mixed_TD, hidden_TD + skipped_TD)

    def scores(self, hidden_TD: Array) -> tuple[Array, Array]:
        """What attention reads (T, D), and its scores before mask, cap and softmax (A, T, T).

        Raises:
          TypeError: the contextual layer is no attention.
        """
        layer = self._attention("scores")
        read_TD = self._read(hidden_TD)
        return read_TD, layer.raw_scores(read_TD)

    def _attention(self, method: str) -> Attention:
        layer = self.contextual_layer
        if not isinstance(layer, Attention):
            raise TypeError(
                f"Block.{method}: {type(layer).__name__} is not a sum over heads and tokens; use a "
                "SoftmaxAttention or LinearAttention block."
            )
        return layer

    def to_mlp_input(self, changes_ND: Array, references: tuple[Array, Array]) -> Array:
        """Maps changes (N, D) of the contextual layer's output to changes of the MLP's input.

        Linear: norms in between keep the denominators that they have with everything there, at the
        ``references`` (D,) of ``parts``. In a parallel block nothing gets through.
        """
        mixed_D, residual_D = references
        if self.wiring == "parallel":
            return jnp.zeros_like(changes_ND)
        if self.norms_output:
            changes_ND = self.norm_1_out.frozen(changes_ND, mixed_D)
        if self.wiring in ("pre_norm", "sandwich"):
            return self.norm_2.frozen(changes_ND, residual_D)
        if self.wiring == "post_norm":
            return self.norm_1.frozen(changes_ND, residual_D)
        return changes_ND

    def _read(self, hidden_TD: Array) -> Array:
        """What the contextual layer reads."""
        reads_normed = self.wiring in ("pre_norm", "parallel", "sandwich")
        return self.norm_1(hidden_TD) if reads_normed else hidden_TD

    def _midpoint(self, hidden_TD: Array, mixed_TD: Array) -> Midpoint:
        if self.wiring == "no_skip":
            return Midpoint(None, mixed_TD)
        if self.norms_output:
            mixed_TD = self.norm_1_out(mixed_TD)
        residual_TD = hidden_TD + mixed_TD
        if self.wiring == "post_norm":
            residual_TD = self.norm_1(residual_TD)
        if self.wiring in ("pre_norm", "sandwich"):
            return Midpoint(residual_TD, self.norm_2(residual_TD))
        if self.wiring == "parallel":
            norm = self.norm_2 if self.separate_norms else self.norm_1
            return Midpoint(residual_TD, norm(hidden_TD))
        return Midpoint(residual_TD, residual_TD)
