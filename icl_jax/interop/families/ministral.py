"""Ministral: Mistral with a window in some layers only.

Source: Mistral AI 2024 (Ministral 8B).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families import mistral
from icl_jax.interop.families.common import (
    attention,
    decoder,
    decoder_table,
    gated,
    pre_norm_blocks,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("MinistralForCausalLM", "ministral")

SLIDING, FULL = "sliding_attention", "full_attention"


def build(config: Options) -> LanguageModel:
    """The model; where nothing is said of layers, all have the window."""
    num_layers = config.layers("num_hidden_layers")
    window = config.optional_integer("sliding_window", missing=mistral.WINDOW)
    if window is None:
        raise config.unsupported("sliding_window", None, "a window (without one it is a Mistral)")
    kinds = config.sequence("layer_types", default=(SLIDING,) * num_layers)
    if len(kinds) != num_layers or not set(kinds) <= {FULL, SLIDING}:
        supported = f"num_hidden_layers = {num_layers} times {FULL} or {SLIDING}"
        raise config.unsupported("layer_types", kinds, supported)
    layers = tuple(attention(config, window=window if kind == SLIDING else None) for kind in kinds)
    return decoder(config, pre_norm_blocks(config, layers, gated(config)))


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama."""
    return decoder_table(model)


def tiny() -> dict[str, Any]:
    """One layer that sees all, between two that see six tokens."""
    return {
        **mistral.tiny(),
        "architectures": ["MinistralForCausalLM"],
        "model_type": "ministral",
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    }
