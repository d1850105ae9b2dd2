"""Granite 3: Llama with multipliers of the embedding, the scores, the branches and the logits.

Source: IBM Granite Team 2024 (Granite 3.0 Language Models); Yang et al. 2022 (arXiv 2203.03466).
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

ARCHITECTURES = ("GraniteForCausalLM", "granite")


def build(config: Options) -> LanguageModel:
    """The model; what multiplies a branch stands in front of its last kernel."""
    branch = config.number("residual_multiplier", default=1.0)
    if branch != 1.0:
        for key in ("attention_bias", "mlp_bias"):
            config.require(key, (False,), default=False)
    scaling = config.number("logits_scaling", default=1.0)
    if not scaling:
        raise config.unsupported("logits_scaling", scaling, "any other number")
    layer = attention(
        config,
        use_bias=config.boolean("attention_bias", default=False),
        scale=config.number("attention_multiplier", default=1.0),
        value_scale=branch,
    )
    layers = (layer,) * config.layers("num_hidden_layers")
    mlp = gated(config, use_bias=config.boolean("mlp_bias", default=False)).clone(scale=branch)
    return decoder(
        config,
        pre_norm_blocks(config, layers, mlp),
        embedding_scale=config.number("embedding_multiplier", default=1.0),
        logit_scale=1 / scaling,
    )


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama."""
    return decoder_table(model)


def tiny() -> dict[str, Any]:
    """Every multiplier is felt."""
    return {
        "architectures": ["GraniteForCausalLM"],
        "model_type": "granite",
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
        "embedding_multiplier": 3.0,
        "attention_multiplier": 0.5,
        "residual_multiplier": 0.4,
        "logits_scaling": 2.0,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
