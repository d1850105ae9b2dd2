"""Phi 1 and 2: attention and MLP side by side on one norm, part of a head turns, biases everywhere.

Source: Gunasekar et al. 2023 (arXiv 2306.11644), Li et al. 2023 (arXiv 2309.05463).
"""

from typing import Any

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.stack import repeat
from icl_jax.interop.families.common import (
    activation,
    attention,
    attention_table,
    head_width,
    layer_norm_table,
    linear_table,
    rotary,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, linear, tensor

ARCHITECTURES = ("PhiForCausalLM", "phi")


def build(config: Options) -> LanguageModel:
    """The model; its head has a bias."""
    config.require("qk_layernorm", (False,), default=False)
    rope = config.rope()
    turning = int(head_width(config) * rope.number("partial_rotary_factor", default=0.5))
    layer = attention(config, use_bias=True, rotary=rotary(rope, features=turning))
    mlp = Dense(
        hidden_widths=(config.count("intermediate_size"),),
        activation=activation(config, "hidden_act", default="gelu_new"),
    )
    epsilon = config.number("layer_norm_eps", default=1e-5, least=0.0)
    block = Block(layer, mlp, wiring="parallel", norm="layer", norm_epsilon=epsilon)
    return LanguageModel(
        blocks=repeat(block, config.layers("num_hidden_layers")),
        vocab_size=config.count("vocab_size"),
        width=config.count("hidden_size"),
        norm="layer",
        norm_epsilon=epsilon,
        head="tied" if config.boolean("tie_word_embeddings", default=False) else "own",
        head_bias=True,
    )


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Separate queries, keys and values; one norm a layer."""
    width, vocab = model.width, model.vocab_size
    found = [
        tensor("model.embed_tokens.weight", (vocab, width), "embedding"),
        *layer_norm_table("model.final_layernorm", "norm_final", width),
        tensor("lm_head.bias", (vocab,), "head_bias"),
    ]
    if model.head == "own":
        found.append(tensor("lm_head.weight", (vocab, width), "head_kernel", linear))
    hidden = config.count("intermediate_size")
    for layer, block in enumerate(model.blocks):
        stored, path = f"model.layers.{layer}", f"blocks_{layer}"
        found += attention_table(
            f"{stored}.self_attn",
            f"{path}/contextual_layer",
            block.contextual_layer,
            width,
            names=("q_proj", "k_proj", "v_proj", "dense"),
        )
        found += linear_table(f"{stored}.mlp.fc1", f"{path}/mlp/layer_0", width, hidden)
        found += linear_table(f"{stored}.mlp.fc2", f"{path}/mlp/down", hidden, width)
        found += layer_norm_table(f"{stored}.input_layernorm", f"{path}/norm_1", width)
    return tuple(found)


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
