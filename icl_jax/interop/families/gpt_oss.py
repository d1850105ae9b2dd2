"""gpt-oss: a sink beside each head's scores, every other layer a window, experts with biases.

An expert multiplies ``(up + 1)`` by ``gate sigmoid(1.702 gate)``, gates and ups cut off before.
Source: OpenAI 2025 (arXiv 2508.10925); Xiao et al. 2023 (arXiv 2309.17453) for sinks.
"""

from typing import Any

from icl_jax.blocks.experts import Experts
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import (
    attention,
    attention_table,
    decoder,
    decoder_table,
    rotary,
    wired,
)
from icl_jax.interop.families.gemma2 import SLIDING, layer_types
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, identity, linear, piece, tensor

ARCHITECTURES = ("GptOssForCausalLM", "gpt_oss")

HARMLESS = {
    "initial_context_length": "the positions' own original length counts",
    "sliding_window": "no layer has a window",
}

# What a file means that says nothing of positions.
_YARN = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def build(config: Options) -> LanguageModel:
    """The model; every other layer, from the first on, sees a window."""
    config = _complete(config)
    kinds = layer_types(config, every=2)
    window = config.integer("sliding_window", default=128) if SLIDING in kinds else None
    layer = attention(
        config,
        rotary=rotary(config.rope(), base=150000.0),
        use_bias=config.boolean("attention_bias", default=True),
        sinks=True,
    )
    # Other names of one thing, in files that were not written by transformers.
    chosen = config.count("num_experts_per_tok", default=4)
    config.require("experts_per_token", (chosen,), default=chosen)
    config.require("hidden_act", ("silu",), default="silu")
    config.require("swiglu_alpha", (1.702,), default=1.702)
    mlp = Experts(
        num_experts=config.count("num_local_experts", "num_experts"),
        experts_per_token=chosen,
        hidden_width=config.count("intermediate_size"),
        activation="quick_gelu",
        use_bias=True,
        limit=config.positive("swiglu_limit", default=7.0),
        up_offset=1.0,
    )
    blocks = wired(
        tuple(layer.clone(window=window) if kind == SLIDING else layer for kind in kinds),
        mlp,
        wiring="pre_norm",
        norm="rms",
        norm_epsilon=config.number("rms_norm_eps", default=1e-5, least=0.0),
    )
    return decoder(config, blocks)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """All experts of a layer in two tensors, and their biases in two more."""

    def attended(stored: str, path: str, layer: Any, width: int) -> tuple[Tensor, ...]:
        sinks = tensor(f"{stored}.sinks", (layer.num_heads,), f"{path}/sink")
        return (*attention_table(stored, path, layer, width), sinks)

    return decoder_table(model, attention=attended, mlp=_experts)


def tiny() -> dict[str, Any]:
    """Four experts, two of them for each token; limits that are felt, and a window of five."""
    return {
        "architectures": ["GptOssForCausalLM"],
        "model_type": "gpt_oss",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 12,
        "hidden_act": "silu",
        "swiglu_limit": 1.0,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rope_theta": 150000.0,
        "rope_scaling": {**_YARN, "original_max_position_embeddings": 64},
        "sliding_window": 5,
        "attention_bias": True,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _complete(config: Options) -> Options:
    """With what the first models have, where the configuration says nothing."""
    if not config.has("rope_parameters", "rope_scaling"):
        config = config.having(rope_scaling=_YARN)
    return config.having(head_dim=64)


def _experts(stored: str, path: str, mlp: Any, width: int) -> tuple[Tensor, ...]:
    """Router and experts; a gate and an up stand side by side, neuron by neuron."""
    experts, hidden = mlp.num_experts, mlp.hidden_width
    found = [
        tensor(f"{stored}.router.weight", (experts, width), f"{path}/router", linear),
        tensor(f"{stored}.router.bias", (experts,), f"{path}/router_bias"),
    ]
    for ending, rows, suffix in (("", (width,), ""), ("_bias", (), "_bias")):
        gates_and_ups = (
            piece(f"{path}/gate{suffix}", lambda stored: stored[..., ::2]),
            piece(f"{path}/up{suffix}", lambda stored: stored[..., 1::2]),
        )
        name = f"{stored}.experts.gate_up_proj{ending}"
        found.append(Tensor(name, (experts, *rows, 2 * hidden), gates_and_ups))
        shape = (experts, hidden, width) if rows else (experts, width)
        name = f"{stored}.experts.down_proj{ending}"
        found.append(tensor(name, shape, f"{path}/down{suffix}", identity))
    return tuple(found)
