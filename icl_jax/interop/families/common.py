"""What decoders in the manner of Llama share: how options are read, and where tensors go."""

import math
from collections.abc import Callable
from typing import Any

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import ActivationName, Feedforward, Gated
from icl_jax.blocks.language_model import LanguageModel
from icl_jax.blocks.norms import NormName
from icl_jax.blocks.rotary import Rotary, Scaling
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor, head_bias, heads_in, heads_out, linear, tensor

#: What configurations call our activations.
ACTIVATIONS: dict[str, ActivationName] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

_SCALINGS = ("default", "linear", "llama3", "yarn", "longrope")


def activation(config: Options, *keys: str, default: str = "silu") -> ActivationName:
    """The activation of an MLP; ValueError for one that there is not."""
    name = config.text(*keys, default=default)
    if name not in ACTIVATIONS:
        raise config.unsupported(keys[0], name, tuple(ACTIVATIONS))
    return ACTIVATIONS[name]


def rotary(rope: Options, *, base: float = 10000.0, features: int | None = None) -> Rotary:
    """Rotary embeddings as ``Options.rope`` describes them.

    Args:
      rope: the options.
      base: where they have none.
      features: of a head that turn; all when left out.
    """
    kind = rope.require("rope_type", _SCALINGS)
    # Below 1 the later pairs turn faster and faster, until float32 no longer knows their angles.
    base = rope.number("rope_theta", default=base, least=1.0)
    if kind == "default":
        return Rotary(base, features)
    factor = rope.positive("factor")
    if kind == "linear":
        return Rotary(base, features, Scaling("linear", factor))
    original = rope.integer("original_max_position_embeddings", least=1)
    if kind == "llama3":
        low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
        if not 0 < low < high:
            raise rope.unsupported("high_freq_factor", high, f"more than low_freq_factor = {low}")
        scaling = Scaling(
            "llama3",
            factor,
            low_freq_factor=low,
            high_freq_factor=high,
            original_length=original,
        )
    elif kind == "longrope":
        scaling = Scaling(
            "longrope",
            factor,
            original_length=original,
            attention_factor=rope.optional_number("attention_factor"),
            short_factors=_factors(rope, "short_factor"),
            long_factors=_factors(rope, "long_factor"),
        )
    else:
        scaling = Scaling(
            "yarn",
            factor,
            original_length=original,
            # Zero means what is missing means, as in transformers.
            beta_fast=rope.number("beta_fast", default=32.0, least=0.0) or 32.0,
            beta_slow=rope.number("beta_slow", default=1.0, least=0.0) or 1.0,
            attention_factor=_yarn_attention(rope, factor),
            truncate=rope.boolean("truncate", default=True),
        )
    return Rotary(base, features, scaling)


def attention(config: Options, *, base: float = 10000.0, **options: Any) -> SoftmaxAttention:
    """Causal attention with rotary embeddings.

    Args:
      config: config.json.
      base: of the rotary embeddings, where the configuration has none.
      **options: further attributes of ``SoftmaxAttention``.
    """
    num_heads = config.count("num_attention_heads")
    return SoftmaxAttention(
        num_heads=num_heads,
        head_width=head_width(config),
        num_kv_heads=config.count("num_key_value_heads", default=num_heads),
        rotary=options.pop("rotary", None) or rotary(config.rope(), base=base),
        **options,
    )


def uniform_layers(config: Options, kind: str) -> None:
    """Refuses ``layer_types`` that say anything but the one kind that all layers are."""
    num_layers = config.layers("num_hidden_layers")
    kinds = config.sequence("layer_types", default=(kind,) * num_layers)
    if kinds != (kind,) * num_layers:
        supported = f"num_hidden_layers = {num_layers} times {kind}"
        raise config.unsupported("layer_types", kinds, supported)


