"""OLMo 1: Llama with layer norms that have no parameters; queries, keys and values may be clipped.

Source: Groeneveld et al. 2024 (arXiv 2402.00838).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import attention, decoder, decoder_table, gated, wired
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("OlmoForCausalLM", "olmo")

# Of all models of the family; their files do not say.
_EPSILON = 1e-5


def build(config: Options) -> LanguageModel:
    """The model."""
    layer = attention(
        config,
        use_bias=config.boolean("attention_bias", default=False),
        clip=config.optional_number("clip_qkv"),
    )
    layers = (layer,) * config.layers("num_hidden_layers")
    blocks = wired(
        layers, gated(config), wiring="pre_norm", norm="layer_plain", norm_epsilon=_EPSILON
    )
    return decoder(config, blocks)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama, without norms."""
    return decoder_table(model)


def tiny() -> dict[str, Any]:
    """Queries, keys and values are clipped so close to zero that it is felt."""
    return {
        "architectures": ["OlmoForCausalLM"],
        "model_type": "olmo",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "clip_qkv": 1.0,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
