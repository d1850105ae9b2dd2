"""Options of the families that are variations of Llama or GPT-2: each one counts, or is refused.

Changes are made to the golden configurations; nothing here needs transformers.
"""

from typing import Any

import pytest

from icl_jax.interop.options import Options
from icl_jax.interop.registry import build_model, families
from tests.interop.other_options import built, check_another_model, check_table, variant
from tests.interop.test_family_options import golden_config

FAMILIES = (
    "bloom",
    "cohere",
    "cohere2",
    "gemma",
    "gpt_neo",
    "gpt_oss",
    "gptj",
    "granite",
    "mamba2",
    "ministral",
    "ministral3",
    "olmo",
    "olmo3",
    "opt",
    "phi3",
    "smollm3",
    "stablelm",
    "starcoder2",
)

SLIDING, FULL = "sliding_attention", "full_attention"

#: Family, option, and a value that must change what the same weights compute.
CHANGES = (
    ("bloom", "layer_norm_epsilon", 0.1),
    ("cohere", "logit_scale", 0.5),
    ("cohere", "layer_norm_eps", 0.1),
    ("cohere", "rope_parameters.rope_theta", 500.0),
    ("cohere2", "layer_types", [FULL, SLIDING, SLIDING, FULL]),
    ("cohere2", "sliding_window", 4),
    ("gemma", "hidden_act", "silu"),
    ("gemma", "rms_norm_eps", 0.1),
    ("gpt_neo", "window_size", 6),
    ("gpt_neo", "activation_function", "relu"),
    ("gpt_oss", "swiglu_limit", 7.0),
    ("gpt_oss", "num_experts_per_tok", 1),
    ("gpt_oss", "sliding_window", 6),
    ("gpt_oss", "layer_types", [FULL, SLIDING, FULL]),
    ("gpt_oss", "rope_parameters.truncate", True),
    ("gpt_oss", "rope_parameters.factor", 8.0),
    ("gptj", "rotary_dim", 8),
    ("gptj", "activation_function", "relu"),
    ("granite", "embedding_multiplier", 2.0),
    ("granite", "attention_multiplier", 0.25),
    ("granite", "residual_multiplier", 1.0),
    ("granite", "logits_scaling", 1.0),
    ("mamba2", "layer_norm_epsilon", 0.1),
    ("mamba2", "time_step_limit", [0.2, 0.4]),
    ("ministral", "layer_types", [FULL, SLIDING, SLIDING]),
    ("ministral3", "rope_parameters.llama_4_scaling_beta", 0.1),
    ("ministral3", "rope_parameters.factor", 4.0),
    ("olmo", "clip_qkv", None),
    ("olmo3", "layer_types", [FULL, SLIDING, SLIDING, SLIDING]),
    ("olmo3", "rope_parameters.full_attention.factor", 2.0),
    ("olmo3", "rope_parameters.sliding_attention.rope_theta", 500.0),
    ("opt", "activation_function", "gelu"),
    ("phi3", "rope_parameters.long_factor", [1.0, 2.0, 3.0]),
    ("phi3", "rope_parameters.short_factor", [1.0, 2.0, 3.0]),
    ("phi3", "original_max_position_embeddings", 64),
    ("phi3", "max_position_embeddings", 64),
    ("phi3", "sliding_window", 7),
    ("qwen3_next", "norm_topk_prob", False),
    ("qwen3_next", "rms_norm_eps", 0.1),
    ("qwen3_next", "rope_parameters.partial_rotary_factor", 0.5),
    ("smollm3", "no_rope_layers", [1, 1, 1]),
    ("stablelm", "rope_parameters.partial_rotary_factor", 0.5),
    ("stablelm", "layer_norm_eps", 0.1),
    ("starcoder2", "sliding_window", None),
)

LONGROPE = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3], "long_factor": [2.0, 4.0, 6]}
LENGTH = {"original_max_position_embeddings": 16}
KINDS = [FULL, SLIDING, FULL, SLIDING]
INFINITE = float("inf")

