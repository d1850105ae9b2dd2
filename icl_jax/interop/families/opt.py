"""OPT: learned positions, layer norms before attention and MLP, rectified linear units.

Source: Zhang et al. 2022 (arXiv 2205.01068).
"""

from typing import Any

from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.interop.families.common import (
    activation,
    attention_table,
    decoder,
    head_width,
    linear_table,
    norm_table,
    wired,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, linear, tensor

ARCHITECTURES = ("OPTForCausalLM", "opt")

HARMLESS = {
    "activation_dropout": "drops numbers in training only",
    "dropout": "drops numbers in training only",
    "init_std": "how weights begin, before training",
    "layerdrop": "drops layers in training only",
}

# Rows of the position embedding that stand in front of position 0's, and that nobody reads.
_OFFSET = 2

_NORMS = (("self_attn_layer_norm", "norm_1"), ("final_layer_norm", "norm_2"))


def build(config: Options) -> LanguageModel:
    """The model; the norms of the 350M come after the skips, and its embedding is narrower."""
    width = config.count("hidden_size")
    config.require("word_embed_proj_dim", (width,), default=width)
    before = config.boolean("do_layer_norm_before", default=True)
    removed = config.boolean("_remove_final_layer_norm", default=False)
    use_bias = config.boolean("enable_bias", default=True)
    affine = config.boolean("layer_norm_elementwise_affine", default=True)
    layer = SoftmaxAttention(
        num_heads=config.count("num_attention_heads"),
        head_width=head_width(config),
        use_bias=use_bias,
    )
    mlp = Dense(
        hidden_widths=(config.count("ffn_dim"),),
        activation=activation(config, "activation_function", default="relu"),
        use_bias=use_bias,
    )
    blocks = wired(
        (layer,) * config.layers("num_hidden_layers"),
        mlp,
        wiring="pre_norm" if before else "post_norm",
        norm="layer" if affine else "layer_plain",
        norm_epsilon=1e-5,
    )
    return decoder(
        config,
        blocks,
        tied=True,
        num_positions=config.count("max_position_embeddings"),
        position_offset=_OFFSET,
        final_norm=before and not removed,
    )


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Separate queries, keys and values."""
    width, vocab = model.width, model.vocab_size
    assert model.num_positions is not None
    hidden = config.count("ffn_dim")
    positions = (model.num_positions + _OFFSET, width)
    found = [
        tensor("model.decoder.embed_tokens.weight", (vocab, width), "embedding"),
        tensor("model.decoder.embed_positions.weight", positions, "position_embedding"),
    ]
    if model.final_norm:
        found += norm_table("model.decoder.final_layer_norm", "norm_final", width, model.norm)
    if model.head == "own":
        found.append(tensor("lm_head.weight", (vocab, width), "head_kernel", linear))
    for layer, block in enumerate(model.blocks):
        stored, path = f"model.decoder.layers.{layer}", f"blocks_{layer}"
        found += attention_table(
            f"{stored}.self_attn",
            f"{path}/contextual_layer",
            block.contextual_layer,
            width,
            names=("q_proj", "k_proj", "v_proj", "out_proj"),
        )
        use_bias = block.mlp.use_bias
        found += linear_table(
            f"{stored}.fc1", f"{path}/mlp/layer_0", width, hidden, use_bias=use_bias
        )
        found += linear_table(f"{stored}.fc2", f"{path}/mlp/down", hidden, width, use_bias=use_bias)
        for name, norm in _NORMS:
            found += norm_table(f"{stored}.{name}", f"{path}/{norm}", width, block.norm)
    return tuple(found)


def tiny() -> dict[str, Any]:
    """Positions for a hundred and twenty-eight tokens."""
    return {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": 96,
        "hidden_size": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "activation_function": "relu",
        "max_position_embeddings": 128,
        "do_layer_norm_before": True,
        "word_embed_proj_dim": 32,
        "enable_bias": True,
        "layer_norm_elementwise_affine": True,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }
