"""Falcon: attention and MLP side by side, one key and value for all heads or for groups of them.

The first models have one norm a layer and multi-query attention; the "new decoder" has grouped
queries, and a norm each for attention and MLP. Source: Almazrouei et al. 2023 (arXiv 2311.16867).
"""

from typing import Any

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import repeat
from icl_jax.interop.families.common import (
    activation,
    head_width,
    layer_norm_table,
    linear_table,
    rotary,
)
from icl_jax.interop.harmless import Only
from icl_jax.interop.options import Options
from icl_jax.interop.table import (
    Piece,
    Tensor,
    grouped_pieces,
    heads_out,
    interleaved_heads,
    linear,
    packed_heads,
    piece,
    tensor,
)

ARCHITECTURES = ("FalconForCausalLM", "falcon", "RefinedWeb", "RefinedWebModel", "RWForCausalLM")


HARMLESS = {
    "apply_residual_connection_post_layernorm": Only((False,)),
    "multi_query": "the new decoder has groups",
    "num_kv_heads": "without the new decoder, multi_query says how many there are",
    "num_ln_in_parallel_attn": "without the new decoder there is one norm",
    "parallel_attn": "the new decoder always is",
}


def build(config: Options) -> LanguageModel:
    """The model; ``alibi`` is not supported."""
    config = _newest(config)
    config.require("alibi", (False,), default=False)
    num_heads, use_bias = config.count("num_attention_heads"), _use_bias(config)
    layer = SoftmaxAttention(
        num_heads=num_heads,
        head_width=head_width(config),
        num_kv_heads=_groups(config),
        use_bias=use_bias,
        rotary=rotary(config.rope()),
    )
    mlp = Dense(
        hidden_widths=(_hidden(config),),
        activation=activation(config, "activation", default="gelu"),
        use_bias=use_bias,
    )
    epsilon = config.number("layer_norm_epsilon", default=1e-5, least=0.0)
    block = Block(
        layer,
        mlp,
        wiring="parallel" if _parallel(config) else "pre_norm",
        norm="layer",
        norm_epsilon=epsilon,
        separate_norms=_parallel(config) and _num_norms(config) == 2,
    )
    return LanguageModel(
        blocks=repeat(block, config.layers("num_hidden_layers")),
        vocab_size=config.count("vocab_size"),
        width=config.count("hidden_size"),
        norm="layer",
        norm_epsilon=epsilon,
        head="tied" if config.boolean("tie_word_embeddings", default=True) else "own",
    )


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Queries, keys and values in one tensor: by head, by group, or one after the other."""
    config = _newest(config)
    width, vocab, hidden = model.width, model.vocab_size, _hidden(config)
    heads, features = config.count("num_attention_heads"), head_width(config)
    use_bias = _use_bias(config)
    found = [
        tensor("transformer.word_embeddings.weight", (vocab, width), "embedding"),
        *layer_norm_table("transformer.ln_f", "norm_final", width),
    ]
    if model.head == "own":
        found.append(tensor("lm_head.weight", (vocab, width), "head_kernel", linear))
    fused = (heads + 2 * _groups(config)) * features
    for layer, block in enumerate(model.blocks):
        stored, path = f"transformer.h.{layer}", f"blocks_{layer}"
        attended, context = f"{stored}.self_attention", f"{path}/contextual_layer"
        name = f"{attended}.query_key_value"
        found.append(Tensor(f"{name}.weight", (fused, width), _pieces(config, context, "")))
        if use_bias:
            found.append(Tensor(f"{name}.bias", (fused,), _pieces(config, context, "_bias")))
        out = (width, heads * features)
        view = heads_out(heads, features)
        found.append(tensor(f"{attended}.dense.weight", out, f"{context}/out", view))
        if use_bias:
            found.append(tensor(f"{attended}.dense.bias", (width,), f"{context}/out_bias"))
        mlp, where = f"{stored}.mlp.dense", f"{path}/mlp"
        found += linear_table(
            f"{mlp}_h_to_4h", f"{where}/layer_0", width, hidden, use_bias=use_bias
        )
        found += linear_table(f"{mlp}_4h_to_h", f"{where}/down", hidden, width, use_bias=use_bias)
        names = ["input_layernorm"]
        if block.separate_norms:
            names = ["ln_attn", "ln_mlp"]
        elif block.wiring == "pre_norm":
            names.append("post_attention_layernorm")
        for norm, name in enumerate(names, 1):
            found += layer_norm_table(f"{stored}.{name}", f"{path}/norm_{norm}", width)
    return tuple(found)


def tiny() -> dict[str, Any]:
    """The new decoder: grouped queries, two norms."""
    return {
        "architectures": ["FalconForCausalLM"],
        "model_type": "falcon",
        "vocab_size": 96,
        "hidden_size": 32,
        "ffn_hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_kv_heads": 2,
        "new_decoder_architecture": True,
        "multi_query": True,
        "parallel_attn": True,
        "bias": False,
        "alibi": False,
        "activation": "gelu",
        "max_position_embeddings": 128,
        "layer_norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _newest(config: Options) -> Options:
    """The options under the names that they got when the family came to transformers."""
    older = {
        "hidden_size": "n_embed",
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "num_kv_heads": "n_head_kv",
    }
    found = {new: config.count(old) for new, old in older.items() if config.has(old)}
    for new in found:
        config.either(new, older[new])  # Refuses two that differ.
    if "num_kv_heads" in found:
        found["new_decoder_architecture"] = True
    return config.having(**found)


def _new(config: Options) -> bool:
    return config.boolean("new_decoder_architecture", default=False)


def _groups(config: Options) -> int:
    """Heads of keys and values."""
    num_heads = config.count("num_attention_heads")
    if _new(config):
        return config.count("num_kv_heads", default=num_heads)
    return 1 if config.boolean("multi_query", default=True) else num_heads


def _parallel(config: Options) -> bool:
    return _new(config) or config.boolean("parallel_attn", default=True)


def _num_norms(config: Options) -> int:
    """Norms of a parallel layer."""
    return config.integer("num_ln_in_parallel_attn", default=2) if _new(config) else 1


def _hidden(config: Options) -> int:
    return config.count("ffn_hidden_size", default=4 * config.count("hidden_size"))


def _use_bias(config: Options) -> bool:
    return config.boolean("bias", default=False)


def _pieces(config: Options, context: str, suffix: str) -> tuple[Piece, ...]:
    """Where the parts of the fused tensor (or of its bias) go."""
    heads, groups = config.count("num_attention_heads"), _groups(config)
    features = head_width(config)
    paths = [f"{context}/{name}{suffix}" for name in ("query", "key", "value")]
    if _new(config):
        return grouped_pieces(*paths, num_heads=heads, num_groups=groups, features=features)
    if groups == 1:
        counts = (heads, 1, 1)
        return tuple(
            piece(path, packed_heads(counts, features, part)) for part, path in enumerate(paths)
        )
    return tuple(
        piece(path, interleaved_heads(heads, features, part)) for part, path in enumerate(paths)
    )
