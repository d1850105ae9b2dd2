"""Checkpoints as they are found: wrapped, tied, quantised, of other tools, or out of proportion."""

import json
import re
import shutil
import time
import tracemalloc

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from icl_jax.interop.huggingface import load
from icl_jax.interop.options import Options
from icl_jax.interop.registry import build_model, families
from icl_jax.interop.safetensors import MappedTensors
from tests.interop.test_family_options import GOLDEN, golden_config, write_folder

FAMILIES = sorted(family for family in families() if (GOLDEN / family).is_dir())


def tensors_of(family):
    return {name: np.array(value) for name, value in MappedTensors(GOLDEN / family).items()}


def assert_loads_as(folder, family):
    found, expected = load(folder), load(GOLDEN / family)
    assert found.model == expected.model
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)


@pytest.mark.parametrize("wrapper", ("_orig_mod.", "module.", "module._orig_mod."))
@pytest.mark.parametrize("family", ("llama", "gpt2", "bert"))
def test_the_prefix_of_a_wrapped_model_is_taken_off(family, wrapper, tmp_path):
    tensors = {wrapper + name: value for name, value in tensors_of(family).items()}
    write_folder(tmp_path, tensors, golden_config(family))
    assert_loads_as(tmp_path, family)


def test_a_part_that_was_wrapped_is_taken_out_of_its_wrapping(tmp_path):
    tensors = {
        name.replace("layers.0.", "layers.0._orig_mod."): value
        for name, value in tensors_of("llama").items()
    }
    write_folder(tmp_path, tensors, golden_config("llama"))
    assert_loads_as(tmp_path, "llama")
    tensors |= tensors_of("llama")
    write_folder(tmp_path, tensors, golden_config("llama"))
    with pytest.raises(ValueError, match="stored twice: model.layers.0"):
        load(tmp_path)


@pytest.mark.parametrize("family", ("gemma2", "gpt2", "falcon"))
def test_tied_weights_may_be_stored_under_the_name_of_the_head_alone(family, tmp_path):
    tensors = tensors_of(family)
    name = {"gemma2": "model.embed_tokens", "gpt2": "transformer.wte"}.get(
        family, "transformer.word_embeddings"
    )
    tensors["lm_head.weight"] = tensors.pop(f"{name}.weight")
    write_folder(tmp_path, tensors, golden_config(family))
    assert_loads_as(tmp_path, family)
    write_folder(tmp_path, tensors, {**golden_config(family), "tie_word_embeddings": False})
    with pytest.raises(ValueError, match=f"1 missing: {name}.weight"):
        load(tmp_path)


def test_an_adapter_is_no_checkpoint_also_beside_one(tmp_path):
    adapter = json.dumps({"peft_type": "LORA", "base_model_name_or_path": "somebody/base"})
    (tmp_path / "adapter_config.json").write_text(adapter)
    message = "is an adapter of PEFT for somebody/base, not a checkpoint. Merge it once.*_and_unlo"
    with pytest.raises(ValueError, match=message):
        load(tmp_path)
    write_folder(tmp_path, tensors_of("llama"), golden_config("llama"))
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_weights_in_eight_bits_need_a_dtype_to_run_in_and_no_scales(tmp_path):
    tensors = {n: v.astype(ml_dtypes.float8_e4m3fn) for n, v in tensors_of("llama").items()}
    write_folder(tmp_path, tensors, golden_config("llama"))
    with pytest.raises(ValueError, match="weights are stored as float8_e4m3fn, in which nothing.*"):
        load(tmp_path)
    got = load(tmp_path, dtype=jnp.float32).params["embedding"]
    want = tensors["model.embed_tokens.weight"].astype(np.float32)
    np.testing.assert_array_equal(got, want)
    name = "model.layers.0.mlp.up_proj.weight_scale_inv"
    write_folder(tmp_path, {**tensors, name: np.ones((1, 1), np.float32)}, golden_config("llama"))
    with pytest.raises(ValueError, match=f"1 extra: {name}. Some are scales.*dequantise them once"):
        load(tmp_path, dtype=jnp.float32)


