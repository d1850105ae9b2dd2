"""Mamba 2: a selective state space in every layer, and no MLP behind it.

A layer adds ``u W_out`` to the stream, where ``u`` is what the state space gives: ``W_out`` is the
linear map in the place of the MLP, and the context is a rank-1 change of it. Source: Dao and Gu
2024 (arXiv 2405.21060).

transformers holds steps within ``time_step_limit`` in a run over a whole text and not when it goes
on token by token; here both are held, so with limits its cached generation is another one.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.selective import SelectiveStateSpace
from icl_jax.interop.families.common import decoder, linear_table, norm_table
from icl_jax.interop.harmless import Only
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, linear, tensor

ARCHITECTURES = ("Mamba2ForCausalLM", "mamba2")

#: Why PEFT takes no adapter of this family.
NO_LORA = (
    "PEFT puts no LoRA on out_proj of a Mamba model (its fast kernels read the weight past the "
    "adapter), and that is the kernel that the context changes"
)

_START = "how weights begin, before training"

HARMLESS = {
    "chunk_size": "another way to compute the same numbers",
    "norm_before_gate": "transformers gates first whatever it says",
    "rescale_prenorm_residual": _START,
    "residual_in_fp32": "how sums are rounded in half precision",
    "rms_norm": Only((True,)),
    "time_step_floor": _START,
    "time_step_init_scheme": _START,
    "time_step_max": _START,
    "time_step_min": _START,
    "time_step_rank": "of Mamba 1; no weight has it as a width",
    "time_step_scale": _START,
}


def build(config: Options) -> LanguageModel:
    """The model; all layers are alike."""
    epsilon = config.number("layer_norm_epsilon", default=1e-5, least=0.0)
    config.require("hidden_act", ("silu", "swish"), default="silu")
    use_bias = config.boolean("use_bias", default=False)
    layer = _layer(config, use_bias, epsilon)
    out = Dense(hidden_widths=(), width=config.count("hidden_size"), use_bias=use_bias)
    # The same instance twice would mean shared parameters, so every layer has clones.
    blocks = tuple(
        Block(layer.clone(), out.clone(), wiring="mixer", norm="rms", norm_epsilon=epsilon)
        for _ in range(config.layers("num_hidden_layers"))
    )
    return decoder(config, blocks)


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """One tensor for all that reads the stream, and the others each its own."""
    width, vocabulary = model.width, (model.vocab_size, model.width)
    found = [
        tensor("backbone.embeddings.weight", vocabulary, "embedding"),
        *norm_table("backbone.norm_f", "norm_final", width, model.norm),
    ]
    if model.head == "own":
        found.append(tensor("lm_head.weight", vocabulary, "head_kernel", linear))
    for number, block in enumerate(model.blocks):
        stored, path = f"backbone.layers.{number}", f"blocks_{number}"
        layer, mlp = block.contextual_layer, block.mlp
        assert isinstance(layer, SelectiveStateSpace) and isinstance(mlp, Dense)
        found += norm_table(f"{stored}.norm", f"{path}/norm_1", width, block.norm)
        found += _layer_table(f"{stored}.mixer", f"{path}/contextual_layer", layer, width)
        found += linear_table(
            f"{stored}.mixer.out_proj",
            f"{path}/mlp/down",
            layer.num_heads * layer.value_width,
            width,
            use_bias=mlp.use_bias,
        )
    return tuple(found)


def tiny() -> dict[str, Any]:
    """Heads that share keys, and more of them than the model is wide."""
    return {
        "architectures": ["Mamba2ForCausalLM"],
        "model_type": "mamba2",
        "vocab_size": 96,
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_heads": 6,
        "head_dim": 8,
        "state_size": 5,
        "n_groups": 2,
        "expand": 2,
        "conv_kernel": 3,
        "chunk_size": 8,
        "hidden_act": "silu",
        "layer_norm_epsilon": 1e-5,
        "use_bias": False,
        "use_conv_bias": True,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def _layer(config: Options, use_bias: bool, epsilon: float) -> SelectiveStateSpace:
    heads = config.count("num_heads", default=128)
    features = config.count("head_dim", default=64)
    width, expand = config.count("hidden_size"), config.integer("expand", default=2, least=1)
    if heads * features != expand * width:
        supported = f"hidden_size * expand / num_heads, with {width} * {expand} / {heads}"
        raise config.unsupported("head_dim", features, supported)
    config.require("intermediate_size", (heads * features,), default=heads * features)
    groups = config.count("n_groups", default=8)
    if heads % groups:
        raise config.unsupported("n_groups", groups, f"a divisor of num_heads = {heads}")
    return SelectiveStateSpace(
        num_heads=heads,
        num_key_heads=groups,
        key_width=config.count("state_size", default=128),
        value_width=features,
        taps=config.count("conv_kernel", default=4),
        norm_epsilon=epsilon,
        use_bias=use_bias,
        taps_bias=config.boolean("use_conv_bias", default=True),
        step_limits=_step_limits(config),
    )


def _step_limits(config: Options) -> tuple[float, float]:
    """The least and the longest step; JSON has no infinity, and transformers tags its own."""
    given = config.sequence("time_step_limit", default=(0.0, math.inf))
    tagged = {"__float__": "Infinity"}
    limits = [math.inf if isinstance(one, Mapping) and one == tagged else one for one in given]
    if (
        len(limits) != 2
        or not all(isinstance(one, int | float) and not isinstance(one, bool) for one in limits)
        or not 0 <= limits[0] <= limits[1]
        or math.isinf(limits[0])
    ):
        supported = f"two numbers 0 <= low <= high; the second may be {json.dumps(tagged)}"
        raise config.unsupported("time_step_limit", given, supported)
    return float(limits[0]), float(limits[1])


def _layer_table(
    stored: str, path: str, layer: SelectiveStateSpace, width: int
) -> tuple[Tensor, ...]:
    heads, inner = layer.num_heads, layer.num_heads * layer.value_width
    groups = layer.num_key_heads or heads
    channels = inner + 2 * groups * layer.key_width
    outputs = inner + channels + heads
    found = [
        tensor(f"{stored}.in_proj.weight", (outputs, width), f"{path}/in", linear),
        tensor(
            f"{stored}.conv1d.weight",
            (channels, 1, layer.taps),
            f"{path}/taps",
            lambda stored: stored[:, 0],
        ),
        tensor(f"{stored}.A_log", (heads,), f"{path}/rate"),
        tensor(f"{stored}.dt_bias", (heads,), f"{path}/step_bias"),
        tensor(f"{stored}.D", (heads,), f"{path}/skip"),
        tensor(f"{stored}.norm.weight", (inner,), f"{path}/scale"),
    ]
    if layer.use_bias:
        found.append(tensor(f"{stored}.in_proj.bias", (outputs,), f"{path}/in_bias"))
    if layer.taps_bias:
        found.append(tensor(f"{stored}.conv1d.bias", (channels,), f"{path}/taps_bias"))
    return tuple(found)
