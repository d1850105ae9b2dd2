"""The text model of a multimodal checkpoint, which is loaded alone.

Such a checkpoint has the configuration of the text model inside its own, and the tensors of the
text model beside those of what sees or hears. The parts that read no text are left where they are;
without pictures, the text model computes what the whole does.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from icl_jax.interop.harmless import refuse_unread
from icl_jax.interop.options import Options

#: Stored names, without their prefix, of the parts that read no text.
OTHER_PARTS = (r"(vision_tower|multi_modal_projector)\..*",)

INSIDE = "text_config"

_PICTURES = "about pictures, and there are none"
_HARMLESS = {
    "boi_token_index": _PICTURES,
    "eoi_token_index": _PICTURES,
    "image_token_index": _PICTURES,
    "mm_tokens_per_image": _PICTURES,
    "multimodal_projector_bias": _PICTURES,
    "projector_hidden_act": _PICTURES,
    "spatial_merge_size": _PICTURES,
    "vision_config": _PICTURES,
    "vision_feature_layer": _PICTURES,
}


@dataclasses.dataclass(frozen=True)
class _Wrapper:
    """A multimodal architecture.

    Attributes:
      architecture: its name.
      model_type: of its text model, where the file does not say.
      architectures: model_type of a text model -> its architecture.
      defaults: options of the text model that released files leave out.
      ignored: options of the text model that the whole does nothing with, so that the two differ.
    """

    architecture: str
    model_type: str
    architectures: Mapping[str, str]
    defaults: Mapping[str, Any]
    ignored: tuple[str, ...] = ()


#: The model_type of the whole -> what is inside.
WRAPPERS = {
    "gemma3": _Wrapper(
        "Gemma3ForConditionalGeneration",
        "gemma3_text",
        {"gemma3_text": "Gemma3ForCausalLM"},
        {
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "max_position_embeddings": 131072,
            "num_attention_heads": 8,
            "num_hidden_layers": 26,
            "num_key_value_heads": 4,
            "vocab_size": 262208,
        },
        ("final_logit_softcapping",),
    ),
    "mistral3": _Wrapper(
        "Mistral3ForConditionalGeneration",
        "mistral",
        {"mistral": "MistralForCausalLM", "ministral3": "Ministral3ForCausalLM"},
        {},
    ),
}


def text_part(config: Mapping[str, Any], where: str = "config.json") -> dict[str, Any] | None:
    """The configuration of the text model inside a multimodal one; None for any other.

    Whether the head is the embedding again is said by the whole, and by the text model only where
    the whole says nothing, as in transformers.

    Args:
      config: config.json.
      where: what the messages call it.

    Raises:
      ValueError: a text model or an option that is not supported.
    """
    wrapper = WRAPPERS.get(str(config.get("model_type")))
    if wrapper is None or config.get(INSIDE) is None:
        return None
    options = Options(config, where)
    named = options.sequence("architectures", default=(wrapper.architecture,))
    if named != (wrapper.architecture,):
        raise options.unsupported("architectures", named, wrapper.architecture)
    inner = options.mapping(INSIDE)
    kind = inner.require("model_type", tuple(wrapper.architectures), default=wrapper.model_type)
    for key in wrapper.ignored:
        inner.require(key, (None,), default=None)
    said = {key: value for key, value in inner.config.items() if value is not None}
    found = {
        **inner.config,
        **wrapper.defaults,
        **said,
        "architectures": [wrapper.architectures[kind]],
        "model_type": kind,
    }
    for key in ("tie_word_embeddings", "dtype", "torch_dtype"):
        value = options.either(key, default=None)
        if value is not None:
            found[key] = value
    for key, value in config.items():
        if key.endswith("_token_id"):
            found.setdefault(key, value)
    # What stands inside is the business of the text model's own family.
    outside = {key: value for key, value in config.items() if key != INSIDE}
    refuse_unread(dataclasses.replace(options, config=outside), _HARMLESS)
    return found
