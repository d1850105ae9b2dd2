"""Attention and MLP side by side on one layer norm, a head with a bias: Phi and GPT-J."""

from typing import NamedTuple

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import repeat
from icl_jax.interop.families.common import (
    activation,
    attention_table,
    layer_norm_table,
    linear_table,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, linear, tensor


class Names(NamedTuple):
    """What a family calls its tensors; those of a layer below ``{layers}.{its number}``."""

    embedding: str
    final_norm: str
    layers: str
    attention: str
    projections: tuple[str, str, str, str]
    up: str
    down: str
    norm: str


def parallel_decoder(
    config: Options,
    layer: SoftmaxAttention,
    *,
    width: int,
    hidden_width: int,
    num_layers: int,
    activation_key: str,
    epsilon: float,
) -> LanguageModel:
    """The same block at every depth, and a layer norm before the head."""
    mlp = Dense(
        hidden_widths=(hidden_width,),
        activation=activation(config, activation_key, default="gelu_new"),
    )
    block = Block(layer, mlp, wiring="parallel", norm="layer", norm_epsilon=epsilon)
    return LanguageModel(
        blocks=repeat(block, num_layers),
        vocab_size=config.count("vocab_size"),
        width=width,
        norm="layer",
        norm_epsilon=epsilon,
        head="tied" if config.boolean("tie_word_embeddings", default=False) else "own",
        head_bias=True,
    )


def parallel_table(model: LanguageModel, names: Names, hidden_width: int) -> tuple[Tensor, ...]:
    """Separate queries, keys and values; one norm a layer; a head with a bias."""
    width, vocab = model.width, model.vocab_size
    found = [
        tensor(names.embedding, (vocab, width), "embedding"),
        *layer_norm_table(names.final_norm, "norm_final", width),
        tensor("lm_head.bias", (vocab,), "head_bias"),
    ]
    if model.head == "own":
        found.append(tensor("lm_head.weight", (vocab, width), "head_kernel", linear))
    for layer, block in enumerate(model.blocks):
        stored, path = f"{names.layers}.{layer}", f"blocks_{layer}"
        found += attention_table(
            f"{stored}.{names.attention}",
            f"{path}/contextual_layer",
            block.contextual_layer,
            width,
            names=names.projections,
        )
        up, down = f"{stored}.{names.up}", f"{stored}.{names.down}"
        found += linear_table(up, f"{path}/mlp/layer_0", width, hidden_width)
        found += linear_table(down, f"{path}/mlp/down", hidden_width, width)
        found += layer_norm_table(f"{stored}.{names.norm}", f"{path}/norm_1", width)
    return tuple(found)
