"""An adapter in PEFT's format is the exported checkpoint, written as a difference of rank 1."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from icl_jax.interop.huggingface import make_tiny
from icl_jax.interop.peft import CONFIG, WEIGHTS, adapter_policy, save_adapter
from icl_jax.interop.saving import save
from icl_jax.language.weights import prompt_weights

TOKENS = np.random.default_rng(5).integers(3, 96, 24).astype(np.int32)
KEPT = np.array([0, 21, 22, 23])
# Kernels as rows or as columns, gated or not, fused, multiplied, parallel, with a norm behind the
# MLP (stored as it is, or less one).
FAMILIES = ("gemma3", "gpt2", "llama", "falcon", "olmo2", "phi", "phi3", "granite")
EXPERTS = ("gpt_oss", "mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next")


def written(family, tmp_path):
    """Tiny checkpoint, patched checkpoint and adapter: their tensors, and the adapter's file."""
    checkpoint = make_tiny(family, tmp_path / "tiny", jax.random.key(3))
    policy = adapter_policy(checkpoint)
    weights = prompt_weights(checkpoint.model, checkpoint.params, TOKENS, KEPT, output=policy)
    save(tmp_path / "patched", checkpoint.model, weights.params, checkpoint.config)
    save_adapter(tmp_path / "adapter", checkpoint, weights.patches)
    folders = [tmp_path / name / "model.safetensors" for name in ("tiny", "patched")]
    tensors = [load_file(file) for file in (*folders, tmp_path / "adapter" / WEIGHTS)]
    return (*tensors, json.loads((tmp_path / "adapter" / CONFIG).read_text()))


def changed(before, after):
    return {name for name in before if not np.array_equal(before[name], after[name])}


@pytest.mark.wide(9)
@pytest.mark.parametrize("family", FAMILIES)
def test_base_and_adapter_are_the_patched_checkpoint(family, tmp_path):
    before, after, adapter, config = written(family, tmp_path)
    modules = [*config["target_modules"], *(config["modules_to_save"] or [])]
    # It speaks of every weight that changed, and of no other.
    assert {f"{module}.weight" for module in modules} == changed(before, after)
    prefix = "base_model.model."
    for module in config["target_modules"]:
        down_1I = adapter.pop(f"{prefix}{module}.lora_A.weight")
        up_O1 = adapter.pop(f"{prefix}{module}.lora_B.weight")
        assert down_1I.shape[0] == up_O1.shape[1] == config["r"] == 1
        update_OI = config["lora_alpha"] / config["r"] * up_O1 @ down_1I
        if config["fan_in_fan_out"]:
            update_OI = update_OI.T
        want = after[f"{module}.weight"] - before[f"{module}.weight"]
        assert np.linalg.norm(update_OI - want) < 1e-5 * np.linalg.norm(want)
    for module in config["modules_to_save"] or []:
        saved = adapter.pop(f"{prefix}{module}.weight")
        np.testing.assert_allclose(saved, after[f"{module}.weight"], rtol=1e-6, atol=1e-6)
    assert not adapter


def test_only_a_norm_behind_the_mlp_is_saved_whole(tmp_path):
    *_, config = written("gemma3", tmp_path / "gemma3")
    assert len(config["modules_to_save"]) == 4
    assert all("post_feedforward_layernorm" in name for name in config["modules_to_save"])
    *_, config = written("llama", tmp_path / "llama")
    assert config["modules_to_save"] is None


def test_the_task_is_that_of_the_model(tmp_path):
    *_, config = written("llama", tmp_path / "llama")
    assert config["task_type"] == "CAUSAL_LM"
    assert config["base_model_name_or_path"] == str(tmp_path / "llama" / "tiny")


@pytest.mark.wide(6)
@pytest.mark.parametrize("family", EXPERTS)
def test_experts_are_refused_with_the_reason(family, tmp_path):
    checkpoint = make_tiny(family, tmp_path / "tiny", jax.random.key(3))
    with pytest.raises(ValueError, match=r"block \d has experts.*Export a checkpoint"):
        adapter_policy(checkpoint)
    with pytest.raises(ValueError, match="has experts"):
        save_adapter(tmp_path / "adapter", checkpoint, ())
    assert not (tmp_path / "adapter").exists()


def test_a_family_that_peft_does_not_adapt_is_refused_with_the_reason(tmp_path):
    checkpoint = make_tiny("mamba2", tmp_path / "tiny", jax.random.key(3))
    with pytest.raises(ValueError, match="adapter_policy: PEFT puts no LoRA on out_proj.*Export"):
        adapter_policy(checkpoint)
    with pytest.raises(ValueError, match="PEFT puts no LoRA on out_proj"):
        save_adapter(tmp_path / "adapter", checkpoint, ())
    assert not (tmp_path / "adapter").exists()


def test_a_layer_norm_behind_the_mlp_is_refused_with_the_reason(tmp_path):
    checkpoint = make_tiny("olmo2", tmp_path / "tiny", jax.random.key(3))
    blocks = tuple(block.clone(norm="layer") for block in checkpoint.model.blocks)
    other = dataclasses.replace(checkpoint, model=checkpoint.model.clone(blocks=blocks))
    with pytest.raises(ValueError, match="block 0 ends in a layer norm.*Export a checkpoint"):
        adapter_policy(other)


def test_patches_of_another_policy_are_refused_and_leave_nothing(tmp_path):
    checkpoint = make_tiny("gpt2", tmp_path / "tiny", jax.random.key(3))
    weights = prompt_weights(checkpoint.model, checkpoint.params, TOKENS, KEPT, output="bias")
    with pytest.raises(ValueError, match=r"layer 0 changes a bias.*adapter_policy"):
        save_adapter(tmp_path / "adapter", checkpoint, weights.patches)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny"]


def test_a_folder_with_something_in_it_is_refused(tmp_path):
    checkpoint = make_tiny("llama", tmp_path / "tiny", jax.random.key(3))
    with pytest.raises(FileExistsError, match="is not empty"):
        save_adapter(tmp_path / "tiny", checkpoint, ())
