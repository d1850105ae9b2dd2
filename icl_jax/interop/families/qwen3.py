"""Qwen 3: Qwen 2 with query-key norms by head in place of the biases.

Source: Qwen Team 2025 (arXiv 2505.09388).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families import qwen2
from icl_jax.interop.families.common import decoder, decoder_table, gated, pre_norm_blocks
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("Qwen3ForCausalLM", "qwen3")


HARMLESS = qwen2.HARMLESS


def build(config: Options) -> LanguageModel:
    """The model."""
    layers = qwen2.windowed(
        config,
        use_bias=config.boolean("attention_bias", default=False),
        qk_norm="head",
        norm_epsilon=config.number("rms_norm_eps", default=1e-6, least=0.0),
    )
    return decoder(config, pre_norm_blocks(config, layers, gated(config)))


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama; the query-key norms follow from the attention."""
    return decoder_table(model)


def tiny() -> dict[str, Any]:
    """Heads wider than the width asks for, a window of five tokens in the last layer."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "attention_bias": False,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 2,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
