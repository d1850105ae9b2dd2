"""Qwen 2 with experts: beside those that the router picks, one that every token gets.

Source: Yang et al. 2024 (arXiv 2407.10671).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families import qwen2
from icl_jax.interop.families.common import attention, uniform_layers
from icl_jax.interop.families.mixture import (
    experts,
    mixture_decoder,
    mixture_table,
    qwen_mlps,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("Qwen2MoeForCausalLM", "qwen2_moe")

HARMLESS = {
    **qwen2.HARMLESS,
    "intermediate_size": "all layers have experts",
}


def build(config: Options) -> LanguageModel:
    """The model; queries, keys and values have biases."""
    # Which layers a window would be for has changed from version to version.
    config.require("use_sliding_window", (False,), default=False)
    uniform_layers(config, qwen2.FULL)
    layer = attention(config, use_bias=config.boolean("qkv_bias", default=True), out_bias=False)
    mlp = experts(
        config,
        width_key="moe_intermediate_size",
        renormalise=config.boolean("norm_topk_prob", default=False),
        shared_width=config.count("shared_expert_intermediate_size"),
    )
    epsilon = config.number("rms_norm_eps", default=1e-6, least=0.0)
    return mixture_decoder(config, layer, qwen_mlps(config, mlp), epsilon=epsilon)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """A tensor per expert and kernel."""
    return mixture_table(model)


def fused_table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """All experts of a layer in two tensors."""
    return mixture_table(model, names=None)


def tiny() -> dict[str, Any]:
    """A layer without experts, then two with five of them and a shared one."""
    return {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 20,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "qkv_bias": True,
        "use_sliding_window": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [0],
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "norm_topk_prob": False,
        "tie_word_embeddings": False,
    }
