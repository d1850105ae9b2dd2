"""A stack of blocks between token ids and logits: the one transformer of every checkpoint."""

from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from icl_jax import checks
from icl_jax.blocks.affine import dense, rows_of
from icl_jax.blocks.block import Block
from icl_jax.blocks.functional import declare_layers, functional
from icl_jax.blocks.heads import soft_capped
from icl_jax.blocks.norms import Norm, NormName
from icl_jax.dims import Array
from icl_jax.stack.run import forward

#: What reads the last states: the embedding's own matrix, a matrix of its own, or nothing.
Head = Literal["tied", "own", "none"]
HEADS = ("tied", "own", "none")


class LanguageModel(nn.Module):
    """Token embedding, blocks, final norm and head.

    Families differ in the attributes of this module and of its blocks, and in nothing else:
    decoders (``head`` ``tied`` or ``own``) and encoders (``none``) are the same stack.

    Attributes:
      blocks: the layers; alike or not.
      vocab_size: V.
      width: D, of the residual stream.
      num_positions: positions that have a learned embedding; None for none.
      max_positions: the most tokens that the model is meant for, where that is less than it could
        read; no layer asks for it, the functions of ``language`` do. None for no limit.
      position_offset: rows of that embedding in front of position 0's (OPT), which are never read.
      num_types: rows of a token-type embedding (BERT; every token has type 0); None for none.
      embedding_norm: whether a norm follows the embedding (BERT).
      embedding_scale: by which embedded tokens are multiplied (Gemma: sqrt(D)).
      norm: ``layer``, ``rms`` or ``none``: the final norm, and that of the embedding.
      final_norm: whether there is a final norm.
      norm_epsilon: of these norms, in squared units of their input.
      head: see ``Head``; without one the model's output are its last states.
      head_bias: whether the head has a bias.
      logit_scale: by which logits are multiplied (Cohere, Granite).
      soft_cap: logits l become ``cap tanh(l / cap)`` (Gemma 2); None for none.
      dtype: of the parameters, and so of the arithmetic: the embedding sets it.

    Examples:
      >>> block = Block(SoftmaxAttention(num_heads=2), Gated(hidden_width=16), norm="rms")
      >>> model = LanguageModel(repeat(block, 2), vocab_size=30, width=8)
      >>> tokens = jnp.arange(3, 13)
      >>> params = model.init(jax.random.key(0), tokens)["params"]
      >>> model.apply({"params": params}, tokens).shape  # a row of logits per token
      (10, 30)
    """

    blocks: tuple[Block, ...]
    vocab_size: int
    width: int
    num_positions: int | None = None
    position_offset: int = 0
    num_types: int | None = None
    embedding_norm: bool = False
    embedding_scale: float = 1.0
    norm: NormName = "rms"
    final_norm: bool = True
    norm_epsilon: float = 1e-6
    head: Head = "tied"
    head_bias: bool = False
    logit_scale: float = 1.0
    soft_cap: float | None = None
    dtype: jnp.dtype = jnp.float32
    max_positions: int | None = None

    def setup(self) -> None:
        where = "LanguageModel"
        checks.one_of(where, "head", self.head, HEADS)
        for name in ("vocab_size", "width"):
            checks.positive_int(where, name, getattr(self, name))
        if not self.blocks:
            raise ValueError(f"{where}: blocks is empty; a model has at least one block.")
        if self.head_bias and self.head == "none":
            raise ValueError(f"{where}: head_bias=True needs a head; this model has head='none'.")
        if self.soft_cap is not None:
            checks.positive(where, "soft_cap", self.soft_cap)
        if self.max_positions is not None:
            checks.positive_int(where, "max_positions", self.max_positions)
        normal, zeros = nn.initializers.normal(0.02), nn.initializers.zeros
        table = (self.vocab_size, self.width)
        self.embedding = self.param("embedding", normal, table, self.dtype)
        if self.num_positions is not None:
            rows = (self.num_positions + self.position_offset, self.width)
            self.position_embedding = self.param("position_embedding", normal, rows, self.dtype)
        if self.num_types is not None:
            rows = (self.num_types, self.width)
            self.type_embedding = self.param("type_embedding", normal, rows, self.dtype)
        if self.embedding_norm:
            self.norm_embedding = Norm(self.norm, self.norm_epsilon, self.dtype)
        if self.final_norm:
            self.norm_final = Norm(self.norm, self.norm_epsilon, self.dtype)
        if self.head == "own":
            self.head_kernel = self.param("head_kernel", normal, table[::-1], self.dtype)
        if self.head_bias:
            self.head_offset = self.param("head_bias", zeros, table[:1], self.dtype)
        declare_layers(self, self.width)

    def __call__(
        self,
        tokens_T: Array,
        *,
        positions_T: Array | None = None,
        present_T: Array | None = None,
    ) -> Array:
        """Logits (T, V), or the last states (T, D) without a head.

        Args:
          tokens_T: (T,), token ids.
          positions_T: (T,), position ids; 0..T-1 when left out.
          present_T: (T,), False where a position is padding.
        """
        layers = functional(self, self.variables["params"])
        stream_TD = self.embed(tokens_T, positions_T=positions_T)
        return self.readout(
            forward(layers, stream_TD, positions_T=positions_T, present_T=present_T)
        )

    def embed(self, tokens_T: Array, *, positions_T: Array | None = None) -> Array:
        """The residual stream (T, D) before the first block: of any tokens, each by itself.

        Kept tokens alone need their ``positions_T``, where a model learns positions; 0..T-1 when
        left out.
        """
        checks.rank("LanguageModel", "tokens_T", tokens_T, 1, "(T)")
        stream_TD = rows_of(self.embedding, tokens_T, or_nan=True)
        if self.embedding_scale != 1.0:
            stream_TD = stream_TD * jnp.asarray(self.embedding_scale, stream_TD.dtype)
        if self.num_positions is not None:
            if positions_T is None:
                positions_T = jnp.arange(tokens_T.shape[0], dtype=jnp.int32)
            rows_T = positions_T + self.position_offset
            stream_TD = stream_TD + rows_of(self.position_embedding, rows_T, or_nan=True)
        if self.num_types is not None:
            stream_TD = stream_TD + self.type_embedding[:1]
        return self.norm_embedding(stream_TD) if self.embedding_norm else stream_TD

    def readout(self, stream_TD: Array) -> Array:
        """Logits (T, V) from the residual stream behind the last block, of rows by themselves."""
        return self.logits(self.states(stream_TD))

    def states(self, stream_TD: Array) -> Array:
        """What the head reads (T, D): the residual stream after the last block and the norm."""
        return self.norm_final(stream_TD) if self.final_norm else stream_TD

    def logits(self, states_TD: Array) -> Array:
        """The head (T, V) on what it reads; the last states themselves without one."""
        if self.head == "none":
            return states_TD
        bias_V = self.head_offset if self.head_bias else None
        if self.head == "tied":  # Read as it is stored, row by row.
            logits_TV = jnp.einsum(
                "td,vd->tv",
                states_TD,
                self.embedding.astype(states_TD.dtype),
                precision=jax.lax.Precision.HIGHEST,
            )
            logits_TV = (
                logits_TV if bias_V is None else logits_TV + bias_V.astype(logits_TV.dtype)[None]
            )
        else:
            logits_TV = dense(states_TD, self.head_kernel, bias_V)
        if self.logit_scale != 1.0:
            logits_TV = logits_TV * jnp.asarray(self.logit_scale, logits_TV.dtype)
        return soft_capped(logits_TV, self.soft_cap)
