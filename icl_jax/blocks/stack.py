"""A stack of blocks, and the bridge from Flax to pure functions on arrays."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.affine import Affine
from icl_jax.blocks.attention import SoftmaxAttention
from icl_jax.blocks.block import Block
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.memory import KeyValues
from icl_jax.blocks.norms import Norm, NormName
from icl_jax.dims import Array, Params
from icl_jax.patches.block import Midpoint, TokenPatch
from icl_jax.patches.normed import OutputNorm
from icl_jax.patches.token import InputFactor


class Stack(nn.Module):
    """Embedding, blocks, final norm and readout: an in-context learner on real-valued tokens.

    Attributes:
      blocks: the layers; alike or not. ``repeat(block, depth)`` makes copies of one.
      width: D, of the residual stream.
      output_width: O.
      final_norm: ``layer``, ``rms`` or ``none``, before the readout.
      dtype: of the parameters; the arithmetic is in the dtype of the input.
    """

    blocks: tuple[Block, ...]
    width: int
    output_width: int = 1
    final_norm: NormName = "none"
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        checks.positive_int("Stack", "width", self.width)
        checks.positive_int("Stack", "output_width", self.output_width)
        if not self.blocks:
            raise ValueError("Stack: blocks is empty; a stack has at least one block.")
        self.embedding = Affine(self.width, dtype=self.dtype)
        self.norm = Norm(self.final_norm, dtype=self.dtype)
        self.head = Affine(self.output_width, dtype=self.dtype)

    def __call__(
        self,
        tokens_TC: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """Outputs (T, O) for tokens (T, C)."""
        hidden_TD = self.embed(tokens_TC)
        for block in self.blocks:
            hidden_TD = block(hidden_TD, positions_T=positions_T, present_T=present_T)
        return self.readout(hidden_TD)

    def embed(self, tokens_TC: Array) -> Array:
        """The residual stream (T, D) before the first block."""
        return self.embedding(tokens_TC)

    def readout(self, hidden_TD: Array) -> Array:
        """Outputs (T, O) from the residual stream after the last block."""
        return self.head(self.norm(hidden_TD))


def repeat(block: Block, depth: int) -> tuple[Block, ...]:
    """``depth`` blocks of one design, each with parameters of its own."""
    checks.positive_int("repeat", "depth", depth)
    # The same instance twice would mean shared parameters, so every layer is a clone.
    return tuple(
        block.clone(contextual_layer=block.contextual_layer.clone(), mlp=block.mlp.clone())
        for _ in range(depth)
    )


@dataclass(frozen=True)
class FlaxBlock:
    """A ``Block`` as a ``ContextualBlock``: pure functions on arrays, hashable for jit."""

    module: Block

    @property
    def patches_input(self) -> bool:
        """False for a parallel block: its MLP reads the stream before the context enters it."""
        return self.module.wiring != "parallel"

    @property
    def has_output_bias(self) -> bool:
        """Whether the MLP, or the norm on its output, ends in a bias."""
        if self.norms_output:
            return self.module.norm == "layer"
        return self.module.mlp.use_bias

    @property
    def norms_output(self) -> bool:
        """Whether a norm stands on the MLP's output."""
        return self.module.norms_output and self.module.norm != "none"

    @property
    def causal(self) -> bool:
        """Whether position t reads positions up to t only."""
        return self.module.contextual_layer.causal

    @property
    def normalised(self) -> bool:
        """Whether the contextual layer's weights sum to 1 over what is there (softmax)."""
        return isinstance(self.module.contextual_layer, SoftmaxAttention)

    @property
    def has_norm(self) -> bool:
        """Whether a norm stands between the contextual layer and the MLP's input."""
        normed = ("pre_norm", "post_norm", "sandwich", "output_norm")
        return self.module.norm != "none" and self.module.wiring in normed

    def contextual(
        self,
        params: Params,
        hidden_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Midpoint:
        """See ``Block.contextual``."""
        return self._apply(
            params, "contextual", hidden_TD, positions_T=positions_T, present_T=present_T
        )

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

    def extend(
        self,
        params: Params,
        hidden_MD: Array,
        memory: KeyValues,
        *,
        positions_M: Array,
        present_M: Array | None = None,
    ) -> tuple[Midpoint, KeyValues]:
        """See ``Block.extend``."""
        return self._apply(
            params, "extend", hidden_MD, memory, positions_M=positions_M, present_M=present_M
        )

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
        hidden_TD: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> tuple[Array, Array, tuple[Array, Array]]:
        """See ``Block.parts``."""
        return self._apply(params, "parts", hidden_TD, positions_T=positions_T, present_T=present_T)

    def scores(self, params: Params, hidden_TD: Array) -> tuple[Array, Array]:
        """See ``Block.scores``."""
        return self._apply(params, "scores", hidden_TD)

    def to_mlp_input(
        self, params: Params, changes_ND: Array, references: tuple[Array, Array]
    ) -> Array:
        """See ``Block.to_mlp_input``."""
        return self._apply(params, "to_mlp_input", changes_ND, references)

    def _apply(self, params: Params, method: str, *args: Any, **kwargs: Any) -> Any:
        return self.module.apply({"params": params}, *args, method=method, **kwargs)


def functional(
    stack: Stack | LanguageModel, params: Params
) -> tuple[tuple[FlaxBlock, ...], tuple[Params, ...]]:
    """The layers of a stack as pure functions, and the parameters of each.

    Args:
      stack: the (unbound) stack or language model.
      params: its parameters, ``variables["params"]`` of ``stack.init``.

    Returns:
      ``(blocks, block_params)``, as ``stack_patches`` and ``prefix_pass`` take them.
    """
    names = [f"blocks_{layer}" for layer in range(len(stack.blocks))]
    missing = [name for name in names if name not in params]
    if missing:
        raise ValueError(
            f"functional: params has no {', '.join(missing)}; pass the 'params' collection of "
            "stack.init(key, tokens)."
        )
    return tuple(FlaxBlock(block) for block in stack.blocks), tuple(params[n] for n in names)


def cast(params: Params, dtype: jnp.dtype) -> Params:
    """All parameters in another floating-point dtype."""
    return jax.tree.map(lambda array: array.astype(dtype), params)
