"""OLMoE: experts whose gates need not sum to one, and norms of all heads' queries (keys) together.

Source: Muennighoff et al. 2024 (arXiv 2409.02060).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import attention
from icl_jax.interop.families.mixture import experts, mixture_decoder, mixture_table
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("OlmoeForCausalLM", "olmoe")


def build(config: Options) -> LanguageModel:
    """The model."""
    config.require("clip_qkv", (None,), default=None)
    epsilon = config.number("rms_norm_eps", default=1e-5, least=0.0)
    layer = attention(
        config,
        use_bias=config.boolean("attention_bias", default=False),
        qk_norm="all",
        norm_epsilon=epsilon,
    )
    renormalise = config.boolean("norm_topk_prob", default=False)
    mlp = experts(config, width_key="intermediate_size", renormalise=renormalise)
    mlps = (mlp,) * config.layers("num_hidden_layers")
    return mixture_decoder(config, layer, mlps, epsilon=epsilon)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """A tensor per expert and kernel."""
    return mixture_table(model)


def fused_table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """All experts of a layer in two tensors."""
    return mixture_table(model, names=None)


def tiny() -> dict[str, Any]:
    """Five experts, three of them for each token, and two queries for each key."""
    return {
        "architectures": ["OlmoeForCausalLM"],
        "model_type": "olmoe",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "attention_bias": False,
        "clip_qkv": None,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "norm_topk_prob": False,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
