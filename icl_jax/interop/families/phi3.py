"""Phi-3, Phi-3.5 and Phi-4: Llama with fused kernels, and positions scaled by LongRoPE.

Source: Abdin et al. 2024 (arXiv 2404.14219, 2412.08905).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import (
    attention,
    decoder,
    decoder_table,
    gated,
    head_width,
    pre_norm_blocks,
    rotary,
    uniform_layers,
)
from icl_jax.interop.harmless import Only
from icl_jax.interop.options import Options
from icl_jax.interop.table import (
    Tensor,
    heads_out,
    linear,
    packed_heads,
    piece,
    rows,
    tensor,
)

ARCHITECTURES = ("Phi3ForCausalLM", "phi3")

HARMLESS = {
    "full_attn_mod": Only((1,)),
    "interpolate_factor": Only((1,)),
    "lm_head_bias": Only((False,)),
}

#: What the first files call LongRoPE.
_OLDER = ("su", "yarn")


def build(config: Options) -> LanguageModel:
    """The model; of some, part of a head turns."""
    window = config.optional_integer("sliding_window")
    uniform_layers(config, "full_attention" if window is None else "sliding_attention")
    config = _renamed(config.having(original_max_position_embeddings=4096))
    rope = config.rope()
    rope.require("rope_type", ("default", "longrope"))
    turning = int(head_width(config) * rope.number("partial_rotary_factor", default=1.0))
    layer = attention(config, rotary=rotary(rope, features=turning), window=window)
    layers = (layer,) * config.layers("num_hidden_layers")
    return decoder(config, pre_norm_blocks(config, layers, gated(config), epsilon=1e-5))


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Queries, keys and values in one tensor, one after the other; gates and ups in another."""
    return decoder_table(model, attention=fused_attention, mlp=fused_gated)


def fused_attention(stored: str, path: str, layer: Any, width: int) -> tuple[Tensor, ...]:
    """``qkv_proj`` and ``o_proj``."""
    heads, groups, features = layer.num_heads, layer.num_kv_heads, layer.head_width
    counts = (heads, groups, groups)
    pieces = tuple(
        piece(f"{path}/{name}", packed_heads(counts, features, part))
        for part, name in enumerate(("query", "key", "value"))
    )
    out = (width, heads * features)
    return (
        Tensor(f"{stored}.qkv_proj.weight", (sum(counts) * features, width), pieces),
        tensor(f"{stored}.o_proj.weight", out, f"{path}/out", heads_out(heads, features)),
    )


def fused_gated(stored: str, path: str, mlp: Any, width: int) -> tuple[Tensor, ...]:
    """``gate_up_proj`` and ``down_proj``."""
    hidden = mlp.hidden_width
    pieces = (
        piece(f"{path}/gate/kernel", rows(0, hidden, linear)),
        piece(f"{path}/up/kernel", rows(hidden, 2 * hidden, linear)),
    )
    return (
        Tensor(f"{stored}.gate_up_proj.weight", (2 * hidden, width), pieces),
        tensor(f"{stored}.down_proj.weight", (width, hidden), f"{path}/down/kernel", linear),
    )


def tiny() -> dict[str, Any]:
    """Three quarters of each head turn, by other rates after sixteen positions."""
    return {
        "architectures": ["Phi3ForCausalLM"],
        "model_type": "phi3",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": [1.0, 1.1, 1.3],
            "long_factor": [1.0, 2.0, 6.0],
        },
        "sliding_window": 40,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _renamed(config: Options) -> Options:
    """The options with LongRoPE under its name."""
    found = dict(config.config)
    for key in ("rope_parameters", "rope_scaling"):
        rope = dict(found.get(key) or {})
        kind = next((name for name in ("rope_type", "type") if rope.get(name)), "type")
        if rope.get(kind) in _OLDER:
            found[key] = {**rope, kind: "longrope"}
    return config.inside(found)
