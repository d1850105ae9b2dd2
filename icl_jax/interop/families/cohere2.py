"""Cohere 2 (Command R7B, Command A): Cohere with positions in the layers that see a window only.

Source: Cohere 2025 (arXiv 2504.00698).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families import cohere
from icl_jax.interop.families.common import attention
from icl_jax.interop.families.gemma2 import SLIDING, layer_types
from icl_jax.interop.harmless import Only
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("Cohere2ForCausalLM", "cohere2")

HARMLESS = {
    "layer_switch": "sliding_window_pattern or layer_types counts",
    "order_of_interleaved_layers": Only(("local_attn_first",)),
    "position_embedding_type": Only(("rope_gptj",)),
    "sliding_window": "no layer has a window",
    "use_embedding_sharing": Only((True,)),
    "use_gated_activation": Only((True,)),
    "use_parallel_block": Only((True,)),
    "use_parallel_embedding": "another way to compute the same numbers",
    "use_qk_norm": Only((False,)),
}


def build(config: Options) -> LanguageModel:
    """The model; every fourth layer sees everything, and no positions."""
    kinds = layer_types(config, every=config.count("sliding_window_pattern", default=4))
    window = config.integer("sliding_window", default=4096) if SLIDING in kinds else None
    layer = attention(
        config,
        rotary=cohere.turning(config),
        use_bias=config.boolean("attention_bias", default=False),
    )
    unturned = layer.clone(rotary=None)
    layers = tuple(layer.clone(window=window) if kind == SLIDING else unturned for kind in kinds)
    return cohere.side_by_side(config, layers)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Cohere."""
    return cohere.table(model, config)


def tiny() -> dict[str, Any]:
    """Two layers that see five tokens, one that sees all; then one more."""
    return {
        "architectures": ["Cohere2ForCausalLM"],
        "model_type": "cohere2",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 5,
        "sliding_window_pattern": 3,
        "logit_scale": 0.25,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 5,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
