"""SmolLM3: Llama without rotary positions in every fourth layer (or in those of a list).

Source: Bakouch et al. 2025 (SmolLM3); Yang et al. 2025 (arXiv 2501.18795).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import (
    attention,
    decoder,
    decoder_table,
    gated,
    pre_norm_blocks,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("SmolLM3ForCausalLM", "smollm3")

SLIDING, FULL = "sliding_attention", "full_attention"

HARMLESS = {
    "max_window_layers": "layer_types counts, or no layer has a window",
    "sliding_window": "no layer has a window",
}


def build(config: Options) -> LanguageModel:
    """The model; what its list of layers without rotary positions calls 1 is a layer with them."""
    num_layers = config.layers("num_hidden_layers")
    every = config.count("no_rope_layer_interval", default=4)
    default = [int((layer + 1) % every != 0) for layer in range(num_layers)]
    turning = config.sequence("no_rope_layers", default=default)
    if len(turning) != num_layers or not set(turning) <= {0, 1}:
        supported = f"num_hidden_layers = {num_layers} times 0 or 1"
        raise config.unsupported("no_rope_layers", turning, supported)
    layer = attention(
        config, base=2000000.0, use_bias=config.boolean("attention_bias", default=False)
    )
    layers = tuple(
        layer.clone(rotary=layer.rotary if turns else None, window=window)
        for turns, window in zip(turning, _windows(config, turning), strict=True)
    )
    mlp = gated(config, use_bias=config.boolean("mlp_bias", default=False))
    return decoder(config, pre_norm_blocks(config, layers, mlp), tied=True)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama."""
    return decoder_table(model)


def tiny() -> dict[str, Any]:
    """Positions in two of three layers."""
    return {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 5000.0,
        "no_rope_layers": [1, 0, 1],
        "use_sliding_window": False,
        "sliding_window": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _windows(config: Options, turning: tuple[int, ...]) -> list[int | None]:
    """The window of each layer; where nothing is said, layers without positions have it."""
    windowed = config.boolean("use_sliding_window", default=False)
    window = config.optional_integer("sliding_window") if windowed else None
    default = [FULL if turns or window is None else SLIDING for turns in turning]
    kinds = config.sequence("layer_types", default=default)
    allowed = {FULL} if window is None else {FULL, SLIDING}
    if len(kinds) != len(turning) or not set(kinds) <= allowed:
        supported = f"num_hidden_layers = {len(turning)} times {' or '.join(sorted(allowed))}"
        raise config.unsupported("layer_types", kinds, supported)
    return [window if kind == SLIDING else None for kind in kinds]
