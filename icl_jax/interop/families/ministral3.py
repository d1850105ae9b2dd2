"""Ministral 3: Mistral with positions scaled by YaRN, and queries that grow with their position.

Source: Mistral AI 2025 (Ministral 3).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import (
    attention,
    decoder,
    decoder_table,
    gated,
    pre_norm_blocks,
    rotary,
    uniform_layers,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("Ministral3ForCausalLM", "ministral3")


def build(config: Options) -> LanguageModel:
    """The model; the lengths that positions and queries are scaled from are one."""
    window = config.optional_integer("sliding_window")
    uniform_layers(config, "full_attention" if window is None else "sliding_attention")
    rope = config.rope()
    rope.either("max_position_embeddings", default=None)  # A copy of what stands outside.
    beta = rope.number("llama_4_scaling_beta")
    period = rope.integer("original_max_position_embeddings")
    config = config.having(head_dim=128)
    layer = attention(config, rotary=rotary(rope), window=window, temper=(beta, period))
    layers = (layer,) * config.layers("num_hidden_layers")
    return decoder(config, pre_norm_blocks(config, layers, gated(config), epsilon=1e-5))


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama."""
    return decoder_table(model)


def tiny() -> dict[str, Any]:
    """Queries grow every eight positions."""
    return {
        "architectures": ["Ministral3ForCausalLM"],
        "model_type": "ministral3",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 8,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
        "sliding_window": None,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 11,
    }
