"""Mixtral: the layers of Mistral with a few experts for each token, whose gates sum to one.

Source: Jiang et al. 2024 (arXiv 2401.04088).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import attention
from icl_jax.interop.families.mixture import experts, mixture_decoder, mixture_table
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("MixtralForCausalLM", "mixtral")

HARMLESS = {"router_jitter_noise": "moves the router's input in training only"}

_NAMES = (("w1", "gate"), ("w3", "up"), ("w2", "down"))


def build(config: Options) -> LanguageModel:
    """The model; a window, where there is one, is that of every layer."""
    layer = attention(config, base=1000000.0, window=config.optional_integer("sliding_window"))
    mlp = experts(config, width_key="intermediate_size", renormalise=True)
    mlps = (mlp,) * config.layers("num_hidden_layers")
    epsilon = config.number("rms_norm_eps", default=1e-5, least=0.0)
    return mixture_decoder(config, layer, mlps, epsilon=epsilon)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """A tensor per expert and kernel."""
    return mixture_table(model, mlp_name="block_sparse_moe", names=_NAMES)


def fused_table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """All experts of a layer in two tensors."""
    return mixture_table(model, names=None)


def tiny() -> dict[str, Any]:
    """Four experts, two of them for each token, and a window of six tokens."""
    return {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0,
        "sliding_window": 6,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
