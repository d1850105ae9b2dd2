"""Options of the plain decoders: each one counts, old spellings mean the same, the rest is refused.

Changes are made to the golden configurations; nothing here needs transformers.
"""

from typing import Any

import pytest

from icl_jax.interop.options import Options
from icl_jax.interop.registry import families
from tests.interop.other_options import built, check_another_model, check_table, variant
from tests.interop.test_family_options import golden_config

FAMILIES = ("falcon", "gpt2", "gpt_neox", "llama", "mistral", "phi", "qwen2", "qwen3")

#: Family, option, and a value that must change what the same weights compute.
CHANGES = (
    ("falcon", "rope_parameters.rope_theta", 500.0),
    ("falcon", "activation", "relu"),
    ("gpt2", "activation_function", "relu"),
    ("gpt2", "layer_norm_epsilon", 0.1),
    ("gpt_neox", "use_parallel_residual", False),
    ("gpt_neox", "rope_parameters.partial_rotary_factor", 0.5),
    ("llama", "rope_parameters.factor", 2.0),
    ("llama", "rope_parameters.rope_type", "linear"),
    ("mistral", "sliding_window", None),
    ("phi", "rope_parameters.partial_rotary_factor", 1.0),
    ("qwen2", "rope_parameters.factor", 8.0),
    ("qwen2", "layer_types", ["sliding_attention"] + ["full_attention"] * 2),
    ("qwen3", "rms_norm_eps", 0.1),
    ("qwen3", "sliding_window", 4),
)

YARN = {"rope_type": "yarn", "factor": 3.0}
BESIDE = {"rope_type": "linear", "factor": 2.5, "rope_theta": 900.0}
LENGTH = {"original_max_position_embeddings": 16}

#: Family, and what is set in its tiny configuration (... leaves an option out): layouts and options
#: that the tiny one does not have. The live comparison runs them beside transformers.
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("falcon", {"new_decoder_architecture": False, "bias": True, "num_kv_heads": ...}),
    ("falcon", {"new_decoder_architecture": False, "multi_query": False, "num_kv_heads": ...}),
    ("falcon", {"new_decoder_architecture": False, "parallel_attn": False, "num_kv_heads": ...}),
    ("falcon", {"num_ln_in_parallel_attn": 1, "bias": True, "tie_word_embeddings": False}),
    ("gpt2", {"n_inner": ..., "tie_word_embeddings": False, "activation_function": "gelu"}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False, "rotary_pct": 1.0}),
    ("gpt_neox", {"rotary_emb_base": 300, "tie_word_embeddings": True}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {"num_key_value_heads": 1, "head_dim": 10, "hidden_act": "gelu"}),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.5}}),
    ("llama", {"rope_scaling": YARN}),
    ("llama", {"rope_scaling": {**YARN, **LENGTH, "truncate": False, "beta_fast": 8}}),
    ("llama", {"rope_scaling": {**YARN, **LENGTH, "mscale": 0.7, "mscale_all_dim": 1.3}}),
    ("llama", {"rope_scaling": {**YARN, **LENGTH, "attention_factor": 1.4}}),
    ("llama", {"rope_scaling": {**YARN, **LENGTH, "mscale": 0.7, "mscale_all_dim": 0}}),
    ("llama", {"rope_scaling": {**YARN, **LENGTH, "beta_fast": 0, "beta_slow": 0}}),
    ("llama", {"rope_scaling": {**YARN, **LENGTH, "factor": None}}),
    ("llama", {"rope_scaling": {**YARN, **LENGTH}, "original_max_position_embeddings": 40}),
    ("llama", {"rope_scaling": {**YARN, "rope_theta": 500.0}, "rope_parameters": BESIDE}),
    ("mistral", {"sliding_window": None, "head_dim": None, "tie_word_embeddings": True}),
    ("phi", {"num_key_value_heads": 2, "partial_rotary_factor": ..., "hidden_act": "relu"}),
    ("phi", {"partial_rotary_factor": 0.25, "tie_word_embeddings": True}),
    ("qwen2", {"use_sliding_window": False, "rope_scaling": None, "tie_word_embeddings": False}),
    ("qwen3", {"attention_bias": True, "tie_word_embeddings": True, "max_window_layers": 0}),
)

ROPE = "rope_parameters"

