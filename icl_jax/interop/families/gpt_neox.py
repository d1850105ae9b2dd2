"""GPT-NeoX and Pythia: attention and MLP side by side, each on a norm of its own.

Source: Black et al. 2022 (arXiv 2204.06745), Biderman et al. 2023 (arXiv 2304.01373).
"""

from typing import Any

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.stack import repeat
from icl_jax.interop.families.common import (
    activation,
    attention,
    head_width,
    layer_norm_table,
    linear_table,
    rotary,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, heads_out, interleaved_heads, linear, piece, tensor

ARCHITECTURES = ("GPTNeoXForCausalLM", "gpt_neox")


def build(config: Options) -> LanguageModel:
    """The model; ``use_parallel_residual`` false gives the layers of GPT-2."""
    rope = config.rope()
    turning = int(head_width(config) * rope.number("partial_rotary_factor", default=0.25))
    layer = attention(
        config,
        use_bias=config.boolean("attention_bias", default=True),
        rotary=rotary(rope, features=turning),
    )
    mlp = Dense(
        hidden_widths=(config.count("intermediate_size"),),
        activation=activation(config, "hidden_act", default="gelu"),
    )
    parallel = config.boolean("use_parallel_residual", default=True)
    epsilon = config.number("layer_norm_eps", default=1e-5, least=0.0)
    block = Block(
        layer,
        mlp,
        wiring="parallel" if parallel else "pre_norm",
        norm="layer",
        norm_epsilon=epsilon,
        separate_norms=parallel,
    )
    return LanguageModel(
        blocks=repeat(block, config.layers("num_hidden_layers")),
        vocab_size=config.count("vocab_size"),
        width=config.count("hidden_size"),
        norm="layer",
        norm_epsilon=epsilon,
        head="tied" if config.boolean("tie_word_embeddings", default=False) else "own",
    )


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Each head's query, key and value follow one another in one tensor."""
    width, vocab = model.width, model.vocab_size
    heads, hidden = config.count("num_attention_heads"), config.count("intermediate_size")
    features = head_width(config)
    use_bias = config.boolean("attention_bias", default=True)
    found = [
        tensor("gpt_neox.embed_in.weight", (vocab, width), "embedding"),
        *layer_norm_table("gpt_neox.final_layer_norm", "norm_final", width),
    ]
    if model.head == "own":
        found.append(tensor("embed_out.weight", (vocab, width), "head_kernel", linear))
    fused = 3 * heads * features
    for layer in range(len(model.blocks)):
        stored, path = f"gpt_neox.layers.{layer}", f"blocks_{layer}"
        attended, context = f"{stored}.attention", f"{path}/contextual_layer"
        for kind, shape, suffix in (("weight", (fused, width), ""), ("bias", (fused,), "_bias")):
            if kind == "weight" or use_bias:
                pieces = tuple(
                    piece(f"{context}/{name}{suffix}", interleaved_heads(heads, features, part))
                    for part, name in enumerate(("query", "key", "value"))
                )
                found.append(Tensor(f"{attended}.query_key_value.{kind}", shape, pieces))
        out = (width, heads * features)
        view = heads_out(heads, features)
        found.append(tensor(f"{attended}.dense.weight", out, f"{context}/out", view))
        if use_bias:
            found.append(tensor(f"{attended}.dense.bias", (width,), f"{context}/out_bias"))
        mlp = f"{stored}.mlp.dense"
        found += linear_table(f"{mlp}_h_to_4h", f"{path}/mlp/layer_0", width, hidden)
        found += linear_table(f"{mlp}_4h_to_h", f"{path}/mlp/down", hidden, width)
        found += layer_norm_table(f"{stored}.input_layernorm", f"{path}/norm_1", width)
        found += layer_norm_table(f"{stored}.post_attention_layernorm", f"{path}/norm_2", width)
    return tuple(found)


def tiny() -> dict[str, Any]:
    """A quarter of each head turns."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "hidden_act": "gelu",
        "max_position_embeddings": 128,
        "layer_norm_eps": 1e-5,
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