#: Family, and what is set in its tiny configuration (... leaves an option out): layouts and options
#: that the tiny one does not have. The live comparison runs them beside transformers.
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bloom", {"n_head": 8, "tie_word_embeddings": False}),
    ("bloom", {"hidden_size": ..., "n_embed": 33, "n_head": 11, "layer_norm_epsilon": ...}),
    ("cohere", {"use_qk_norm": False, "attention_bias": True, "tie_word_embeddings": False}),
    ("cohere", {"logit_scale": ..., "num_key_value_heads": ..., "rope_theta": ...}),
    ("cohere2", {"layer_types": KINDS, "attention_bias": True, "tie_word_embeddings": False}),
    ("cohere2", {"layer_types": [FULL] * 4, "sliding_window_pattern": ...}),
    ("gemma", {"hidden_act": "gelu", "attention_bias": True, "tie_word_embeddings": False}),
    ("gemma", {"rope_theta": ..., "num_key_value_heads": 4, "hidden_act": ...}),
    ("gpt_neo", {"attention_types": [[["local", "global", "local"], 1]], "window_size": 3}),
    ("gpt_neo", {"attention_types": [[["global"], 3]], "intermediate_size": None}),
    ("gpt_neo", {"tie_word_embeddings": False, "activation_function": "gelu"}),
    ("gpt_oss", {"rope_scaling": ..., "rope_theta": ..., "sliding_window": 3}),
    ("gpt_oss", {"attention_bias": False, "layer_types": [FULL] * 3, "tie_word_embeddings": True}),
    ("gpt_oss", {"swiglu_limit": ..., "rms_norm_eps": ..., "experts_per_token": 2}),
    ("gptj", {"n_inner": None, "tie_word_embeddings": True, "activation_function": "gelu"}),
    ("granite", {"residual_multiplier": 1.0, "attention_bias": True, "mlp_bias": True}),
    ("granite", {"tie_word_embeddings": False, "rope_scaling": {"type": "linear", "factor": 2.5}}),
    ("granite", {"attention_multiplier": ..., "embedding_multiplier": ..., "logits_scaling": ...}),
    ("mamba2", {"use_bias": True, "use_conv_bias": False, "tie_word_embeddings": True}),
    ("mamba2", {"n_groups": 1, "conv_kernel": ..., "time_step_limit": [0.2, 0.4]}),
    ("mamba2", {"n_groups": 6, "time_step_limit": [0.3, INFINITE], "residual_in_fp32": False}),
    ("mamba2", {"expand": 3, "num_heads": 9, "n_groups": 3, "chunk_size": 5, "head_dim": 8}),
    ("ministral", {"layer_types": ..., "tie_word_embeddings": True}),
    ("ministral3", {"sliding_window": 6, "tie_word_embeddings": True}),
    ("olmo", {"clip_qkv": ..., "attention_bias": True, "tie_word_embeddings": True}),
    ("olmo3", {"rope_scaling": None, "rope_theta": ..., "attention_bias": True}),
    ("olmo3", {"layer_types": KINDS, "tie_word_embeddings": True}),
    ("olmo3", {"layer_types": [FULL] * 4}),
    ("opt", {"do_layer_norm_before": False, "tie_word_embeddings": False}),
    ("opt", {"enable_bias": False, "layer_norm_elementwise_affine": False}),
    ("opt", {"_remove_final_layer_norm": True, "activation_function": "gelu"}),
    ("phi3", {"rope_scaling": None, "partial_rotary_factor": ..., "sliding_window": None}),
    ("phi3", {"num_key_value_heads": ..., "tie_word_embeddings": True}),
    ("phi3", {"rope_scaling": {**LONGROPE, "attention_factor": 1.3}}),
    ("phi3", {"rope_scaling": {**LONGROPE, "factor": 3.0}}),
    ("phi3", {"rope_scaling": {**LONGROPE, **LENGTH, "rope_type": "su"}}),
    ("qwen3_next", {"full_attention_interval": 2, "mlp_only_layers": [], "attention_bias": True}),
    ("qwen3_next", {"linear_num_key_heads": 4, "linear_conv_kernel_dim": 4, "rope_theta": ...}),
    ("qwen3_next", {"layer_types": ["full_attention", "linear_attention", "full_attention"]}),
    ("qwen3_next", {"partial_rotary_factor": ..., "norm_topk_prob": False}),
    ("smollm3", {"no_rope_layers": ..., "no_rope_layer_interval": 2, "attention_bias": True}),
    ("smollm3", {"use_sliding_window": True, "sliding_window": 5, "mlp_bias": True}),
    (
        "smollm3",
        {
            "use_sliding_window": True,
            "sliding_window": 5,
            "layer_types": [SLIDING, SLIDING, FULL],
            "tie_word_embeddings": False,
            "rope_theta": ...,
        },
    ),
    ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": False}),
    ("stablelm", {"qk_layernorm": True, "partial_rotary_factor": ..., "tie_word_embeddings": True}),
    ("starcoder2", {"use_bias": False, "sliding_window": None, "tie_word_embeddings": False}),
)

