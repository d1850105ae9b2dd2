"""A mixture of experts as one MLP: a router picks a few gated MLPs for each token.

``M(z) = sum_e g_e(z) MLP_e(z)`` over the chosen experts. Side by side, the chosen experts' gated
activations ``[g_1 a_1, ..., g_k a_k]`` are the hidden activations of one wide MLP, so the input
factor and the down patch of a dense block hold for a mixture word for word: the least-norm down
patch gives expert e the share ``g_e outer(a_e, r) / sum_f g_f^2 |a_f|^2``
(Goldwaser et al., arXiv 2511.17864).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.affine import dense, rows_of
from icl_jax.blocks.feedforward import ActivationName, Feedforward, patched_input
from icl_jax.blocks.grouped import group_rows, grouped_map
from icl_jax.dims import Array, accumulator
from icl_jax.patches.token import InputFactor

_INTO = nn.initializers.lecun_normal(in_axis=-2, out_axis=-1, batch_axis=0)


class Experts(Feedforward):
    """Top-k routed gated experts (Jiang et al., arXiv 2401.04088), and a shared one if wanted.

    Attributes:
      num_experts: E.
      experts_per_token: k, how many each token gets.
      hidden_width: F, of one expert.
      renormalise: whether the gates of the chosen experts are divided by their sum.
      shared_width: hidden width of an expert that every token gets, weighed by a sigmoid of its own
        (Qwen2-MoE); None for none.
      use_bias: on the router and on all kernels of the routed experts (gpt-oss); the bias of an
        expert's down kernel is weighed by its gate.
      limit: before the activation a gate is at most so large, and an up within so much of zero
        (gpt-oss); None for none.
      up_offset: what is added to an up, within that limit, before it is multiplied (gpt-oss: 1).

    Examples:
      >>> mlp = Experts(num_experts=4, experts_per_token=2, hidden_width=16)
      >>> tokens = jax.random.normal(jax.random.key(0), (6, 8))
      >>> variables = mlp.init(jax.random.key(1), tokens)
      >>> chosen, gates = mlp.apply(variables, tokens, method="route")
      >>> chosen.shape, jnp.round(gates.sum(1), 4).tolist()
      ((6, 2), [1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
      >>> mlp.apply(variables, tokens, None, method="hidden").shape  # the two experts' side by side
      (6, 32)
    """

    num_experts: int = 8
    experts_per_token: int = 2
    hidden_width: int = 128
    renormalise: bool = True
    shared_width: int | None = None
    activation: ActivationName = "silu"
    use_bias: bool = False
    limit: float | None = None
    up_offset: float = 0.0

    @property
    def ends_in_bias(self) -> bool:
        """No: each token gets the gated biases of its own experts."""
        return False

    @property
    def input_kernels(self) -> tuple[str, ...]:
        """The router, every expert's gate and up, and those of the shared one."""
        shared = () if self.shared_width is None else ("shared_gate", "shared_up", "shared_router")
        return ("router", "gate", "up", *shared)

    @property
    def shares_down(self) -> bool:
        """No: each token goes through those of its own experts."""
        return False

    def route(self, inputs_TD: Array) -> tuple[Array, Array]:
        """The chosen experts (T, k), int32, and their gates (T, k), in float32 or wider."""
        for name in ("num_experts", "experts_per_token", "hidden_width"):
            checks.positive_int("Experts", name, getattr(self, name))
        if self.experts_per_token > self.num_experts:
            raise ValueError(
                f"Experts: experts_per_token={self.experts_per_token} is more than "
                f"num_experts={self.num_experts}."
            )
        if self.limit is not None:
            checks.positive("Experts", "limit", self.limit)
        router_DE = self._kernel("router", (inputs_TD.shape[-1], self.num_experts))
        bias_E = self._bias("router", (self.num_experts,))
        logits_TE = dense(inputs_TD, router_DE, bias_E).astype(accumulator(inputs_TD.dtype))
        gates_Tk, chosen_Tk = jax.lax.top_k(
            jax.nn.softmax(logits_TE, axis=-1), self.experts_per_token
        )
        if self.renormalise:
            gates_Tk = gates_Tk / jnp.sum(gates_Tk, axis=-1, keepdims=True)
        return chosen_Tk.astype(jnp.int32), gates_Tk

    def hidden(self, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """Gated activations of the chosen experts, by rank, then of a shared one: (T, k F + S)."""
        inputs_TD = patched_input(mlp_input_TD, factor)
        length, width = inputs_TD.shape
        chosen_Tk, gates_Tk = self.route(inputs_TD)
        into = (self.num_experts, width, self.hidden_width)
        wide = (self.num_experts, self.hidden_width)
        kernels = (
            (self._kernel("gate", into), self._bias("gate", wide)),
            (self._kernel("up", into), self._bias("up", wide)),
        )

        def activate(rows_BD: Array, kernels: Any) -> Array:
            gate_BF, up_BF = (dense(rows_BD, *kernel_and_bias) for kernel_and_bias in kernels)
            if self.limit is not None:
                gate_BF = jnp.minimum(gate_BF, jnp.asarray(self.limit, gate_BF.dtype))
                up_BF = jnp.clip(up_BF, -self.limit, self.limit)
            if self.up_offset:
                up_BF = up_BF + jnp.asarray(self.up_offset, up_BF.dtype)
            return self._act(gate_BF) * up_BF

        # A row for each token and each of its experts.
        blocks = group_rows(chosen_Tk.reshape(-1), self.num_experts)
        rows_ND = jnp.repeat(inputs_TD, self.experts_per_token, axis=0)
        slots_NF = grouped_map(activate, rows_ND, kernels, blocks)
        slots_TkF = slots_NF.reshape(length, self.experts_per_token, -1)
        gated_TkF = slots_TkF * gates_Tk[..., None].astype(inputs_TD.dtype)
        hidden_TH = gated_TkF.reshape(length, -1)
        if self.shared_width is None:
            return hidden_TH
        return jnp.concatenate([hidden_TH, self._shared(inputs_TD, self.shared_width)], axis=-1)

    def output(self, hidden_TH: Array, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """The chosen experts' down kernels; the (small) router runs again to say whose they are."""
        length, width = mlp_input_TD.shape
        chosen_Tk, gates_Tk = self.route(patched_input(mlp_input_TD, factor))
        routed = self.experts_per_token * self.hidden_width
        # Split, then merged: on a mesh with explicit axes JAX refuses both at once.
        slots_TkF = hidden_TH[:, :routed].reshape(length, self.experts_per_token, -1)
        rows_NF = slots_TkF.reshape(-1, self.hidden_width)
        down_EFD = self._kernel("down", (self.num_experts, self.hidden_width, width))
        blocks = group_rows(chosen_Tk.reshape(-1), self.num_experts)
        parts_ND = grouped_map(dense, rows_NF, down_EFD, blocks)
        output_TD = jnp.sum(parts_ND.reshape(length, self.experts_per_token, width), axis=1)
        bias_ED = self._bias("down", (self.num_experts, width))
        if bias_ED is not None:
            biases_TkD = rows_of(bias_ED.astype(output_TD.dtype), chosen_Tk)
            weighed_TkD = gates_Tk[..., None].astype(output_TD.dtype) * biases_TkD
            output_TD = output_TD + jnp.sum(weighed_TkD, axis=1)
        if self.shared_width is None:
            return output_TD
        shared_SD = self._kernel("shared_down", (self.shared_width, width))
        return output_TD + dense(hidden_TH[:, routed:], shared_SD)

    def _shared(self, inputs_TD: Array, shared_width: int) -> Array:
        """The shared expert's activations (T, S), times its own gate."""
        width = inputs_TD.shape[-1]
        into = (width, shared_width)
        gate_TS = self._act(dense(inputs_TD, self._kernel("shared_gate", into)))
        up_TS = dense(inputs_TD, self._kernel("shared_up", into))
        weight_T1 = jax.nn.sigmoid(dense(inputs_TD, self._kernel("shared_router", (width, 1))))
        return weight_T1 * gate_TS * up_TS

    @nn.compact
    def _kernel(self, name: str, shape: tuple[int, ...]) -> Array:
        initial = _INTO if len(shape) == 3 else nn.initializers.lecun_normal()
        return self.param(name, initial, shape, self.dtype)

    @nn.compact
    def _bias(self, name: str, shape: tuple[int, ...]) -> Array | None:
        if not self.use_bias:
            return None
        return self.param(f"{name}_bias", nn.initializers.zeros, shape, self.dtype)
