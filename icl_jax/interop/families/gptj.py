"""GPT-J: attention and MLP side by side on one layer norm; neighbouring features turn together.

Source: Wang and Komatsuzaki 2021 (GPT-J-6B).
"""

from typing import Any

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.rotary import Rotary
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import repeat
from icl_jax.interop.families import gpt2
from icl_jax.interop.families.common import (
    activation,
    attention_table,
    layer_norm_table,
    linear_table,
)
from icl_jax.interop.harmless import Only
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, linear, tensor

ARCHITECTURES = ("GPTJForCausalLM", "gptj")

HARMLESS = {
    **gpt2.HARMLESS,
    "n_positions": "the longest prompt that the model was trained for",
    "rotary": Only((True,)),
    "scale_attn_weights": Only((True,)),
}


def build(config: Options) -> LanguageModel:
    """The model."""
    width, num_heads = config.count("n_embd", "hidden_size"), config.count("n_head")
    if width % num_heads:
        raise config.unsupported("n_head", num_heads, f"a divisor of n_embd = {width}")
    turning = config.optional_integer("rotary_dim", missing=64)
    if turning is None:
        raise config.unsupported("rotary_dim", None, "the number of features that turn")
    layer = SoftmaxAttention(
        num_heads=num_heads,
        head_width=width // num_heads,
        rotary=Rotary(features=turning, interleaved=True),
    )
    mlp = Dense(
        hidden_widths=(config.count("n_inner", default=4 * width),),
        activation=activation(config, "activation_function", default="gelu_new"),
    )
    epsilon = config.number("layer_norm_epsilon", default=1e-5, least=0.0)
    block = Block(layer, mlp, wiring="parallel", norm="layer", norm_epsilon=epsilon)
    return LanguageModel(
        blocks=repeat(block, config.layers("n_layer")),
        vocab_size=config.count("vocab_size"),
        width=width,
        norm="layer",
        norm_epsilon=epsilon,
        head="tied" if config.boolean("tie_word_embeddings", default=False) else "own",
        head_bias=True,
    )


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Separate queries, keys and values; one norm a layer; a head with a bias."""
    width, vocab = model.width, model.vocab_size
    hidden = config.count("n_inner", default=4 * width)
    found = [
        tensor("transformer.wte.weight", (vocab, width), "embedding"),
        *layer_norm_table("transformer.ln_f", "norm_final", width),
        tensor("lm_head.bias", (vocab,), "head_bias"),
    ]
    if model.head == "own":
        found.append(tensor("lm_head.weight", (vocab, width), "head_kernel", linear))
    for layer, block in enumerate(model.blocks):
        stored, path = f"transformer.h.{layer}", f"blocks_{layer}"
        found += attention_table(
            f"{stored}.attn",
            f"{path}/contextual_layer",
            block.contextual_layer,
            width,
            names=("q_proj", "k_proj", "v_proj", "out_proj"),
        )
        found += linear_table(f"{stored}.mlp.fc_in", f"{path}/mlp/layer_0", width, hidden)
        found += linear_table(f"{stored}.mlp.fc_out", f"{path}/mlp/down", hidden, width)
        found += layer_norm_table(f"{stored}.ln_1", f"{path}/norm_1", width)
    return tuple(found)


def tiny() -> dict[str, Any]:
    """Half of each head turns."""
    return {
        "architectures": ["GPTJForCausalLM"],
        "model_type": "gptj",
        "vocab_size": 96,
        "n_embd": 32,
        "n_inner": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 512,
        "rotary_dim": 4,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
