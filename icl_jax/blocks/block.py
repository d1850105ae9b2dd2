"""One contextual block, many wirings: where the skips go and where the norms stand.

no_skip     z = A(x)                         out = M(z)                  (Dherin et al., v1)
skip        h = x + A(x)         z = h       out = h + M(z)
pre_norm    h = x + A(N1 x)      z = N2 h    out = h + M(z)              (GPT-2, Llama, ...)
post_norm   h = N1(x + A(x))     z = h       out = N2(h + M(z))          (BERT)
parallel    h = x + A(N1 x)      z = N1 x    out = h + M(z)              (GPT-J, Falcon, ...)
"""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.attention import Attention
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.feedforward import Feedforward
from icl_jax.blocks.norms import NORMS, Norm, NormName
from icl_jax.dims import Array
from icl_jax.patches.block import Midpoint, TokenPatch
from icl_jax.patches.output import apply_output
from icl_jax.patches.token import InputFactor

Wiring = Literal["no_skip", "skip", "pre_norm", "post_norm", "parallel"]
WIRINGS: tuple[Wiring, ...] = ("no_skip", "skip", "pre_norm", "post_norm", "parallel")


class Block(nn.Module):
    """A contextual layer and an MLP, wired together.

    Attributes:
      contextual_layer: any ``ContextualLayer``; your own included.
      mlp: any ``Feedforward``.
      wiring: see the table at the top of this file.
      norm: ``layer``, ``rms`` or ``none``, at the places that the wiring has for norms.
      dtype: of the norms' parameters.
    """

    contextual_layer: ContextualLayer
    mlp: Feedforward
    wiring: Wiring = "pre_norm"
    norm: NormName = "layer"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        checks.one_of("Block", "wiring", self.wiring, WIRINGS)
        checks.one_of("Block", "norm", self.norm, NORMS)
        if self.wiring in ("pre_norm", "post_norm", "parallel"):
            self.norm_1 = Norm(self.norm, dtype=self.dtype)
        if self.wiring in ("pre_norm", "post_norm"):
            self.norm_2 = Norm(self.norm, dtype=self.dtype)

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
        """The rest: last kernel, output patch row by row, skip and post-norm."""
        width = midpoint.mlp_input_TD.shape[-1]
        factor = None if patch is None else patch.input
        output_TD = self.mlp.output(hidden_TH, factor, width)
        if patch is not None and patch.output is not None:
            output_TD = jax.vmap(apply_output)(output_TD, hidden_TH, patch.output)
        if midpoint.residual_TD is not None:
            output_TD = midpoint.residual_TD + output_TD
        return self.norm_2(output_TD) if self.wiring == "post_norm" else output_TD

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
    ) -> tuple[Array, Array, Array]:
        """The contextual layer's sum over heads and tokens, opened (attention only).

        Returns:
          Weights (A, T, T), what each head passes on from each token (A, T, D), and the sum with
          the skip (T, D), which is what a norm in front of the MLP reads.

        Raises:
          TypeError: the contextual layer is no such sum.
        """
        layer = self.contextual_layer
        if not isinstance(layer, Attention):
            raise TypeError(
                f"Block.parts: {type(layer).__name__} is not a sum over heads and tokens; use a "
                "SoftmaxAttention or LinearAttention block."
            )
        read_TD = self._read(hidden_TD)
        weights_ATT, passed_ATD = layer.parts(read_TD, positions_T=positions_T, present_T=present_T)
        mixed_TD = layer(read_TD, positions_T=positions_T, present_T=present_T)
        sum_TD = mixed_TD if self.wiring == "no_skip" else hidden_TD + mixed_TD
        return weights_ATT, passed_ATD, sum_TD

    def to_mlp_input(self, changes_ND: Array, reference_D: Array) -> Array:
        """Maps changes (N, D) of the contextual layer's output to changes of the MLP's input.

        Linear: a norm in between keeps the denominator it has at ``reference_D`` (D,), the sum of
        skip and contextual layer with everything there. In a parallel block nothing gets through.
        """
        if self.wiring == "pre_norm":
            return self.norm_2.frozen(changes_ND, reference_D)
        if self.wiring == "post_norm":
            return self.norm_1.frozen(changes_ND, reference_D)
        if self.wiring == "parallel":
            return jnp.zeros_like(changes_ND)
        return changes_ND

    def _read(self, hidden_TD: Array) -> Array:
        """What the contextual layer reads."""
        return self.norm_1(hidden_TD) if self.wiring in ("pre_norm", "parallel") else hidden_TD

    def _midpoint(self, hidden_TD: Array, mixed_TD: Array) -> Midpoint:
        if self.wiring == "no_skip":
            return Midpoint(None, mixed_TD)
        residual_TD = hidden_TD + mixed_TD
        if self.wiring == "post_norm":
            residual_TD = self.norm_1(residual_TD)
        if self.wiring == "pre_norm":
            return Midpoint(residual_TD, self.norm_2(residual_TD))
        if self.wiring == "parallel":
            return Midpoint(residual_TD, self.norm_1(hidden_TD))
        return Midpoint(residual_TD, residual_TD)
