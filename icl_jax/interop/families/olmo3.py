"""OLMo 3: OLMo 2 with a window in three of four layers, whose positions are never scaled.

Source: OLMo Team 2025 (arXiv 2512.13961).
"""

from collections.abc import Mapping
from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.rotary import Rotary
from icl_jax.interop.families import olmo2
from icl_jax.interop.families.common import attention, decoder, gated, rotary, wired
from icl_jax.interop.families.gemma2 import FULL, SLIDING, layer_types
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("Olmo3ForCausalLM", "olmo3")

HARMLESS = {"sliding_window": "no layer has a window"}

_BASE = 500000.0


def build(config: Options) -> LanguageModel:
    """The model."""
    epsilon = config.number("rms_norm_eps", default=1e-5, least=0.0)
    turning = _rotaries(config)
    kinds = layer_types(config, every=4)
    window = config.integer("sliding_window", default=4096) if SLIDING in kinds else None
    layers = tuple(
        attention(
            config,
            rotary=turning[kind],
            window=window if kind == SLIDING else None,
            use_bias=config.boolean("attention_bias", default=False),
            qk_norm="all",
            norm_epsilon=epsilon,
        )
        for kind in kinds
    )
    blocks = wired(layers, gated(config), wiring="reordered_norm", norm="rms", norm_epsilon=epsilon)
    return decoder(config, blocks)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of OLMo 2."""
    return olmo2.table(model, config)


def tiny() -> dict[str, Any]:
    """Three layers that see five tokens; the fourth sees all, its positions scaled by YaRN."""
    return {
        "architectures": ["Olmo3ForCausalLM"],
        "model_type": "olmo3",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 8.0,
            "original_max_position_embeddings": 16,
            "attention_factor": 1.2,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
        },
        "sliding_window": 5,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def _rotaries(config: Options) -> dict[str, Rotary]:
    """Of each kind of layer: as its own object says, or scaled where all is seen only."""
    base = config.optional_number("rope_theta")
    if base not in (None, _BASE):
        # transformers then gives it to one kind of layer and not to the other.
        raise config.unsupported(
            "rope_theta", base, f"{_BASE}, or rope_parameters with one for each kind of layer"
        )
    if config.has("rope_scaling") and config.has("rope_parameters"):
        raise config.unsupported(
            "rope_scaling", config.either("rope_scaling"), "null beside rope_parameters"
        )
    newer = config.mapping("rope_parameters", default={}).config
    flat = [key for key in newer if key not in (SLIDING, FULL)]
    if flat:
        raise config.unsupported("rope_parameters", newer, f"an object with {SLIDING} and {FULL}")
    own = isinstance(newer.get(SLIDING), Mapping)
    return {
        SLIDING: rotary(config.rope(SLIDING), base=_BASE) if own else Rotary(_BASE),
        FULL: rotary(config.rope(FULL), base=_BASE),
    }
