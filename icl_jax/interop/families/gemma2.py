"""Gemma 2: norms before and after, soft caps, and every other layer sees a window only.

A norm multiplies by one plus what is stored, and an embedded token by the square root of the width.
Source: Gemma Team 2024 (arXiv 2408.00118).
"""

import math
from typing import Any

from icl_jax.blocks.attention import QueryKeyNorm
from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.rotary import Rotary
from icl_jax.interop.families.common import (
    activation,
    attention,
    decoder,
    decoder_table,
    rotary,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("Gemma2ForCausalLM", "gemma2")

#: The names that configurations have for layers that see a window, and for the others.
SLIDING, FULL = "sliding_attention", "full_attention"

HARMLESS = {
    "hidden_act": "hidden_activation, or what the family has without it, counts",
    "sliding_window": "no layer has a window",
}

_NORMS = (
    ("input_layernorm", "norm_1"),
    ("post_attention_layernorm", "norm_1_out"),
    ("pre_feedforward_layernorm", "norm_2"),
    ("post_feedforward_layernorm", "norm_2_out"),
)


def build(config: Options) -> LanguageModel:
    """The model; every other layer, from the first on, sees a window."""
    turning = rotary(config.rope())
    soft_cap = _soft_cap(config, "attn_logit_softcapping", 50.0)
    blocks = tuple(
        sandwich(config, kind, turning, soft_cap=soft_cap) for kind in layer_types(config, every=2)
    )
    soft_cap = _soft_cap(config, "final_logit_softcapping", 30.0)
    return scaled_decoder(config, blocks, soft_cap=soft_cap)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The tensors of Llama, with four norms a layer and gains less one."""
    return decoder_table(model, norms=_NORMS, gain_offset=1.0)


def tiny() -> dict[str, Any]:
    """A window of five tokens, caps that are felt, and heads wider than the width asks for."""
    return {
        "architectures": ["Gemma2ForCausalLM"],
        "model_type": "gemma2",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "query_pre_attn_scalar": 20,
        "sliding_window": 5,
        "attn_logit_softcapping": 2.0,
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }


def layer_types(config: Options, *, every: int) -> tuple[str, ...]:
    """What each layer sees: where nothing is said, every so many see all, the others a window."""
    num_layers = config.layers("num_hidden_layers")
    numbers = range(1, num_layers + 1)
    default = [SLIDING if number % every else FULL for number in numbers]
    kinds = config.sequence("layer_types", default=default)
    if len(kinds) != num_layers or not set(kinds) <= {SLIDING, FULL}:
        supported = f"{SLIDING} or {FULL} for each of the {num_layers} layers"
        raise config.unsupported("layer_types", kinds, supported)
    return kinds


def sandwich(
    config: Options,
    kind: str,
    turning: Rotary,
    *,
    soft_cap: float | None = None,
    qk_norm: QueryKeyNorm = "none",
) -> Block:
    """A layer of Gemma 2 or 3.

    Args:
      config: config.json.
      kind: what it sees, ``SLIDING`` or ``FULL``.
      turning: its rotary embeddings.
      soft_cap: of the scores.
      qk_norm: of queries and keys.
    """
    config.require("use_bidirectional_attention", (False, None), default=None)
    config = config.having(head_dim=256)
    epsilon = config.number("rms_norm_eps", default=1e-6, least=0.0)
    scale = 1 / math.sqrt(config.positive("query_pre_attn_scalar", default=256))
    layer = attention(
        config,
        rotary=turning,
        use_bias=config.boolean("attention_bias", default=False),
        window=config.integer("sliding_window", default=4096) if kind == SLIDING else None,
        soft_cap=soft_cap,
        scale=scale,
        qk_norm=qk_norm,
        norm_epsilon=epsilon,
    )
    mlp = Gated(
        hidden_width=config.count("intermediate_size"),
        activation=activation(config, "hidden_activation", default="gelu_pytorch_tanh"),
        use_bias=False,
    )
    return Block(layer, mlp, wiring="sandwich", norm="rms", norm_epsilon=epsilon)


def scaled_decoder(
    config: Options, blocks: tuple[Block, ...], *, soft_cap: float | None
) -> LanguageModel:
    """What stands around the layers of Gemma 2 or 3: a scaled embedding, and a cap on logits."""
    model = decoder(config, blocks, tied=True)
    return model.clone(embedding_scale=math.sqrt(model.width), soft_cap=soft_cap)


def _soft_cap(config: Options, key: str, default: float) -> float | None:
    """A cap: null means none, and a missing one that of the released models."""
    return config.optional_number(key) if key in config.config else default
