"""Qwen 2 and 2.5: Llama with biases on queries, keys and values, and windows in the upper layers.

Source: Yang et al. 2024 (arXiv 2407.10671), Qwen Team 2024 (arXiv 2412.15115).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.interop.families.common import (
    attention,
    decoder,
    decoder_table,
    gated,
    pre_norm_blocks,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("Qwen2ForCausalLM", "qwen2")

SLIDING, FULL = "sliding_attention", "full_attention"

HARMLESS = {
    "max_window_layers": "layer_types counts, or no layer has a window",
    "sliding_window": "no layer has a window",
}

#: What a file means that uses windows and does not say how long they are.
WINDOW = 4096


def build(config: Options) -> LanguageModel:
    """The model; most checkpoints use no window."""
    layers = windowed(config, use_bias=True, out_bias=False)
    return decoder(config, pre_norm_blocks(config, layers, gated(config)))


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama; the biases follow from the attention."""
    return decoder_table(model)


def tiny() -> dict[str, Any]:
    """A window of five tokens in the last two of three layers; positions scaled by YaRN."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 32,
        },
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def windowed(config: Options, **options: Any) -> tuple[SoftmaxAttention, ...]:
    """The attention of each layer of Qwen: with a window where the configuration says so."""
    num_layers = config.layers("num_hidden_layers")
    window = None
    if config.boolean("use_sliding_window", default=False):
        window = config.optional_integer("sliding_window", missing=WINDOW)
    first = config.integer("max_window_layers", default=28)
    default = [SLIDING if window and layer >= first else FULL for layer in range(num_layers)]
    kinds = config.sequence("layer_types", default=default)
    if len(kinds) != num_layers or not set(kinds) <= {SLIDING, FULL}:
        supported = f"num_hidden_layers = {num_layers} times {SLIDING} or {FULL}"
        raise config.unsupported("layer_types", kinds, supported)
    return tuple(
        attention(config, window=window if kind == SLIDING else None, **options) for kind in kinds
    )
