"""GPT-2: learned positions, layer norms before attention and MLP, biases everywhere.

Its ``Conv1D`` stores kernels as (in, out), like ours. Source: Radford et al. 2019.
"""

from typing import Any

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import repeat
from icl_jax.interop.families.common import activation, layer_norm_table
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, conv1d_heads, conv1d_out, linear, piece, tensor

ARCHITECTURES = ("GPT2LMHeadModel", "GPT2Model", "gpt2")

HARMLESS = {
    "n_ctx": "n_positions counts",
    "reorder_and_upcast_attn": "another way to compute the same numbers",
    **dict.fromkeys(
        (
            "summary_activation",
            "summary_first_dropout",
            "summary_proj_to_labels",
            "summary_type",
            "summary_use_proj",
        ),
        "what a classifier makes of the model",
    ),
}

#: Adapters need to know that kernels are stored the other way round.
CONV1D = True


def build(config: Options) -> LanguageModel:
    """The model."""
    config.require("scale_attn_weights", (True,), default=True)
    config.require("scale_attn_by_inverse_layer_idx", (False,), default=False)
    config.require("add_cross_attention", (False,), default=False)
    width, num_heads = config.count("n_embd", "hidden_size"), config.count("n_head")
    if width % num_heads:
        raise config.unsupported("n_head", num_heads, f"a divisor of n_embd = {width}")
    layer = SoftmaxAttention(num_heads=num_heads, head_width=width // num_heads, use_bias=True)
    mlp = Dense(
        hidden_widths=(config.count("n_inner", default=4 * width),),
        activation=activation(config, "activation_function", default="gelu_new"),
    )
    epsilon = config.number("layer_norm_epsilon", default=1e-5, least=0.0)
    block = Block(layer, mlp, wiring="pre_norm", norm="layer", norm_epsilon=epsilon)
    return LanguageModel(
        blocks=repeat(block, config.layers("n_layer")),
        vocab_size=config.count("vocab_size"),
        width=width,
        # As in transformers, the older name counts only without the newer.
        num_positions=config.count("n_positions" if config.has("n_positions") else "n_ctx"),
        norm="layer",
        norm_epsilon=epsilon,
        head="tied" if config.boolean("tie_word_embeddings", default=True) else "own",
    )


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Queries, keys and values one after the other in one tensor."""
    width, vocab, positions = model.width, model.vocab_size, model.num_positions
    assert positions is not None
    heads = config.count("n_head")
    features, hidden = width // heads, config.count("n_inner", default=4 * width)
    found = [
        tensor("transformer.wte.weight", (vocab, width), "embedding"),
        tensor("transformer.wpe.weight", (positions, width), "position_embedding"),
        *layer_norm_table("transformer.ln_f", "norm_final", width),
    ]
    if model.head == "own":
        found.append(tensor("lm_head.weight", (vocab, width), "head_kernel", linear))
    for layer in range(len(model.blocks)):
        stored, path = f"transformer.h.{layer}", f"blocks_{layer}"
        context = f"{path}/contextual_layer"
        for kind, shape, suffix in (
            ("weight", (width, 3 * width), ""),
            ("bias", (3 * width,), "_bias"),
        ):
            pieces = tuple(
                piece(f"{context}/{name}{suffix}", conv1d_heads(heads, features, part, 3))
                for part, name in enumerate(("query", "key", "value"))
            )
            found.append(Tensor(f"{stored}.attn.c_attn.{kind}", shape, pieces))
        out, view = f"{stored}.attn.c_proj", conv1d_out(heads, features)
        found.append(tensor(f"{out}.weight", (width, width), f"{context}/out", view))
        found.append(tensor(f"{out}.bias", (width,), f"{context}/out_bias"))
        for name, kernel, shape in (
            ("c_fc", "layer_0", (width, hidden)),
            ("c_proj", "down", (hidden, width)),
        ):
            full, where = f"{stored}.mlp.{name}", f"{path}/mlp/{kernel}"
            found.append(tensor(f"{full}.weight", shape, f"{where}/kernel"))
            found.append(tensor(f"{full}.bias", shape[1:], f"{where}/bias"))
        found += layer_norm_table(f"{stored}.ln_1", f"{path}/norm_1", width)
        found += layer_norm_table(f"{stored}.ln_2", f"{path}/norm_2", width)
    return tuple(found)


def tiny() -> dict[str, Any]:
    """Positions for a hundred and twenty-eight tokens."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 96,
        "n_embd": 32,
        "n_inner": 48,
        "n_layer": 3,
        "n_head": 4,
        "n_positions": 128,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
