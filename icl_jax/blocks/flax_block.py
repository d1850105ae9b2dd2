"""A Flax block as pure functions on arrays: what ``stack`` and ``patches`` ask of a block."""

from dataclasses import dataclass
from typing import Any

import jax

from icl_jax.blocks.attention_steps import AttentionSteps
from icl_jax.blocks.block import Block
from icl_jax.blocks.views import Slots
from icl_jax.dims import Array, Params
from icl_jax.patches.block import TokenPatch
from icl_jax.patches.normed import OutputNorm
from icl_jax.patches.token import InputFactor
from icl_jax.stack.block import Midpoint

_OF_THE_MLP = ("hidden", "output", "mlp_output", "finish", "to_mlp_input")


@dataclass(frozen=True)
class FlaxBlock:
    """A ``Block`` as a ``ContextualBlock``: pure functions on arrays, hashable for jit.

    Examples:
      >>> module = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> stream = jax.random.normal(jax.random.key(0), (6, 8))
      >>> params = module.init(jax.random.key(1), stream)["params"]
      >>> block = FlaxBlock(module)
      >>> block.input_kernels, block.patches_input, block.has_norm
      (('gate', 'up'), True, True)
      >>> output = apply_block(block, params, block.contextual(params, stream))
      >>> bool(jnp.allclose(output, module.apply({"params": params}, stream), atol=1e-6))
      True
    """

    module: Block

    @property
    def patches_input(self) -> bool:
        """False for a parallel block: its MLP reads the stream before the context enters it."""
        return self.module.wired.reads_context

    @property
    def has_output_bias(self) -> bool:
        """Whether the MLP, or the norm on its output, ends in a bias."""
        if self.norms_output:
            return self.module.norm == "layer"
        return self.module.mlp.ends_in_bias

    @property
    def shares_down(self) -> bool:
        """Whether every token goes through the same down kernel (not so among experts)."""
        return self.module.mlp.shares_down

    @property
    def norms_output(self) -> bool:
        """Whether a norm stands on the MLP's output."""
        return self.module.norms_output and self.module.norm != "none"

    @property
    def causal(self) -> bool:
        """Whether position t reads positions up to t only."""
        return self.module.contextual_layer.causal

    @property
    def normalised(self) -> bool | None:
        """Whether the contextual layer's weights sum to 1 over what is there (softmax)."""
        return self.module.contextual_layer.normalised

    @property
    def has_sink(self) -> bool:
        """Whether a share of these weights goes to a sink, which is always there."""
        return self.module.contextual_layer.has_sink

    @property
    def has_memory(self) -> bool:
        """Whether ``extend`` can go on after the tokens so far."""
        return self.module.contextual_layer.has_memory

    @property
    def has_norm(self) -> bool:
        """Whether a norm stands between the contextual layer and the MLP's input."""
        return self.module.norm != "none" and self.module.wired.has_norm_before_mlp

    @property
    def has_skip(self) -> bool:
        """Whether what the context adds goes around the MLP, so that an output patch gives it back.

        (In a mixer nothing does: the stream beside the MLP is the block's input.)
        """
        return self.module.wired.adds_mixed

    @property
    def ends_in_sum(self) -> bool:
        """Whether its output is the residual stream plus what the MLP gives, and nothing more."""
        behind = self.module.wired.norms_sum or self.module.wired.norms_mlp_output
        return self.has_skip and not (behind and self.module.norm != "none")

    @property
    def norms_residual(self) -> bool:
        """Whether a norm stands between the contextual layer and that stream."""
        wired = self.module.wired
        return self.module.norm != "none" and (wired.norms_mixed or wired.norms_sum)

    @property
    def input_kernels(self) -> tuple[str, ...]:
        """The names, among the MLP's parameters, of what reads its input; see ``Feedforward``."""
        return self.module.mlp.input_kernels

    def contextual(
        self,
        params: Params,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Midpoint:
        """See ``Block.contextual``."""
        return self._apply(
            params, "contextual", stream_TD, positions_T=positions_T, present_T=present_T
        )

    def mixed(
        self,
        params: Params,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """See ``Block.mixed``."""
        return self._apply(params, "mixed", stream_TD, positions_T=positions_T, present_T=present_T)

    def join(self, params: Params, stream_TD: Array, mixed_TD: Array) -> Midpoint:
        """See ``Block.join``."""
        return self._apply(params, "join", stream_TD, mixed_TD)

    def hidden(self, params: Params, mlp_input_TD: Array, factor: InputFactor | None) -> Array:
        """See ``Block.hidden``."""
        return self._apply(params, "hidden", mlp_input_TD, factor)

    def output(
        self, params: Params, midpoint: Midpoint, hidden_TH: Array, patch: TokenPatch | None
    ) -> Array:
        """See ``Block.output``."""
        return self._apply(params, "output", midpoint, hidden_TH, patch)

    def output_norm(self, params: Params) -> OutputNorm | None:
        """The root-mean-square norm on the MLP's output; None where there is none."""
        if not self.norms_output or self.module.norm != "rms":
            return None
        return OutputNorm(params["norm_2_out"]["scale"], self.module.norm_epsilon)

    def mlp_output(
        self, params: Params, mlp_input_TD: Array, hidden_TH: Array, factor: InputFactor | None
    ) -> Array:
        """See ``Block.mlp_output``."""
        return self._apply(params, "mlp_output", mlp_input_TD, hidden_TH, factor)

    def finish(
        self,
        params: Params,
        midpoint: Midpoint,
        output_TD: Array,
        hidden_TH: Array,
        patch: TokenPatch | None,
    ) -> Array:
        """See ``Block.finish``."""
        return self._apply(params, "finish", midpoint, output_TD, hidden_TH, patch)

    def empty_memory(self, slots: int, width: int, dtype: Any) -> Any:
        """See ``ContextualLayer.empty_memory``."""
        return self.module.contextual_layer.empty_memory(slots, width, dtype)

    def extend(
        self,
        params: Params,
        streams: tuple[Array, ...],
        memories: tuple[Any, ...],
        slots: tuple[Slots, ...],
    ) -> tuple[tuple[Midpoint, ...], tuple[Any, ...]]:
        """See ``Block.extend``."""
        return self._apply(params, "extend", streams, memories, slots)

    def extend_mixed(
        self,
        params: Params,
        streams: tuple[Array, ...],
        memories: tuple[Any, ...],
        slots: tuple[Slots, ...],
    ) -> tuple[tuple[Array, ...], tuple[Any, ...]]:
        """See ``Block.extend_mixed``."""
        return self._apply(params, "extend_mixed", streams, memories, slots)

    def prefixes(
        self, params: Params, context_ND: Array, probes_MD: Array, *, positions_M: Array
    ) -> tuple[Midpoint, Midpoint]:
        """See ``Block.prefixes``."""
        return self._apply(params, "prefixes", context_ND, probes_MD, positions_M=positions_M)

    def suffixes(
        self, params: Params, context_ND: Array, query_D: Array, *, positions_T: Array
    ) -> Midpoint:
        """See ``Block.suffixes``."""
        return self._apply(params, "suffixes", context_ND, query_D, positions_T=positions_T)

    def parts(
        self,
        params: Params,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
        rows_M: Array | None = None,
    ) -> tuple[Array, Array, tuple[Array, Array]]:
        """See ``Block.parts``."""
        places = {"positions_T": positions_T, "present_T": present_T, "rows_M": rows_M}
        return self._apply(params, "parts", stream_TD, **places)

    def sink_weights(
        self,
        params: Params,
        stream_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
        rows_M: Array | None = None,
    ) -> Array:
        """See ``Block.sink_weights``."""
        places = {"positions_T": positions_T, "present_T": present_T, "rows_M": rows_M}
        return self._apply(params, "sink_weights", stream_TD, **places)

    def scores(
        self, params: Params, stream_TD: Array, rows_M: Array | None = None
    ) -> tuple[Array, Array]:
        """See ``Block.scores``."""
        return self._apply(params, "scores", stream_TD, rows_M)

    def to_mlp_input(
        self, params: Params, changes_ND: Array, references: tuple[Array, Array]
    ) -> Array:
        """See ``Block.to_mlp_input``."""
        return self._apply(params, "to_mlp_input", changes_ND, references)

    def to_residual(
        self, params: Params, changes_ND: Array, references: tuple[Array, Array]
    ) -> Array:
        """See ``Block.to_residual``."""
        return self._apply(params, "to_residual", changes_ND, references)

    def attention_steps(
        self, params: Params, stream_TD: Array, *, positions_T: Array | None = None
    ) -> tuple[Array, AttentionSteps]:
        """See ``Block.attention_steps``."""
        return self._apply(params, "attention_steps", stream_TD, positions_T=positions_T)

    def _apply(self, params: Params, method: str, *args: Any, **kwargs: Any) -> Any:
        # What a trace calls these steps (``--profile``).
        with jax.named_scope("mlp" if method in _OF_THE_MLP else "contextual"):
            return self.module.apply({"params": params}, *args, method=method, **kwargs)
