"""Phi 1 and 2: attention and MLP side by side on one norm, part of a head turns, biases everywhere.

Source: Gunasekar et al. 2023 (arXiv 2306.11644), Li et al. 2023 (arXiv 2309.05463).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import attention, head_width, rotary
from icl_jax.interop.families.parallel import Names, parallel_decoder, parallel_table
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("PhiForCausalLM", "phi")

NAMES = Names(
    embedding="model.embed_tokens.weight",
    final_norm="model.final_layernorm",
    layers="model.layers",
    attention="self_attn",
    projections=("q_proj", "k_proj", "v_proj", "dense"),
    up="mlp.fc1",
    down="mlp.fc2",
    norm="input_layernorm",
)


def build(config: Options) -> LanguageModel:
    """The model; its head has a bias."""
    config.require("qk_layernorm", (False,), default=False)
    rope = config.rope()
    turning = int(head_width(config) * rope.number("partial_rotary_factor", default=0.5))
    layer = attention(config, use_bias=True, rotary=rotary(rope, features=turning))
    return parallel_decoder(
        config,
        layer,
        width=config.count("hidden_size"),
        hidden_width=config.count("intermediate_size"),
        num_layers=config.layers("num_hidden_layers"),
        activation_key="hidden_act",
        epsilon=config.number("layer_norm_eps", default=1e-5, least=0.0),
    )


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Separate queries, keys and values; one norm a layer; a head with a bias."""
    return parallel_table(model, NAMES, config.count("intermediate_size"))


def tiny() -> dict[str, Any]:
    """Half of each head turns."""
    return {
        "architectures": ["PhiForCausalLM"],
        "model_type": "phi",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "gelu_new",
        "max_position_embeddings": 128,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.5,
        "qk_layernorm": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