#: Family, what is set in its configuration, and what the message must say.
REFUSED = (
    ("bloom", {"n_head": 5}, "num_attention_heads = 5 is not supported.*hidden_size = 24"),
    (
        "bloom",
        {"apply_residual_connection_post_layernorm": True},
        "apply_residual_connection_post_layernorm = true",
    ),
    ("cohere2", {"layer_types": [FULL]}, "layer_types.*each of the 4 layers"),
    ("cohere2", {"use_parallel_block": False}, "use_parallel_block = false"),
    ("gemma", {"hidden_activation": "gelu"}, 'hidden_activation = "gelu"'),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true"),
    ("gpt_neo", {"num_heads": 5}, "num_heads = 5 is not supported.*a divisor of hidden_size = 32"),
    ("gpt_neo", {"attention_types": [[["global"], 10**9]]}, "attention_types = .*for 3 layers"),
    ("gpt_neo", {"attention_types": [[["dense"], 3]]}, "attention_types = .* global or local"),
    ("gpt_neo", {"attention_types": "global"}, "attention_types must be a list"),
    ("gpt_neo", {"attention_layers": ["local"] * 3}, "attention_layers.*what attention_types says"),
    ("gpt_oss", {"swiglu_alpha": 1.0}, "swiglu_alpha = 1.0"),
    ("gpt_oss", {"hidden_act": "gelu"}, 'hidden_act = "gelu"'),
    ("gpt_oss", {"experts_per_token": 3}, "experts_per_token = 3 is not supported; supported: 2"),
    ("gpt_oss", {"layer_types": [FULL]}, "layer_types.*each of the 3 layers"),
    ("gptj", {"n_head": 5}, "n_head = 5 is not supported; supported: a divisor of n_embd = 32"),
    ("gptj", {"rotary_dim": None}, "rotary_dim = null"),
    ("gptj", {"rotary": False}, "rotary = false"),
    ("granite", {"mlp_bias": True}, "mlp_bias = true"),
    ("granite", {"attention_bias": True}, "attention_bias = true"),
    ("granite", {"logits_scaling": 0}, "logits_scaling = 0"),
    ("mamba2", {"hidden_act": "gelu"}, 'hidden_act = "gelu" is not supported.*silu'),
    ("mamba2", {"num_heads": 5}, "head_dim = 8 is not supported.*with 24 . 2 / 5"),
    ("mamba2", {"expand": 3}, "head_dim = 8 is not supported.*with 24 . 3 / 6"),
    ("mamba2", {"intermediate_size": 47}, "intermediate_size = 47 is not supported.*48"),
    ("mamba2", {"n_groups": 4}, "n_groups = 4 is not supported.*a divisor of num_heads = 6"),
    ("mamba2", {"rms_norm": False}, "rms_norm = false is not supported; supported: true"),
    ("mamba2", {"time_step_limit": [0.1]}, "time_step_limit = .*two numbers 0 <= low <= high"),
    ("mamba2", {"time_step_limit": [0.2, 0.1]}, "time_step_limit = .*two numbers"),
    ("mamba2", {"time_step_limit": [0.0, "far"]}, "time_step_limit = .*__float__.*Infinity"),
    ("mamba2", {"time_step_limit": [0.0, float("nan")]}, "time_step_limit = .*two numbers"),
    ("ministral", {"layer_types": [FULL, SLIDING]}, "layer_types.*num_hidden_layers = 3 times"),
    ("ministral", {"sliding_window": None}, "sliding_window = null is not.*it is a Mistral"),
    ("ministral3", {"layer_types": [SLIDING] * 3}, "layer_types.*3 times full_attention"),
    ("olmo3", {"rope_theta": 10000.0}, "rope_theta = 10000.0"),
    ("olmo3", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling = .* null beside"),
    ("olmo3", {"rope_parameters": {"rope_type": "default"}}, "an object with sliding_attention"),
    ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim = 16 is not supported.*32"),
    ("phi3", {"rope_parameters": {"rope_type": "linear"}}, 'rope_type = "linear".*longrope'),
    ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "short_factor is missing"),
    (
        "phi3",
        {"rope_parameters": {**LONGROPE, "long_factor": [1.0, 0.0, 2.0]}},
        "long_factor = .* a list of positive numbers",
    ),
    ("qwen3_next", {"layer_types": [SLIDING] * 3}, "linear_attention or full_attention for each"),
    ("qwen3_next", {"hidden_act": "gelu"}, 'hidden_act = "gelu"'),
    (
        "qwen3_next",
        {"linear_num_key_heads": 3},
        "linear_num_key_heads = 3 is.* divisor of .* = 4",
    ),
    ("smollm3", {"no_rope_layers": [1, 0]}, "no_rope_layers.*num_hidden_layers = 3 times 0 or 1"),
    ("smollm3", {"layer_types": [SLIDING] * 3}, "layer_types.*3 times full_attention"),
    ("starcoder2", {"mlp_type": "gated"}, 'mlp_type = "gated"'),
)


