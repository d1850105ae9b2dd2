"""BLOOM: no positions but scores that fall with the distance, and a norm on the embedding.

In bfloat16 transformers rounds what scores fall by, by whole units far back; here it is in float32.
Source: BigScience 2022 (arXiv 2211.05100); Press et al. 2021 (arXiv 2108.12409) for the slopes.
"""

import math
from typing import Any

from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.interop.families.common import (
    decoder,
    head_width,
    layer_norm_table,
    linear_table,
    wired,
)
from icl_jax.interop.harmless import Only
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, heads_out, interleaved_heads, linear, piece, tensor

ARCHITECTURES = ("BloomForCausalLM", "bloom")

HARMLESS = {
    "apply_residual_connection_post_layernorm": Only((False,)),
    "attention_softmax_in_fp32": "the softmax is in float32 or wider",
    "bias_dropout_fusion": "another way to compute the same numbers",
    "masked_softmax_fusion": "another way to compute the same numbers",
    "offset_alibi": "what is the same for all a row sees is nothing to its softmax",
    "seq_length": "the longest prompt that the model was trained for",
    "skip_bias_add": "another way to compute the same numbers",
    "skip_bias_add_qkv": Only((False,)),
    "slow_but_exact": "another way to compute the same numbers",
    "unk_token_id": "what the tokenizer does",
}


def build(config: Options) -> LanguageModel:
    """The model; every projection has a bias."""
    config = _named(config)
    num_heads = config.count("num_attention_heads")
    layer = SoftmaxAttention(
        num_heads=num_heads,
        head_width=head_width(config),
        use_bias=True,
        slopes=slopes(num_heads),
    )
    mlp = Dense(hidden_widths=(4 * config.count("hidden_size"),), activation="gelu_tanh_8")
    blocks = wired(
        (layer,) * config.layers("n_layer", "num_hidden_layers"),
        mlp,
        wiring="pre_norm",
        norm="layer",
        norm_epsilon=config.number("layer_norm_epsilon", default=1e-5, least=0.0),
    )
    return decoder(config, blocks, tied=True, embedding_norm=True)


def slopes(num_heads: int) -> tuple[float, ...]:
    """Of each head, by how much its scores fall per position: a geometric sequence down to 2^-8.

    Heads that go beyond a power of two take every other slope of twice that power.
    """
    power = 2 ** int(math.log2(num_heads))
    further = [2.0 ** (-8 * (2 * head + 1) / (2 * power)) for head in range(num_heads - power)]
    return (*(2.0 ** (-8 * (head + 1) / power) for head in range(power)), *further)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Each head's query, key and value follow one another in one tensor."""
    config = _named(config)
    width, vocab = model.width, model.vocab_size
    heads, features = config.count("num_attention_heads"), head_width(config)
    found = [
        tensor("transformer.word_embeddings.weight", (vocab, width), "embedding"),
        *layer_norm_table("transformer.word_embeddings_layernorm", "norm_embedding", width),
        *layer_norm_table("transformer.ln_f", "norm_final", width),
    ]
    if model.head == "own":
        found.append(tensor("lm_head.weight", (vocab, width), "head_kernel", linear))
    for layer in range(len(model.blocks)):
        stored, path = f"transformer.h.{layer}", f"blocks_{layer}"
        attended, context = f"{stored}.self_attention", f"{path}/contextual_layer"
        for kind, shape, suffix in (
            ("weight", (3 * width, width), ""),
            ("bias", (3 * width,), "_bias"),
        ):
            pieces = tuple(
                piece(f"{context}/{name}{suffix}", interleaved_heads(heads, features, part))
                for part, name in enumerate(("query", "key", "value"))
            )
            found.append(Tensor(f"{attended}.query_key_value.{kind}", shape, pieces))
        view = heads_out(heads, features)
        found.append(tensor(f"{attended}.dense.weight", (width, width), f"{context}/out", view))
        found.append(tensor(f"{attended}.dense.bias", (width,), f"{context}/out_bias"))
        mlp, where = f"{stored}.mlp.dense", f"{path}/mlp"
        found += linear_table(f"{mlp}_h_to_4h", f"{where}/layer_0", width, 4 * width)
        found += linear_table(f"{mlp}_4h_to_h", f"{where}/down", 4 * width, width)
        found += layer_norm_table(f"{stored}.input_layernorm", f"{path}/norm_1", width)
        found += layer_norm_table(f"{stored}.post_attention_layernorm", f"{path}/norm_2", width)
    return tuple(found)


def tiny() -> dict[str, Any]:
    """Six heads, two more than a power of two."""
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "vocab_size": 96,
        "hidden_size": 24,
        "n_layer": 3,
        "n_head": 6,
        "layer_norm_epsilon": 1e-5,
        "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 3,
    }


def _named(config: Options) -> Options:
    """The options under the names that most families have."""
    found = {"num_attention_heads": config.count("n_head", "num_attention_heads")}
    if config.has("n_embed"):
        found["hidden_size"] = config.count("n_embed", "hidden_size")
    return config.having(**found)
