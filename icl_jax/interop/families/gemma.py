"""Gemma 1: Llama with scaled embeddings, gains less one, and a GELU in its gated MLP.

Source: Gemma Team 2024 (arXiv 2403.08295).
"""

import math
from typing import Any

from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import (
    activation,
    attention,
    decoder,
    decoder_table,
    pre_norm_blocks,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("GemmaForCausalLM", "gemma")


def build(config: Options) -> LanguageModel:
    """The model; what its first files call "gelu" is the tanh approximation, too."""
    config.require("use_bidirectional_attention", (False, None), default=None)
    config.require("hidden_activation", ("gelu_pytorch_tanh", None), default=None)
    config = config.having(head_dim=256)
    named = activation(config, "hidden_act", default="gelu_pytorch_tanh")
    mlp = Gated(
        hidden_width=config.count("intermediate_size"),
        activation="gelu_tanh" if named == "gelu" else named,
        use_bias=False,
    )
    layer = attention(config, use_bias=config.boolean("attention_bias", default=False))
    layers = (layer,) * config.layers("num_hidden_layers")
    blocks = pre_norm_blocks(config, layers, mlp)
    scale = math.sqrt(config.count("hidden_size"))
    return decoder(config, blocks, tied=True, embedding_scale=scale)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama, with gains less one."""
    return decoder_table(model, gain_offset=1.0)


def tiny() -> dict[str, Any]:
    """One head of keys and values, and heads wider than the width asks for."""
    return {
        "architectures": ["GemmaForCausalLM"],
        "model_type": "gemma",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
