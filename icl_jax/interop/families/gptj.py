"""GPT-J: attention and MLP side by side on one layer norm; neighbouring features turn together.

Source: Wang and Komatsuzaki 2021 (GPT-J-6B).
"""

from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.rotary import Rotary
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.interop.families import gpt2
from icl_jax.interop.families.parallel import Names, parallel_decoder, parallel_table
from icl_jax.interop.harmless import Only
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("GPTJForCausalLM", "gptj")

HARMLESS = {
    **gpt2.HARMLESS,
    "n_positions": "the longest prompt that the model was trained for",
    "rotary": Only((True,)),
    "scale_attn_weights": Only((True,)),
}

NAMES = Names(
    embedding="transformer.wte.weight",
    final_norm="transformer.ln_f",
    layers="transformer.h",
    attention="attn",
    projections=("q_proj", "k_proj", "v_proj", "out_proj"),
    up="mlp.fc_in",
    down="mlp.fc_out",
    norm="ln_1",
)


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
    return parallel_decoder(
        config,
        layer,
        width=width,
        hidden_width=config.count("n_inner", default=4 * width),
        num_layers=config.layers("n_layer"),
        activation_key="activation_function",
        epsilon=config.number("layer_norm_epsilon", default=1e-5, least=0.0),
    )


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Separate queries, keys and values; one norm a layer; a head with a bias."""
    return parallel_table(model, NAMES, config.count("n_inner", default=4 * model.width))


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