def head_width(config: Options) -> int:
    """The features of a head: as said, or the width shared out among the heads."""
    width, num_heads = config.count("hidden_size"), config.count("num_attention_heads")
    if not config.has("head_dim") and width % num_heads:
        raise config.unsupported(
            "num_attention_heads", num_heads, f"a divisor of hidden_size = {width}"
        )
    return config.count("head_dim", default=width // num_heads)


def gated(config: Options, *, use_bias: bool = False) -> Gated:
    """A gated MLP."""
    return Gated(
        hidden_width=config.count("intermediate_size"),
        activation=activation(config, "hidden_act"),
        use_bias=use_bias,
    )


def decoder(
    config: Options, blocks: tuple[Block, ...], *, tied: bool = False, **options: Any
) -> LanguageModel:
    """Embedding, blocks, a final norm like those of the blocks, and head.

    Args:
      config: config.json.
      blocks: the layers.
      tied: whether the head is the embedding, where the configuration says nothing.
      **options: further attributes of ``LanguageModel``.
    """
    return LanguageModel(
        blocks=blocks,
        vocab_size=config.count("vocab_size"),
        width=config.count("hidden_size"),
        norm=blocks[0].norm,
        norm_epsilon=blocks[0].norm_epsilon,
        head="tied" if config.boolean("tie_word_embeddings", default=tied) else "own",
        **options,
    )


def pre_norm_blocks(
    config: Options,
    attentions: tuple[SoftmaxAttention, ...],
    mlp: Feedforward,
    *,
    epsilon: float = 1e-6,
) -> tuple[Block, ...]:
    """The layers of Llama: each its own attention, and the same kind of MLP.

    Args:
      config: config.json.
      attentions: of the layers.
      mlp: of all of them.
      epsilon: of the norms, where the configuration has none.
    """
    epsilon = config.number("rms_norm_eps", default=epsilon, least=0.0)
    return wired(attentions, mlp, wiring="pre_norm", norm="rms", norm_epsilon=epsilon)


def wired(
    attentions: tuple[SoftmaxAttention, ...], mlp: Feedforward, **options: Any
) -> tuple[Block, ...]:
    """Layers that differ in their attention; ``options`` are attributes of ``Block``."""
    # The same instance twice would mean shared parameters, so every layer has clones.
    return tuple(Block(one.clone(), mlp.clone(), **options) for one in attentions)


#: Stored norms of a layer of Llama, and ours.
NORMS = (("input_layernorm", "norm_1"), ("post_attention_layernorm", "norm_2"))


def decoder_table(
    model: LanguageModel,
    *,
    norms: tuple[tuple[str, str], ...] = NORMS,
    gain_offset: float = 0.0,
    attention: Callable[..., tuple[Tensor, ...]] | None = None,
    mlp: Callable[..., tuple[Tensor, ...]] | None = None,
) -> tuple[Tensor, ...]:
    """The tensors of Llama.

    Args:
      model: the decoder.
      norms: what the norms of a layer are called, and which they are.
      gain_offset: what the gains of norms have more than what is stored (Gemma: 1).
      attention: the table of a layer's attention; ``attention_table`` when left out.
      mlp: the table of a layer's MLP; ``gated_table`` when left out.
    """
    if attention is None:

        def attention(stored: str, path: str, layer: Any, width: int) -> tuple[Tensor, ...]:
            return attention_table(stored, path, layer, width, gain_offset=gain_offset)

    mlp = mlp or gated_table
    found = list(ends_table(model, gain_offset=gain_offset))
    for layer, block in enumerate(model.blocks):
        stored, path = f"model.layers.{layer}", f"blocks_{layer}"
        inner = block.contextual_layer
        found += attention(f"{stored}.self_attn", f"{path}/contextual_layer", inner, model.width)
        found += mlp(f"{stored}.mlp", f"{path}/mlp", block.mlp, model.width)
        for name, norm in norms:
            found += norm_table(
                f"{stored}.{name}", f"{path}/{norm}", model.width, block.norm, offset=gain_offset
            )
    return tuple(found)


def ends_table(model: LanguageModel, *, gain_offset: float = 0.0) -> tuple[Tensor, ...]:
    """Embedding, final norm, and the head where it is not the embedding again."""
    width, table = model.width, (model.vocab_size, model.width)
    found = [
        tensor("model.embed_tokens.weight", table, "embedding"),
        *norm_table("model.norm", "norm_final", width, model.norm, offset=gain_offset),
    ]
    if model.head == "own":
        found.append(tensor("lm_head.weight", table, "head_kernel", linear))
    return tuple(found)


def norms_table(
    stored: str,
    path: str,
    norms: tuple[tuple[str, str], ...],
    width: int,
    *,
    gain_offset: float = 0.0,
) -> tuple[Tensor, ...]:
    """The gains of a layer's root-mean-square norms."""
    return tuple(
        tensor(f"{stored}.{name}.weight", (width,), f"{path}/{norm}/scale", offset=gain_offset)
        for name, norm in norms
    )


def norm_table(
    stored: str, path: str, width: int, kind: NormName, *, offset: float = 0.0
) -> tuple[Tensor, ...]:
    """What a norm of a kind has of gain and bias; ``offset`` as in ``tensor``."""
    found = []
    if kind not in ("layer_plain", "none"):
        found.append(tensor(f"{stored}.weight", (width,), f"{path}/scale", offset=offset))
    if kind == "layer":
        found.append(tensor(f"{stored}.bias", (width,), f"{path}/bias"))
    return tuple(found)


def attention_table(
    stored: str,
    path: str,
    layer: Any,
    width: int,
    *,
    gain_offset: float = 0.0,
    names: tuple[str, str, str, str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
) -> tuple[Tensor, ...]:
    """Separate query, key and value projections, their biases and norms, and the output's.

    Args:
      stored: what the names begin with, such as ``model.layers.0.self_attn``.
      path: of the layer in the tree, written with slashes.
      layer: the attention.
      width: D.
      gain_offset: what the gains of query-key norms have more than what is stored.
      names: of the projections of queries, keys and values, and of the output's.
    """
    heads, features = layer.num_heads, layer.head_width
    groups = layer.num_kv_heads or heads
    found = []
    for name, leaf, count in zip(
        names, ("query", "key", "value"), (heads, groups, groups), strict=False
    ):
        size = count * features
        weight, view = f"{stored}.{name}.weight", heads_in(count, features)
        found.append(tensor(weight, (size, width), f"{path}/{leaf}", view))
        if layer.use_bias:
            bias, view = f"{stored}.{name}.bias", head_bias(count, features)
            found.append(tensor(bias, (size,), f"{path}/{leaf}_bias", view))
    out = (width, heads * features)
    found.append(
        tensor(f"{stored}.{names[3]}.weight", out, f"{path}/out", heads_out(heads, features))
    )
    if layer.use_bias if layer.out_bias is None else layer.out_bias:
        found.append(tensor(f"{stored}.{names[3]}.bias", (width,), f"{path}/out_bias"))
    for name, leaf, count in (("q_norm", "query_norm", heads), ("k_norm", "key_norm", groups)):
        gain, where = f"{stored}.{name}.weight", f"{path}/{leaf}"
        if layer.qk_norm == "head":
            found.append(tensor(gain, (features,), where, offset=gain_offset))
        elif layer.qk_norm == "layer":
            found.append(tensor(gain, (count, features), where))
        elif layer.qk_norm == "all":
            view = head_bias(count, features)
            found.append(tensor(gain, (count * features,), where, view, offset=gain_offset))
    return tuple(found)


def gated_table(stored: str, path: str, mlp: Any, width: int) -> tuple[Tensor, ...]:
    """Gate, up and down, with biases if the MLP has them."""
    hidden = mlp.hidden_width
    found = []
    for kernel, shape in (
        ("gate", (hidden, width)),
        ("up", (hidden, width)),
        ("down", (width, hidden)),
    ):
        name = f"{stored}.{kernel}_proj"
        found.append(tensor(f"{name}.weight", shape, f"{path}/{kernel}/kernel", linear))
        if mlp.use_bias:
            found.append(tensor(f"{name}.bias", shape[:1], f"{path}/{kernel}/bias"))
    return tuple(found)


def linear_table(
    stored: str, path: str, inputs: int, outputs: int, *, use_bias: bool = True
) -> tuple[Tensor, ...]:
    """One ``nn.Linear`` as kernel and bias."""
    found = [tensor(f"{stored}.weight", (outputs, inputs), f"{path}/kernel", linear)]
    if use_bias:
        found.append(tensor(f"{stored}.bias", (outputs,), f"{path}/bias"))
    return tuple(found)


def layer_norm_table(stored: str, path: str, width: int) -> tuple[Tensor, ...]:
    """Gain and bias of a layer norm."""
    return norm_table(stored, path, width, "layer")


def _yarn_attention(rope: Options, factor: float) -> float | None:
    """YaRN's factor on queries and keys; None leaves the standard one."""
    if rope.has("attention_factor"):
        return rope.number("attention_factor")
    weights = [rope.number(key, default=0.0) for key in ("mscale", "mscale_all_dim")]
    if all(weights):  # A weight of zero is none, as in transformers.
        scales = [_mscale(factor, weight) for weight in weights]
        return scales[0] / scales[1]
    return None


def _factors(rope: Options, key: str) -> tuple[float, ...]:
    """LongRoPE's factors of the rates; the number of them is checked with the width of a head."""
    found = rope.sequence(key)
    if not all(isinstance(one, int | float) and one > 0 for one in found):
        raise rope.unsupported(key, found, "a list of positive numbers")
    return tuple(float(one) for one in found)


def _mscale(factor: float, weight: float) -> float:
    return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0