@pytest.mark.wide(18)
@pytest.mark.parametrize(("family", "option", "value"), CHANGES)
def test_another_option_is_another_model(family, option, value):
    check_another_model(golden_config(family), family, option, value)


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(family, changes, message):
    with pytest.raises(ValueError, match=message):
        build_model(Options({**golden_config(family), **changes}))


@pytest.mark.parametrize("family", FAMILIES)
def test_old_and_new_spellings_are_the_same_model(family):
    # The tiny configuration is spelt as in files of 2024, the golden one as transformers 5 does.
    assert built(family, families()[family].tiny()) == built(family, golden_config(family))


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_tables_cover_the_parameters_of_every_variant(family, changes):
    check_table(family, variant(family, changes))


def test_smollm3_leaves_out_positions_in_every_fourth_layer_where_nothing_is_said():
    config = variant("smollm3", {"no_rope_layers": ..., "num_hidden_layers": 9})
    model = families()["smollm3"].build(Options(config))
    turning = [block.contextual_layer.rotary is not None for block in model.blocks]
    assert turning == [True, True, True, False] * 2 + [True]


@pytest.mark.parametrize(
    ("heads", "want"),
    (
        (1, [2**-8]),
        (4, [2**-2, 2**-4, 2**-6, 2**-8]),
        # Two more than four: the first and the third of eight.
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
        (16, [2 ** -(head / 2) for head in range(1, 17)]),
    ),
)
def test_blooms_slopes_are_a_geometric_sequence(heads, want):
    config = {**families()["bloom"].tiny(), "n_head": heads, "hidden_size": 8 * heads}
    block = families()["bloom"].build(Options(config)).blocks[0]
    assert block.contextual_layer.slopes == pytest.approx(want, rel=1e-15)


def test_phi3_without_an_original_length_has_that_of_the_first_models():
    config = variant("phi3", {"original_max_position_embeddings": ...})
    scaling = families()["phi3"].build(Options(config)).blocks[0].contextual_layer.rotary.scaling
    assert (scaling.original_length, scaling.factor) == (4096, 128 / 4096)


def test_olmo3_never_scales_the_positions_of_windows():
    model = families()["olmo3"].build(Options(families()["olmo3"].tiny()))
    rotaries = [block.contextual_layer.rotary for block in model.blocks]
    assert [one.scaling is None for one in rotaries] == [True] * 3 + [False]
