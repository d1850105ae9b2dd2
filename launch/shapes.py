"""Models by their shape: what a ``config.json`` says, without weights."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from experiments.tools.flags import UsageError
from icl_jax.interop.assemble import flatten, unflatten
from icl_jax.interop.huggingface import param_dtype
from icl_jax.interop.options import Options
from icl_jax.interop.registry import build_model

_GEMMA_3: Mapping[str, Any] = {
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "sliding_window_pattern": 6,
}

#: Published shapes (the checkpoints' own config.json).
MODELS: Mapping[str, Mapping[str, Any]] = {
    "gemma-3-1b": {
        **_GEMMA_3,
        "vocab_size": 262144,
        "hidden_size": 1152,
        "intermediate_size": 6912,
        "num_hidden_layers": 26,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
    },
    "gemma-3-27b": {
        **_GEMMA_3,
        "vocab_size": 262208,
        "hidden_size": 5376,
        "intermediate_size": 21504,
        "num_hidden_layers": 62,
        "num_attention_heads": 32,
        "num_key_value_heads": 16,
        "head_dim": 128,
        "query_pre_attn_scalar": 168,
        "sliding_window": 1024,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "hidden_act": "silu",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "tie_word_embeddings": True,
    },
}


def model_of(name: str) -> Any:
    """The Flax model of a name in ``MODELS``, or of a ``config.json`` or the folder of one.

    Raises:
      UsageError: neither; or a configuration that is not supported.
    """
    if name in MODELS:
        config = dict(MODELS[name])
    else:
        file = Path(name) / "config.json" if Path(name).is_dir() else Path(name)
        if not file.is_file():
            raise UsageError(
                f"--model={name}: must be one of {', '.join(MODELS)}, or a config.json or the "
                "folder of one."
            )
        config = json.loads(file.read_text())
    try:
        return build_model(Options(config, name))[2]
    except ValueError as error:
        raise UsageError(f"--model={name}: {error}") from None


def weights_of(model: Any, dtype: str) -> Any:
    """The shapes of a model's parameters in a dtype; norms' are float32 at least, as loaded."""
    tokens_T = jax.ShapeDtypeStruct((2,), jnp.int32)
    tree = jax.eval_shape(model.init, jax.random.key(0), tokens_T)["params"]
    wanted = jnp.dtype(dtype)
    return unflatten(
        {
            path: jax.ShapeDtypeStruct(leaf.shape, param_dtype(path, wanted))
            for path, leaf in flatten(tree).items()
        }
    )