#: Family, what is set in its configuration, and what the message must say.
REFUSED = (
    ("falcon", {"alibi": True}, "alibi = true is not supported; supported: false"),
    ("falcon", {"activation": "prelu"}, 'activation = "prelu" is not supported'),
    ("gpt2", {"scale_attn_weights": False}, "scale_attn_weights = false"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx = true"),
    ("gpt2", {"add_cross_attention": True}, "add_cross_attention = true"),
    ("gpt2", {"n_head": 5}, "n_head = 5 is not supported; supported: a divisor of n_embd = 32"),
    ("gpt_neox", {"hidden_act": "softplus"}, 'hidden_act = "softplus".*gelu'),
    ("llama", {ROPE: {"rope_type": "dynamic", "factor": 2.0}}, 'rope_type = "dynamic".*"yarn"'),
    ("llama", {ROPE: {"rope_type": "longrope", "factor": 2.0}}, "short_factor is missing"),
    ("llama", {ROPE: {"rope_type": "llama3", "factor": 2.0}}, "low_freq_factor is missing"),
    ("llama", {ROPE: {"rope_type": "linear"}}, "factor is missing"),
    ("mistral", {"head_dim": None, "num_attention_heads": 5}, "num_attention_heads = 5"),
    (
        "mistral",
        {"sliding_window": "all"},
        "sliding_window must be a whole number of 32",
    ),
    ("phi", {"qk_layernorm": True}, "qk_layernorm = true"),
    ("qwen2", {"layer_types": ["full_attention"]}, "layer_types.*num_hidden_layers = 3 times"),
    ("qwen3", {"layer_types": ["linear_attention"] * 3}, "sliding_attention or full_attention"),
)


@pytest.mark.wide(3)
@pytest.mark.parametrize(("family", "option", "value"), CHANGES)
def test_another_option_is_another_model(family, option, value):
    check_another_model(golden_config(family), family, option, value)


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(family, changes, message):
    with pytest.raises(ValueError, match=message):
        families()[family].build(Options({**golden_config(family), **changes}))


@pytest.mark.parametrize("family", FAMILIES)
def test_old_and_new_spellings_are_the_same_model(family):
    # The tiny configuration is spelt as in files of 2024, the golden one as transformers 5 does.
    assert built(family, families()[family].tiny()) == built(family, golden_config(family))


@pytest.mark.parametrize(("family", "changes"), VARIANTS)
def test_tables_cover_the_parameters_of_every_variant(family, changes):
    check_table(family, variant(family, changes))


def windows(**changes):
    """The window of each layer of Mistral or Qwen."""
    family = changes.pop("family")
    model = families()[family].build(Options(variant(family, changes)))
    return [block.contextual_layer.window for block in model.blocks]


def test_a_window_that_is_null_is_none_and_one_that_is_not_there_is_the_first_models():
    assert windows(family="mistral") == [6] * 3
    assert windows(family="mistral", sliding_window=None) == [None] * 3
    assert windows(family="mistral", sliding_window=...) == [4096] * 3


def test_qwen_has_windows_where_its_options_say():
    kinds = ["sliding_attention", "full_attention", "full_attention"]
    assert windows(family="qwen2") == [None, 5, 5]
    assert windows(family="qwen2", use_sliding_window=False) == [None] * 3
    assert windows(family="qwen2", use_sliding_window=...) == [None] * 3
    assert windows(family="qwen2", sliding_window=...) == [None, 4096, 4096]
    assert windows(family="qwen2", max_window_layers=...) == [None] * 3
    assert windows(family="qwen2", layer_types=kinds) == [5, None, None]


def test_falcons_differ_in_heads_of_keys_and_in_norms():
    def of(**changes):
        block = families()["falcon"].build(Options(variant("falcon", changes))).blocks[0]
        return block.contextual_layer.num_kv_heads, block.wiring, block.separate_norms

    assert of() == (2, "parallel", True)
    assert of(num_kv_heads=...) == (4, "parallel", True)
    assert of(num_ln_in_parallel_attn=1) == (2, "parallel", False)
    assert of(new_decoder_architecture=False) == (1, "parallel", False)
    assert of(new_decoder_architecture=False, multi_query=False) == (4, "parallel", False)
    assert of(new_decoder_architecture=False, parallel_attn=False) == (1, "pre_norm", False)
