"""GPT-Neo: GPT-2 with every other layer seeing a window only, and scores that are not scaled.

Source: Black et al. 2021 (GPT-Neo, doi 10.5281/zenodo.5297715).
"""

from typing import Any

from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.interop.families import gpt2
from icl_jax.interop.families.common import (
    activation,
    attention_table,
    decoder,
    layer_norm_table,
    linear_table,
    wired,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, linear, tensor

ARCHITECTURES = ("GPTNeoForCausalLM", "gpt_neo")

HARMLESS = {
    **gpt2.HARMLESS,
    "embed_dropout": "drops numbers in training only",
    "resid_dropout": "drops numbers in training only",
    "window_size": "no layer is local",
}

GLOBAL, LOCAL = "global", "local"


def build(config: Options) -> LanguageModel:
    """The model; queries, keys and values have no biases, and the output has one."""
    width, num_heads = config.count("hidden_size"), _heads(config)
    if width % num_heads:
        raise config.unsupported("num_heads", num_heads, f"a divisor of hidden_size = {width}")
    seeing_all = SoftmaxAttention(
        num_heads=num_heads, head_width=width // num_heads, out_bias=True, scale=1.0
    )
    kinds = layer_kinds(config)
    layers = {GLOBAL: seeing_all}
    if LOCAL in kinds:
        layers[LOCAL] = seeing_all.clone(window=config.integer("window_size", default=256, least=1))
    mlp = Dense(
        hidden_widths=(_hidden(config),),
        activation=activation(config, "activation_function", default="gelu_new"),
    )
    blocks = wired(
        tuple(layers[kind] for kind in kinds),
        mlp,
        wiring="pre_norm",
        norm="layer",
        norm_epsilon=config.number("layer_norm_epsilon", default=1e-5, least=0.0),
    )
    positions = config.count("max_position_embeddings")
    return decoder(config, blocks, tied=True, num_positions=positions)


def layer_kinds(config: Options) -> tuple[str, ...]:
    """What each layer sees: groups of kinds, each so many times, laid out one after the other."""
    num_layers = config.layers("num_layers", "num_hidden_layers")
    groups = config.sequence("attention_types", default=[[[GLOBAL, LOCAL], 12]])
    supported = f"a list of [kinds, times] that makes {GLOBAL} or {LOCAL} for {num_layers} layers"
    kinds: list[str] = []
    for group in groups:
        match group:
            case [[*named], int(times)] if set(map(str, named)) <= {GLOBAL, LOCAL} and (
                0 <= times * len(named) <= num_layers
            ):
                kinds += named * times
            case _:
                raise config.unsupported("attention_types", groups, supported)
    if len(kinds) != num_layers:
        raise config.unsupported("attention_types", groups, supported)
    # The same list, laid out by transformers.
    said = config.sequence("attention_layers", default=kinds)
    if said != tuple(kinds):
        raise config.unsupported("attention_layers", said, "what attention_types says")
    return tuple(kinds)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """Separate queries, keys and values."""
    width, vocab, positions = model.width, model.vocab_size, model.num_positions
    assert positions is not None
    hidden = _hidden(config)
    found = [
        tensor("transformer.wte.weight", (vocab, width), "embedding"),
        tensor("transformer.wpe.weight", (positions, width), "position_embedding"),
        *layer_norm_table("transformer.ln_f", "norm_final", width),
    ]
    if model.head == "own":
        found.append(tensor("lm_head.weight", (vocab, width), "head_kernel", linear))
    for layer, block in enumerate(model.blocks):
        stored, path = f"transformer.h.{layer}", f"blocks_{layer}"
        found += attention_table(
            f"{stored}.attn.attention",
            f"{path}/contextual_layer",
            block.contextual_layer,
            width,
            names=("q_proj", "k_proj", "v_proj", "out_proj"),
        )
        found += linear_table(f"{stored}.mlp.c_fc", f"{path}/mlp/layer_0", width, hidden)
        found += linear_table(f"{stored}.mlp.c_proj", f"{path}/mlp/down", hidden, width)
        found += layer_norm_table(f"{stored}.ln_1", f"{path}/norm_1", width)
        found += layer_norm_table(f"{stored}.ln_2", f"{path}/norm_2", width)
    return tuple(found)


def tiny() -> dict[str, Any]:
    """A layer that sees all, one that sees five tokens, and one more that sees all."""
    return {
        "architectures": ["GPTNeoForCausalLM"],
        "model_type": "gpt_neo",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_layers": 3,
        "num_heads": 4,
        "attention_types": [[[GLOBAL, LOCAL], 1], [[GLOBAL], 1]],
        "window_size": 5,
        "max_position_embeddings": 128,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def _heads(config: Options) -> int:
    return config.count("num_heads", "num_attention_heads")


def _hidden(config: Options) -> int:
    return config.count("intermediate_size", default=4 * config.count("hidden_size"))
