"""Qwen3-Next: three layers of the gated delta rule for each one of gated attention; experts.

Norms multiply by one plus what is stored, but for that of the delta rule. Source: Qwen Team 2025;
Yang et al. 2024 (arXiv 2412.06464) for the delta rule.
"""

from typing import Any

from icl_jax.blocks.block import Block
from icl_jax.blocks.delta import GatedDelta
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.interop.families import qwen2
from icl_jax.interop.families.common import (
    attention,
    attention_table,
    decoder,
    head_width,
    rotary,
)
from icl_jax.interop.families.mixture import experts, mixture_table, qwen_mlps
from icl_jax.interop.options import Options
from icl_jax.interop.table import (
    Index,
    Piece,
    Tensor,
    heads_in,
    heads_out,
    interleaved_heads,
    piece,
    rows,
    tensor,
)

ARCHITECTURES = ("Qwen3NextForCausalLM", "qwen3_next")

#: A head that predicts a second token, which transformers does not read.
IGNORED = (r"mtp\..*",)

HARMLESS = {
    **qwen2.HARMLESS,
    "intermediate_size": "all layers have experts",
}

LINEAR, FULL = "linear_attention", "full_attention"


def build(config: Options) -> LanguageModel:
    """The model; every fourth layer is attention where the configuration says nothing else."""
    epsilon = config.number("rms_norm_eps", default=1e-6, least=0.0)
    config = config.having(head_dim=256)
    config.require("hidden_act", ("silu",), default="silu")
    heads = config.count("linear_num_value_heads", default=32)
    key_heads = config.count("linear_num_key_heads", default=16)
    if heads % key_heads:
        supported = f"a divisor of linear_num_value_heads = {heads}"
        raise config.unsupported("linear_num_key_heads", key_heads, supported)
    rope = config.rope()
    turning = int(head_width(config) * rope.number("partial_rotary_factor", default=0.25))
    layers = {
        FULL: attention(
            config,
            rotary=rotary(rope, features=turning),
            use_bias=config.boolean("attention_bias", default=False),
            qk_norm="head",
            norm_epsilon=epsilon,
            output_gate=True,
        ),
        LINEAR: GatedDelta(
            num_heads=heads,
            num_key_heads=key_heads,
            key_width=config.count("linear_key_head_dim", default=128),
            value_width=config.count("linear_value_head_dim", default=128),
            taps=config.count("linear_conv_kernel_dim", default=4),
            norm_epsilon=epsilon,
        ),
    }
    mlp = experts(
        config,
        width_key="moe_intermediate_size",
        renormalise=config.boolean("norm_topk_prob", default=True),
        shared_width=config.count("shared_expert_intermediate_size", default=512),
    )
    # The same instance twice would mean shared parameters, so every layer has clones.
    blocks = tuple(
        Block(layers[kind].clone(), one.clone(), norm="rms", norm_epsilon=epsilon)
        for kind, one in zip(layer_types(config), qwen_mlps(config, mlp), strict=True)
    )
    return decoder(config, blocks)


def layer_types(config: Options) -> tuple[str, ...]:
    """What each layer is: every so many attention, the others the delta rule."""
    num_layers = config.layers("num_hidden_layers")
    every = config.integer("full_attention_interval", default=4, least=1)
    default = [LINEAR if number % every else FULL for number in range(1, num_layers + 1)]
    kinds = config.sequence("layer_types", default=default)
    if len(kinds) != num_layers or not set(kinds) <= {LINEAR, FULL}:
        supported = f"{LINEAR} or {FULL} for each of the {num_layers} layers"
        raise config.unsupported("layer_types", kinds, supported)
    return kinds


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """A tensor per expert and kernel."""
    return mixture_table(model, mixer=_mixer, gain_offset=1.0)


def fused_table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """All experts of a layer in two tensors."""
    return mixture_table(model, names=None, mixer=_mixer, gain_offset=1.0)


def tiny() -> dict[str, Any]:
    """Two layers of the delta rule, the second without experts, then attention."""
    return {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 20,
        "num_hidden_layers": 3,
        "full_attention_interval": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 6,
        "linear_conv_kernel_dim": 3,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "attention_bias": False,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
        "num_experts": 5,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "tie_word_embeddings": False,
    }


def _mixer(stored: str, path: str, layer: Any, width: int) -> tuple[Tensor, ...]:
    if isinstance(layer, GatedDelta):
        return _delta(f"{stored}.linear_attn", path, layer, width)
    return _attention(f"{stored}.self_attn", path, layer, width)


def _attention(stored: str, path: str, layer: SoftmaxAttention, width: int) -> tuple[Tensor, ...]:
    """Llama's, but each head's query is followed by its gate."""
    heads, features = layer.num_heads, layer.head_width
    assert features is not None

    def halved(one: Tensor) -> Tensor:
        if not one.name.startswith(f"{stored}.q_proj"):
            return one
        suffix = "_bias" if one.name.endswith("bias") else ""
        pieces = tuple(
            piece(f"{path}/{name}{suffix}", interleaved_heads(heads, features, part, 2))
            for part, name in enumerate(("query", "gate"))
        )
        return Tensor(one.name, (2 * one.shape[0], *one.shape[1:]), pieces)

    return tuple(map(halved, attention_table(stored, path, layer, width, gain_offset=1.0)))


def _delta(stored: str, path: str, layer: GatedDelta, width: int) -> tuple[Tensor, ...]:
    """Each head of keys is followed by what its heads of values need.

    No strides reach the values of all these groups at once, so there is a piece for each.
    """
    heads, groups = layer.num_heads, layer.num_key_heads or layer.num_heads
    per_group, keys, values = heads // groups, layer.key_width, layer.value_width
    # Query, key, values, gates; in the other tensor, writes and fades.
    into, weighs = 2 * keys + 2 * per_group * values, 2 * per_group
    pieces: list[Piece] = []
    weights: list[Piece] = []
    for group in range(groups):
        mine = slice(group * per_group, (group + 1) * per_group)
        start = group * into
        one: tuple[tuple[str, int, int, Index], ...] = (
            ("query", 1, keys, (..., slice(group, group + 1), slice(None))),
            ("key", 1, keys, (..., slice(group, group + 1), slice(None))),
            ("value", per_group, values, (..., mine, slice(None))),
            ("gate", per_group, values, (..., mine, slice(None))),
        )
        for name, count, features, index in one:
            stop = start + count * features
            view = rows(start, stop, heads_in(count, features))
            pieces.append(piece(f"{path}/{name}", view, index=index))
            start = stop
        for part, name in enumerate(("write", "fade")):
            first = group * weighs + part * per_group
            view = rows(first, first + per_group, lambda stored: stored.T)
            weights.append(piece(f"{path}/{name}", view, index=(..., mine)))
    channels = 2 * groups * keys + heads * values
    out = (width, heads * values)
    return (
        Tensor(f"{stored}.in_proj_qkvz.weight", (groups * into, width), tuple(pieces)),
        Tensor(f"{stored}.in_proj_ba.weight", (groups * weighs, width), tuple(weights)),
        tensor(
            f"{stored}.conv1d.weight",
            (channels, 1, layer.taps),
            f"{path}/taps",
            lambda stored: stored[:, 0],
        ),
        tensor(f"{stored}.A_log", (heads,), f"{path}/rate"),
        tensor(f"{stored}.dt_bias", (heads,), f"{path}/fade_bias"),
        tensor(f"{stored}.norm.weight", (values,), f"{path}/scale"),
        tensor(f"{stored}.out_proj.weight", out, f"{path}/out", heads_out(heads, values)),
    )
