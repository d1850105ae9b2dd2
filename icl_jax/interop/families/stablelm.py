"""StableLM: layer norms, part of a head turns, gated MLPs; the larger have norms on their heads.

Source: Bellagente et al. 2024 (arXiv 2402.17834).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import (
    NORMS,
    attention,
    attention_table,
    decoder,
    decoder_table,
    gated,
    head_width,
    rotary,
    wired,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, tensor

ARCHITECTURES = ("StableLmForCausalLM", "stablelm")


def build(config: Options) -> LanguageModel:
    """The model; the 12B has norms on heads, and attention and MLP side by side."""
    rope = config.rope()
    turning = int(head_width(config) * rope.number("partial_rotary_factor", default=0.25))
    epsilon = config.number("layer_norm_eps", default=1e-5, least=0.0)
    layer = attention(
        config,
        rotary=rotary(rope, features=turning),
        use_bias=config.boolean("use_qkv_bias", default=False),
        out_bias=False,
        qk_norm="layer" if config.boolean("qk_layernorm", default=False) else "none",
        norm_epsilon=epsilon,
    )
    layers = (layer,) * config.layers("num_hidden_layers")
    parallel = config.boolean("use_parallel_residual", default=False)
    wiring = "parallel" if parallel else "pre_norm"
    blocks = wired(layers, gated(config), wiring=wiring, norm="layer", norm_epsilon=epsilon)
    return decoder(config, blocks)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama, with one norm a layer where it is parallel."""
    count = 1 if model.blocks[0].wiring == "parallel" else 2
    return decoder_table(model, norms=NORMS[:count], attention=_attention_table)


def tiny() -> dict[str, Any]:
    """A quarter of each head turns."""
    return {
        "architectures": ["StableLmForCausalLM"],
        "model_type": "stablelm",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "layer_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "use_qkv_bias": True,
        "qk_layernorm": False,
        "use_parallel_residual": False,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def _attention_table(stored: str, path: str, layer: Any, width: int) -> tuple[Tensor, ...]:
    """That of Llama, and a tensor for the norm of each head."""
    found = attention_table(stored, path, layer.clone(qk_norm="none"), width)
    if layer.qk_norm == "none":
        return found
    norms = (("q", "query", layer.num_heads), ("k", "key", layer.num_kv_heads))
    return found + tuple(
        tensor(
            f"{stored}.{short}_layernorm.norms.{head}.weight",
            (layer.head_width,),
            f"{path}/{name}_norm",
            index=head,
        )
        for short, name, count in norms
        for head in range(count)
    )
