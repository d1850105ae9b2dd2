"""Qwen 3 with experts: Qwen 3's attention, and experts in all layers or in some.

Source: Qwen Team 2025 (arXiv 2505.09388).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families import qwen2, qwen2_moe
from icl_jax.interop.families.common import attention, uniform_layers
from icl_jax.interop.families.mixture import experts, mixture_decoder, qwen_mlps
from icl_jax.interop.options import Options

ARCHITECTURES = ("Qwen3MoeForCausalLM", "qwen3_moe")

HARMLESS = qwen2_moe.HARMLESS
#: A tensor per expert and kernel, or all experts of a layer in two tensors.
table, fused_table = qwen2_moe.table, qwen2_moe.fused_table


def build(config: Options) -> LanguageModel:
    """The model; a window, where it is used, is that of every layer."""
    epsilon = config.number("rms_norm_eps", default=1e-6, least=0.0)
    slides = config.boolean("use_sliding_window", default=False)
    window = config.optional_integer("sliding_window", missing=qwen2.WINDOW) if slides else None
    uniform_layers(config, qwen2.FULL if window is None else qwen2.SLIDING)
    layer = attention(
        config,
        use_bias=config.boolean("attention_bias", default=False),
        window=window,
        qk_norm="head",
        norm_epsilon=epsilon,
    )
    renormalise = config.boolean("norm_topk_prob", default=False)
    mlp = experts(config, width_key="moe_intermediate_size", renormalise=renormalise)
    return mixture_decoder(config, layer, qwen_mlps(config, mlp), epsilon=epsilon)


def tiny() -> dict[str, Any]:
    """Layers without, with, without experts for their number, and one without for the list."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "attention_bias": False,
        "use_sliding_window": False,
        "sliding_window": None,
        "decoder_sparse_step": 2,
        "mlp_only_layers": [3],
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    }
