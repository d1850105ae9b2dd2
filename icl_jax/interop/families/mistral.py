"""Mistral: Llama with a sliding window in every layer.

Source: Jiang et al. 2023 (arXiv 2310.06825).
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
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("MistralForCausalLM", "mistral")

#: What a file means that says nothing of a window, not even null.
WINDOW = 4096


def build(config: Options) -> LanguageModel:
    """The model; later versions have no window, and heads of a width of their own."""
    window = config.optional_integer("sliding_window", missing=WINDOW)
    uniform_layers(config, "full_attention" if window is None else "sliding_attention")
    layer = attention(config, window=window)
    layers = (layer,) * config.layers("num_hidden_layers")
    return decoder(config, pre_norm_blocks(config, layers, gated(config)))


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama."""
    return decoder_table(model)


def tiny() -> dict[str, Any]:
    """A window of six tokens, heads narrower than the width asks for."""
    return {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 6,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
