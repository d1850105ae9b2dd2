"""StarCoder 2: layer norms, biases everywhere, a plain MLP, grouped queries and a window.

Source: Lozhkov et al. 2024 (arXiv 2402.19173).
"""

from typing import Any

from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families.common import (
    activation,
    attention,
    decoder,
    decoder_table,
    linear_table,
    uniform_layers,
    wired,
)
from icl_jax.interop.harmless import Only
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("Starcoder2ForCausalLM", "starcoder2")

HARMLESS = {
    "activation_function": "hidden_act counts",
    "attention_softmax_in_fp32": "it is computed in float32 or wider in any case",
    "embedding_dropout": "drops numbers in training only",
    "layer_norm_epsilon": "norm_epsilon counts",
    "mlp_type": Only(("default",)),
    "norm_type": Only(("layer_norm",)),
    "residual_dropout": "drops numbers in training only",
    "scale_attention_softmax_in_fp32": "it is computed in float32 or wider in any case",
    "scale_attn_weights": Only((True,)),
}


def build(config: Options) -> LanguageModel:
    """The model."""
    use_bias = config.boolean("use_bias", default=True)
    window = config.optional_integer("sliding_window")
    uniform_layers(config, "full_attention" if window is None else "sliding_attention")
    layer = attention(config, use_bias=use_bias, window=window)
    mlp = Dense(
        hidden_widths=(config.count("intermediate_size"),),
        activation=activation(config, "hidden_act", default="gelu_pytorch_tanh"),
        use_bias=use_bias,
    )
    epsilon = config.number("norm_epsilon", default=1e-5, least=0.0)
    layers = (layer,) * config.layers("num_hidden_layers")
    blocks = wired(layers, mlp, wiring="pre_norm", norm="layer", norm_epsilon=epsilon)
    return decoder(config, blocks, tied=True)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The table of Llama, with layer norms and another MLP."""
    return decoder_table(model, mlp=_mlp_table)


def tiny() -> dict[str, Any]:
    """A window of six tokens."""
    return {
        "architectures": ["Starcoder2ForCausalLM"],
        "model_type": "starcoder2",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "gelu_pytorch_tanh",
        "max_position_embeddings": 128,
        "norm_epsilon": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": 6,
        "use_bias": True,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def _mlp_table(stored: str, path: str, mlp: Any, width: int) -> tuple[Tensor, ...]:
    hidden = mlp.hidden_widths[0]
    return (
        *linear_table(f"{stored}.c_fc", f"{path}/layer_0", width, hidden, use_bias=mlp.use_bias),
        *linear_table(f"{stored}.c_proj", f"{path}/down", hidden, width, use_bias=mlp.use_bias),
    )
