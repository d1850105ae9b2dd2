"""OLMo 2: norms on what attention and MLP give, and on the queries (keys) of all heads together.

Source: OLMo Team 2024 (arXiv 2501.00656).
"""

from typing import Any

from icl_jax.blocks.block import Block
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.stack import repeat
from icl_jax.interop.families.common import attention, decoder, decoder_table, gated
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("Olmo2ForCausalLM", "olmo2")

_NORMS = (
    ("post_attention_layernorm", "norm_1_out"),
    ("post_feedforward_layernorm", "norm_2_out"),
)


def build(config: Options) -> LanguageModel:
    """The model."""
    epsilon = config.number("rms_norm_eps", default=1e-5, least=0.0)
    layer = attention(
        config,
        use_bias=config.boolean("attention_bias", default=False),
        qk_norm="all",
        norm_epsilon=epsilon,
    )
    block = Block(layer, gated(config), wiring="reordered_norm", norm="rms", norm_epsilon=epsilon)
    return decoder(config, repeat(block, config.layers("num_hidden_layers")))


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The tensors of Llama, with norms of other names."""
    return decoder_table(model, norms=_NORMS)


def tiny() -> dict[str, Any]:
    """Three layers, and two queries for each key."""
    return {
        "architectures": ["Olmo2ForCausalLM"],
        "model_type": "olmo2",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 500000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
