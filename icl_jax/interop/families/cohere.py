"""Cohere (Command R, Aya): attention and MLP side by side on one layer norm without a bias.

Neighbouring features turn together, and logits are scaled. Source: Cohere 2024 (Command R; Aya 23,
arXiv 2405.15032).
"""

import dataclasses
from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.rotary import Rotary
from icl_jax.interop.families.common import (
    attention,
    decoder,
    decoder_table,
    gated,
    rotary,
    wired,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("CohereForCausalLM", "cohere")

_NORMS = (("input_layernorm", "norm_1"),)


def build(config: Options) -> LanguageModel:
    """The model; the plus version has norms on the queries and keys of each head."""
    layer = attention(
        config,
        rotary=turning(config),
        use_bias=config.boolean("attention_bias", default=False),
        qk_norm="layer" if config.boolean("use_qk_norm", default=False) else "none",
        norm_epsilon=epsilon(config),
    )
    return side_by_side(config, (layer,) * config.layers("num_hidden_layers"))


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama with one norm a layer."""
    return decoder_table(model, norms=_NORMS)


def tiny() -> dict[str, Any]:
    """Norms on heads of keys and values that each serve two of queries."""
    return {
        "architectures": ["CohereForCausalLM"],
        "model_type": "cohere",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "use_qk_norm": True,
        "logit_scale": 0.25,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 5,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def turning(config: Options) -> Rotary:
    """Rotary positions of neighbouring features."""
    return dataclasses.replace(rotary(config.rope(), base=500000.0), interleaved=True)


def epsilon(config: Options) -> float:
    """Of all norms."""
    return config.number("layer_norm_eps", default=1e-5, least=0.0)


def side_by_side(config: Options, layers: tuple[Any, ...]) -> LanguageModel:
    """The model around its layers of attention."""
    blocks = wired(
        layers, gated(config), wiring="parallel", norm="layer_gain", norm_epsilon=epsilon(config)
    )
    scale = config.number("logit_scale", default=0.0625)
    return decoder(config, blocks, tied=True, logit_scale=scale)
