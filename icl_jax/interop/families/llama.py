"""Llama 2 and 3: root-mean-square norms, rotary positions, gated MLPs, grouped queries.

Source: Touvron et al. 2023 (arXiv 2307.09288), Grattafiori et al. 2024 (arXiv 2407.21783).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import (
    attention,
    decoder,
    decoder_table,
    gated,
    pre_norm_blocks,
    uniform_layers,
)
from icl_jax.interop.harmless import Only
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("LlamaForCausalLM", "llama")


HARMLESS = {
    "is_llama_config": "says which family it is",
    "rope_interleaved": Only((False,)),
}


def build(config: Options) -> LanguageModel:
    """The model; some descendants have biases."""
    uniform_layers(config, "full_attention")
    layer = attention(config, use_bias=config.boolean("attention_bias", default=False))
    mlp = gated(config, use_bias=config.boolean("mlp_bias", default=False))
    layers = (layer,) * config.layers("num_hidden_layers")
    return decoder(config, pre_norm_blocks(config, layers, mlp))


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table that others are variations of."""
    return decoder_table(model)


def tiny() -> dict[str, Any]:
    """Grouped queries, and positions scaled as in Llama 3.1."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
