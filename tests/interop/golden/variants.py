"""Configurations with golden files beside those of the families' tiny models.

Each is spelt as in the files of the released checkpoint, with small numbers in the place of large
ones, and its ``config.json`` stays as it stands here: transformers would write it anew.
"""

from typing import Any

from icl_jax.interop.registry import families

VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}

#: microsoft/Phi-4-mini-instruct. Its window is longer than its texts; here it is not.
PHI_4_MINI = {
    "_name_or_path": "Phi-4-mini-instruct",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 2,
    "full_attn_mod": 1,
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "max_position_embeddings": 512,
    "mlp_bias": False,
    "model_type": "phi3",
    "num_attention_heads": 6,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "original_max_position_embeddings": 16,
    "pad_token_id": 2,
    "partial_rotary_factor": 0.75,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "long_factor": [1, 1.5, 4.0],
        "short_factor": [1.0, 1.2, 1.4],
        "type": "longrope",
    },
    "rope_theta": 10000.0,
    "sliding_window": 19,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.45.0",
    "use_cache": True,
    "vocab_size": 96,
}

#: microsoft/phi-4, of 14 billion parameters.
PHI_4 = {
    "_name_or_path": "microsoft/phi-4",
    "architectures": ["Phi3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {},
    "bos_token_id": 1,
    "embd_pdrop": 0.0,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 48,
    "initializer_range": 0.02,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "model_type": "phi3",
    "num_attention_heads": 8,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "original_max_position_embeddings": 128,
    "pad_token_id": 2,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "rope_theta": 250000,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.47.0",
    "use_cache": True,
    "vocab_size": 96,
}


def text(family: str, **changes: Any) -> dict[str, Any]:
    """What a multimodal configuration says of its text model."""
    tiny = {**families()[family].tiny(), **changes}
    return {key: value for key, value in tiny.items() if key != "architectures"}


#: Name -> config.json.
VARIANTS: dict[str, dict[str, Any]] = {
    "phi_4": PHI_4,
    "phi_4_mini": PHI_4_MINI,
    # A weight of zero is none: the standard factor on queries and keys, not that of mscale alone.
    "yarn_without_mscale_all_dim": {
        **families()["llama"].tiny(),
        "rope_scaling": {
            "type": "yarn",
            "factor": 3.0,
            "original_max_position_embeddings": 16,
            "mscale": 0.7,
            "mscale_all_dim": 0,
        },
    },
    "gemma_3_multimodal": {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "boi_token_index": 97,
        "eoi_token_index": 98,
        "eos_token_id": [1, 2],
        "image_token_index": 99,
        "initializer_range": 0.02,
        "mm_tokens_per_image": 4,
        "model_type": "gemma3",
        # The whole applies no cap.
        "text_config": text("gemma3", final_logit_softcapping=None),
        "torch_dtype": "bfloat16",
        "vision_config": {"model_type": "siglip_vision_model", **VISION},
    },
    "mistral_3": {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "image_token_index": 99,
        "model_type": "mistral3",
        "multimodal_projector_bias": False,
        "projector_hidden_act": "gelu",
        "spatial_merge_size": 2,
        "text_config": text("mistral"),
        # Released files leave it out: a head that is stored is not tied all the same.
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": {"model_type": "pixtral", "head_dim": 8, **VISION},
        "vision_feature_layer": -1,
    },
    "ministral_3_multimodal": {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "image_token_index": 99,
        "model_type": "mistral3",
        "spatial_merge_size": 2,
        "text_config": text("ministral3"),
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": {"model_type": "pixtral", "head_dim": 8, **VISION},
    },
}
