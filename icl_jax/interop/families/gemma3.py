"""Gemma 3 (text): layers that see a window turn by a base of their own, and most of them do.

Otherwise Gemma 2, with query-key norms in place of the soft caps. Source: Gemma Team 2025 (arXiv
2503.19786).
"""

from collections.abc import Mapping
from typing import Any

from icl_jax.blocks.language_model import LanguageModel
from icl_jax.interop.families import gemma2
from icl_jax.interop.families.common import rotary
from icl_jax.interop.options import Options
from icl_jax.interop.table import Tensor

ARCHITECTURES = ("Gemma3ForCausalLM", "gemma3_text")

HARMLESS = gemma2.HARMLESS


def build(config: Options) -> LanguageModel:
    """The model; every sixth layer sees everything, where the configuration says nothing else."""
    # There is such an option, but transformers does nothing with it.
    config.require("attn_logit_softcapping", (None,), default=None)
    _check_rotary(config)
    # The positions of windows are never scaled, also where their base is left out.
    windows = config.having(rope_local_base_freq=10000.0)
    turning = {
        gemma2.SLIDING: rotary(windows.rope(gemma2.SLIDING)),
        gemma2.FULL: rotary(config.rope(gemma2.FULL), base=1000000.0),
    }
    every = config.integer("sliding_window_pattern", "_sliding_window_pattern", default=6, least=1)
    blocks = tuple(
        gemma2.sandwich(config, kind, turning[kind], qk_norm="head")
        for kind in gemma2.layer_types(config, every=every)
    )
    soft_cap = config.optional_number("final_logit_softcapping")
    return gemma2.scaled_decoder(config, blocks, soft_cap=soft_cap)


def _check_rotary(config: Options) -> None:
    """Refuses rotary options that transformers leaves alone, or fills in, by rules of its own.

    Raises:
      ValueError: ``rope_parameters`` that are not an object with a base per type of layer.
    """
    parameters = config.mapping("rope_parameters", default={}).config
    types = (gemma2.SLIDING, gemma2.FULL)
    own = [parameters.get(one) for one in types]
    if (
        parameters
        and not config.config.get("rope_scaling")
        and not all(isinstance(one, Mapping) and one.get("rope_theta") is not None for one in own)
    ):
        raise config.unsupported(
            "rope_parameters", dict(parameters), f"an object with rope_theta for each of {types}"
        )


def table(model: LanguageModel, config: Options) -> tuple[Tensor, ...]:
    """The tensors of Gemma 2, and the gains of query-key norms."""
    return gemma2.table(model, config)


def tiny() -> dict[str, Any]:
    """Two layers that see five tokens, one that sees all, its positions scaled; then one more."""
    return {
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 1,
        "head_dim": 12,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_local_base_freq": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "attention_bias": False,
        "query_pre_attn_scalar": 20,
        "sliding_window": 5,
        "sliding_window_pattern": 3,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": 3.0,
        "tie_word_embeddings": True,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "pad_token_id": 0,
    }
