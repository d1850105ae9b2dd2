"""BERT: an encoder that reads both ways, with its norms after the skips (all-MiniLM, E5, ...).

The model gives the last states (T, D), as ``BertModel`` does first of all; every token has type 0.
Source: Devlin et al. 2018 (arXiv 1810.04805).
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
)
from icl_jax.interop.harmless import Only
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, head_bias, heads_in, heads_out, tensor

ARCHITECTURES = ("BertModel", "bert")

#: What stands on the last states: a pooler, or the heads of the pre-training.
IGNORED = (r"pooler\..*", r"cls\..*")

HARMLESS = {
    "is_causal": Only((False,)),
    "tie_word_embeddings": "there is no head",
}


def build(config: Options) -> LanguageModel:
    """The encoder."""
    config.require("position_embedding_type", ("absolute",), default="absolute")
    config.require("is_decoder", (False,), default=False)
    config.require("add_cross_attention", (False,), default=False)
    epsilon = config.number("layer_norm_eps", default=1e-12, least=0.0)
    attention = SoftmaxAttention(
        num_heads=config.count("num_attention_heads"),
        head_width=head_width(config),
        use_bias=True,
        causal=False,
    )
    mlp = Dense(
        hidden_widths=(config.count("intermediate_size"),),
        activation=activation(config, "hidden_act", default="gelu"),
    )
    block = Block(attention, mlp, wiring="post_norm", norm="layer", norm_epsilon=epsilon)
    return LanguageModel(
        blocks=repeat(block, config.layers("num_hidden_layers")),
        vocab_size=config.count("vocab_size"),
        width=config.count("hidden_size"),
        num_positions=config.count("max_position_embeddings"),
        num_types=config.count("type_vocab_size", default=2),
        embedding_norm=True,
        norm="layer",
        final_norm=False,
        norm_epsilon=epsilon,
        head="none",
    )


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Names as ``BertModel`` has them; the models with a head put ``bert.`` in front."""
    width = model.width
    rows = {
        "word": ("embedding", model.vocab_size),
        "position": ("position_embedding", config.count("max_position_embeddings")),
        "token_type": ("type_embedding", config.count("type_vocab_size", default=2)),
    }
    found = [
        tensor(f"embeddings.{name}_embeddings.weight", (count, width), path)
        for name, (path, count) in rows.items()
    ]
    found += layer_norm_table("embeddings.LayerNorm", "norm_embedding", width)
    hidden = config.count("intermediate_size")
    for layer, block in enumerate(model.blocks):
        stored, path = f"encoder.layer.{layer}", f"blocks_{layer}"
        attention, mlp = f"{stored}.attention", f"{path}/mlp"
        found += _attention_table(attention, f"{path}/contextual_layer", block, width)
        found += layer_norm_table(f"{attention}.output.LayerNorm", f"{path}/norm_1", width)
        found += linear_table(f"{stored}.intermediate.dense", f"{mlp}/layer_0", width, hidden)
        found += linear_table(f"{stored}.output.dense", f"{mlp}/down", hidden, width)
        found += layer_norm_table(f"{stored}.output.LayerNorm", f"{path}/norm_2", width)
    return tuple(found)


def tiny() -> dict[str, Any]:
    """Three layers, and two types of tokens."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": 96,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "hidden_act": "gelu",
        "max_position_embeddings": 128,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
        "position_embedding_type": "absolute",
        "is_decoder": False,
        "add_cross_attention": False,
        "pad_token_id": 0,
    }


def _attention_table(stored: str, path: str, block: Block, width: int) -> tuple[Tensor, ...]:
    layer: Any = block.contextual_layer
    heads, features = layer.num_heads, layer.head_width
    into, bias = heads_in(heads, features), head_bias(heads, features)
    found = []
    for name in ("query", "key", "value"):
        linear, leaf = f"{stored}.self.{name}", f"{path}/{name}"
        found.append(tensor(f"{linear}.weight", (width, width), leaf, into))
        found.append(tensor(f"{linear}.bias", (width,), f"{leaf}_bias", bias))
    linear, out = f"{stored}.output.dense", heads_out(heads, features)
    return (
        *found,
        tensor(f"{linear}.weight", (width, width), f"{path}/out", out),
        tensor(f"{linear}.bias", (width,), f"{path}/out_bias"),
    )
