"""Mixtures of experts: what Mixtral, OLMoE and the mixtures of Qwen share.

Layers are wired as in Llama. A checkpoint has one tensor per expert and kernel; what transformers
holds in memory, and writes when it is told to (``save_original_format=False``), has the experts of
a layer in two tensors. Both are read, and the first is written.
"""

from collections.abc import Callable
from typing import Any

from icl_jax.blocks.block import Block
from icl_jax.blocks.experts import Experts
from icl_jax.blocks.feedforward import Feedforward
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.interop.families.common import (
    NORMS,
    activation,
    attention_table,
    decoder,
    ends_table,
    gated,
    gated_table,
    norms_table,
)
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, linear, piece, tensor

#: What files call the kernels of an expert, and which they are.
Names = tuple[tuple[str, str], ...]
PROJECTIONS: Names = (("gate_proj", "gate"), ("up_proj", "up"), ("down_proj", "down"))

#: The table of a layer's contextual layer.
Mixer = Callable[[str, str, Any, int], tuple[Tensor, ...]]


def experts(
    config: Options,
    *,
    width_key: str,
    renormalise: bool,
    shared_width: int | None = None,
) -> Experts:
    """The experts of a layer.

    Args:
      config: config.json.
      width_key: its name for the hidden width of an expert.
      renormalise: whether a token's gates are made to sum to one.
      shared_width: hidden width of the shared expert; None for none.
    """
    return Experts(
        num_experts=config.count("num_local_experts", "num_experts"),
        experts_per_token=config.count("num_experts_per_tok"),
        hidden_width=config.count(width_key),
        activation=activation(config, "hidden_act"),
        renormalise=renormalise,
        shared_width=shared_width,
    )


def qwen_mlps(config: Options, mixture: Experts) -> tuple[Feedforward, ...]:
    """The MLP of each layer of Qwen: experts in every so many, but not in those of a list."""
    every = config.integer("decoder_sparse_step", default=1, least=1)
    plain = config.sequence("mlp_only_layers", default=())
    if not all(type(layer) is int for layer in plain):
        raise config.unsupported("mlp_only_layers", plain, "numbers of layers")
    return tuple(
        mixture if layer not in plain and (layer + 1) % every == 0 else gated(config)
        for layer in range(config.layers("num_hidden_layers"))
    )


def mixture_decoder(
    config: Options,
    attention: SoftmaxAttention,
    mlps: tuple[Feedforward, ...],
    *,
    epsilon: float,
) -> LanguageModel:
    """The model.

    Args:
      config: config.json.
      attention: of every layer.
      mlps: of the layers.
      epsilon: of the norms.
    """
    # The same instance twice would mean shared parameters, so every layer has clones.
    blocks = tuple(
        Block(attention.clone(), mlp.clone(), wiring="pre_norm", norm="rms", norm_epsilon=epsilon)
        for mlp in mlps
    )
    return decoder(config, blocks)


def mixture_table(
    model: LanguageModel,
    *,
    mlp_name: str = "mlp",
    names: Names | None = PROJECTIONS,
    mixer: Mixer | None = None,
    gain_offset: float = 0.0,
) -> tuple[Tensor, ...]:
    """The tensors of Llama, with experts where there are some.

    Args:
      model: attention, and experts or gated MLPs.
      mlp_name: what a layer's router and experts are called.
      names: of the kernels of an expert; None where all experts are in two tensors.
      mixer: the table of a layer's contextual layer, from the layer's name in the files, its path,
        the contextual layer and the width; that of attention when left out.
      gain_offset: what the gains of norms have more than what is stored.
    """
    mixer = mixer or _attention
    found = list(ends_table(model, gain_offset=gain_offset))
    for layer, block in enumerate(model.blocks):
        stored, path = f"model.layers.{layer}", f"blocks_{layer}"
        mlp, ours, theirs = block.mlp, f"{path}/mlp", f"{stored}.{mlp_name}"
        inner = block.contextual_layer
        found += mixer(stored, f"{path}/contextual_layer", inner, model.width)
        found += norms_table(stored, path, NORMS, model.width, gain_offset=gain_offset)
        if not isinstance(mlp, Experts):
            found += gated_table(theirs, ours, mlp, model.width)
            continue
        router = (mlp.num_experts, model.width)
        found.append(tensor(f"{theirs}.gate.weight", router, f"{ours}/router", linear))
        if names is None:
            found += _fused(f"{theirs}.experts", ours, mlp, model.width)
        else:
            found += _separate(f"{theirs}.experts", ours, mlp, model.width, names)
        if mlp.shared_width is not None:
            found += _shared(f"{theirs}.shared_expert", ours, mlp.shared_width, model.width)
    return tuple(found)


def _attention(stored: str, path: str, layer: Any, width: int) -> tuple[Tensor, ...]:
    return attention_table(f"{stored}.self_attn", path, layer, width)


def _separate(stored: str, path: str, mlp: Experts, width: int, names: Names) -> tuple[Tensor, ...]:
    """One tensor per expert and kernel."""
    into, out = (mlp.hidden_width, width), (width, mlp.hidden_width)
    return tuple(
        tensor(
            f"{stored}.{expert}.{name}.weight",
            out if kernel == "down" else into,
            f"{path}/{kernel}",
            linear,
            index=expert,
        )
        for expert in range(mlp.num_experts)
        for name, kernel in names
    )


def _fused(stored: str, path: str, mlp: Experts, width: int) -> tuple[Tensor, ...]:
    """All gates above all ups in one tensor (E, 2F, D), and all downs in one (E, D, F)."""
    num_experts, hidden = mlp.num_experts, mlp.hidden_width
    gates_and_ups = (
        piece(f"{path}/gate", lambda stored_EGD: linear(stored_EGD[:, :hidden])),
        piece(f"{path}/up", lambda stored_EGD: linear(stored_EGD[:, hidden:])),
    )
    downs = (num_experts, width, hidden)
    return (
        Tensor(f"{stored}.gate_up_proj", (num_experts, 2 * hidden, width), gates_and_ups),
        tensor(f"{stored}.down_proj", downs, f"{path}/down", linear),
    )


def _shared(stored: str, path: str, hidden: int, width: int) -> tuple[Tensor, ...]:
    """The expert that every token gets, and the kernel of its own gate."""
    return (
        tensor(f"{stored}.gate_proj.weight", (hidden, width), f"{path}/shared_gate", linear),
        tensor(f"{stored}.up_proj.weight", (hidden, width), f"{path}/shared_up", linear),
        tensor(f"{stored}.down_proj.weight", (width, hidden), f"{path}/shared_down", linear),
        tensor(f"{stored}_gate.weight", (1, width), f"{path}/shared_router", linear),
    )