def test_weights_in_mxfp4_are_to_be_dequantised_first(tmp_path):
    tensors, config = tensors_of("gpt_oss"), golden_config("gpt_oss")
    quantized = {**config, "quantization_config": {"quant_method": "mxfp4"}}
    write_folder(tmp_path, tensors, quantized)
    with pytest.raises(ValueError, match=r"mxfp4.*unquantized.*Mxfp4Config\(dequantize=True\)"):
        load(tmp_path)
    # The experts of the first layer, as they are stored: no matter what the configuration says.
    name = "model.layers.0.mlp.experts.down_proj"
    experts, hidden, width = tensors.pop(name).shape
    tensors[f"{name}_blocks"] = np.zeros((experts, width, max(hidden // 32, 1), 16), np.uint8)
    tensors[f"{name}_scales"] = np.zeros((experts, width, max(hidden // 32, 1)), np.uint8)
    write_folder(tmp_path, tensors, config)
    message = f"1 missing: {name}; 2 extra: {name}_blocks, {name}_scales. Some are scales.*Mxfp4Con"
    with pytest.raises(ValueError, match=message):
        load(tmp_path)


def test_falcon_under_its_first_names_is_the_same_model():
    def build(config):
        return build_model(Options(config))[2]

    names = {
        "num_attention_heads": "n_head",
        "num_hidden_layers": "n_layer",
        "num_kv_heads": "n_head_kv",
        "new_decoder_architecture": None,
    }
    tiny = families()["falcon"].tiny()
    older = {names.get(key, key): value for key, value in tiny.items() if names.get(key, key)}
    older |= {"model_type": "RefinedWeb", "architectures": ["RWForCausalLM"]}
    assert build(older) == build(tiny)
    with pytest.raises(ValueError, match="n_head = 4.*num_attention_heads = 2|num_attention_heads"):
        build({**older, "num_attention_heads": 2})
    first = {**older, "model_type": "RefinedWebModel", "n_head_kv": None}
    newer = {**tiny, "new_decoder_architecture": False, "num_kv_heads": None}
    assert build(first) == build(newer)


ABSURD = (10**9, 10**12, 10**400, 0, -1, 1e300, 2**31 - 1)
# What says how large a model is, in any family; a window has no weights, and may be wider than all.
SIZES = re.compile(
    r"num_.*(layers|heads|experts|tok)|n_(head|layer|embd|positions|inner)|(?!window).*_size"
)


def sizes(config):
    return [key for key, value in config.items() if SIZES.fullmatch(key) and value is not None]


@pytest.mark.wide(5)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_configuration_out_of_all_proportion_is_refused_in_no_time(family, tmp_path):
    config = golden_config(family)
    options = Options(config)
    build_model(options)
    found = [key for key in sizes(config) if (key,) in options.record.read]
    assert len(found) >= 4
    shutil.copyfile(GOLDEN / family / "model.safetensors", tmp_path / "model.safetensors")
    start = time.monotonic()
    tracemalloc.start()
    for key in found:
        for value in ABSURD:
            (tmp_path / "config.json").write_text(json.dumps({**config, key: value}))
            with pytest.raises(ValueError, match=f"config.json: .*{key}|config.json: {key}"):
                load(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50e6
    assert time.monotonic() - start < len(found) * len(ABSURD)


def test_what_each_number_allows_is_still_compared_with_all_the_numbers_there_are(tmp_path):
    # Every number is there as an axis of some tensor, but not all in one.
    config = {**golden_config("qwen3_moe"), "num_experts": 96, "moe_intermediate_size": 96}
    del config["num_local_experts"]
    config["hidden_size"] = 96
    write_folder(tmp_path, tensors_of("qwen3_moe"), config)
    with pytest.raises(ValueError, match=r"describes \d+ parameters.*but the files have \d+ num"):
        load(tmp_path)


IMPOSSIBLE = (
    ("mistral", {"sliding_window": 0}, "window must be an integer of at least 1, got 0"),
    ("llama", {"rms_norm_eps": -1.0}, "rms_norm_eps must be at least 0.0, got -1.0"),
    ("llama", {"rms_norm_eps": 1e300}, "rms_norm_eps must be a finite number"),
    ("gpt2", {"layer_norm_epsilon": -1e-5}, "layer_norm_epsilon must be at least 0.0"),
    (
        "llama",
        {"rope_parameters": {"rope_theta": -1.0}},
        "rope_theta must be at least 1.0, got -1.0",
    ),
    (
        "llama",
        {"rope_parameters": {"rope_theta": 1e-30}},
        "rope_theta must be at least 1.0, got 1e-30",
    ),
    (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 0}},
        "factor must be above 0, got 0.0",
    ),
    ("mixtral", {"num_experts_per_tok": 50}, "experts_per_token=50 is more than num_experts=4"),
    ("llama", {"num_key_value_heads": 3}, "num_kv_heads=3 does not divide num_heads=4"),
    ("gemma3", {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be above 0, got 0"),
    ("qwen3_moe", {"decoder_sparse_step": 0}, "decoder_sparse_step must be at least 1, got 0"),
    ("qwen3_moe", {"mlp_only_layers": ["a"]}, r'mlp_only_layers = \["a"\] is not supported'),
    (
        "gpt_neox",
        {"rope_parameters": {"partial_rotary_factor": 7.0}},
        "turn an even number of at most 8",
    ),
    (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "factor": 2.0,
                "low_freq_factor": 2.0,
                "high_freq_factor": 2.0,
            }
        },
        "high_freq_factor = 2.0 is not supported; supported: more than low_freq_factor = 2.0",
    ),
)


@pytest.mark.parametrize(("family", "changes", "message"), IMPOSSIBLE)
def test_numbers_that_no_model_can_have_are_refused_with_the_file(
    family, changes, message, tmp_path
):
    write_folder(tmp_path, tensors_of(family), {**golden_config(family), **changes})
    with pytest.raises(ValueError, match=f"config.json: .*{message}"):
        load(tmp_path)
