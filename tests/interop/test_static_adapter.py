"""Static patches in files: an adapter of any rank, a checkpoint, and a file of their own."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from icl_jax.interop.banks import load_bank, load_static, save_static
from icl_jax.interop.huggingface import make_tiny
from icl_jax.interop.peft import CONFIG, WEIGHTS, save_static_adapter
from icl_jax.interop.saving import save
from icl_jax.language.compile import compile_context, static_logits, static_weights
from icl_jax.patches.fit import Fit
from icl_jax.patches.static_patch import combine_static

RNG = np.random.default_rng(5)
CONTEXT = RNG.integers(3, 96, 12)
QUERIES = [RNG.integers(3, 96, 4) for _ in range(5)]
# Kernels as rows or as columns, gated or not, fused, multiplied, parallel, behind a norm.
FAMILIES = ("gpt2", "gemma3", "phi3", "llama", "falcon", "granite")


def compiled(family, folder, fit=None):
    checkpoint = make_tiny(family, folder, jax.random.key(3))
    run = (checkpoint.model, checkpoint.params)
    fit = Fit(rank=3) if fit is None else fit
    return checkpoint, compile_context(*run, CONTEXT, QUERIES, bos=2, fit=fit)


@pytest.mark.wide(6)
@pytest.mark.parametrize("family", FAMILIES)
def test_base_and_adapter_are_the_merged_checkpoint(family, tmp_path):
    checkpoint, patches = compiled(family, tmp_path / "tiny")
    save_static_adapter(tmp_path / "adapter", checkpoint, patches)
    merged = static_weights(checkpoint.model, checkpoint.params, patches)
    save(tmp_path / "merged", checkpoint.model, merged, checkpoint.config)
    files = ["tiny/model.safetensors", "merged/model.safetensors", f"adapter/{WEIGHTS}"]
    before, after, adapter = (load_file(tmp_path / file) for file in files)
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["r"] == config["lora_alpha"] == 3 and config["modules_to_save"] is None
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert {f"{module}.weight" for module in config["target_modules"]} == changed and changed
    for module in config["target_modules"]:
        down_RI = adapter.pop(f"base_model.model.{module}.lora_A.weight")
        up_OR = adapter.pop(f"base_model.model.{module}.lora_B.weight")
        update_OI = up_OR @ down_RI
        update_OI = update_OI.T if config["fan_in_fan_out"] else update_OI
        want_OI = after[f"{module}.weight"] - before[f"{module}.weight"]
        assert np.linalg.norm(update_OI - want_OI) < 1e-4 * np.linalg.norm(want_OI)
    assert not adapter


def test_updates_of_several_ranks_are_filled_up(tmp_path):
    checkpoint, patches = compiled("llama", tmp_path / "tiny")
    one = compile_context(
        checkpoint.model, checkpoint.params, CONTEXT, QUERIES, fit=Fit(side="input", rank=1)
    )
    save_static_adapter(tmp_path / "adapter", checkpoint, combine_static(patches, one))
    adapter = load_file(tmp_path / "adapter" / WEIGHTS)
    assert {name: leaf.shape for name, leaf in adapter.items() if "layers.0.mlp" in name}
    for name, leaf in adapter.items():
        assert leaf.shape[0 if "lora_A" in name else 1] == 4
    down = next(leaf for name, leaf in adapter.items() if "down_proj.lora_A" in name)
    assert not down[3].any() and down[2].any()


def test_what_an_adapter_cannot_hold_is_refused_and_leaves_nothing(tmp_path):
    checkpoint, thought = compiled("llama", tmp_path / "tiny", Fit("thought"))
    with pytest.raises(ValueError, match="layer 0 has a bias.*LoRA cannot hold"):
        save_static_adapter(tmp_path / "adapter", checkpoint, thought)
    mixture, patches = compiled("mixtral", tmp_path / "mixture", Fit(side="input", rank=2))
    with pytest.raises(ValueError, match="block 0 has experts.*file of patches"):
        save_static_adapter(tmp_path / "adapter", mixture, patches)
    mamba, patches = compiled("mamba2", tmp_path / "mamba", Fit(side="input", rank=2))
    with pytest.raises(ValueError, match="save_static_adapter: PEFT puts no LoRA on out_proj"):
        save_static_adapter(tmp_path / "adapter", mamba, patches)
    assert not (tmp_path / "adapter").exists()
    with pytest.raises(FileExistsError, match="is not empty"):
        save_static_adapter(tmp_path / "tiny", *compiled("llama", tmp_path / "again"))


@pytest.mark.wide(3)
@pytest.mark.parametrize("fit", [Fit(rank=2), Fit("thought"), Fit(side="input")])
def test_a_file_of_patches_is_read_back_as_they_were(fit, tmp_path):
    checkpoint, patches = compiled("llama", tmp_path / "tiny", fit)
    file = save_static(tmp_path / "patches.safetensors", patches)
    again = load_static(file)
    for one, two in zip(*map(jax.tree.leaves, (patches, again)), strict=True):
        np.testing.assert_array_equal(one, two)
    run = (checkpoint.model, checkpoint.params, np.arange(3, 9), np.arange(6))
    np.testing.assert_array_equal(static_logits(*run, again), static_logits(*run, patches))
    with pytest.raises(ValueError, match="load_bank.*holds no bank"):
        load_bank(file)
    with pytest.raises(FileNotFoundError, match="load_static.*no such file"):
        load_static(tmp_path / "none")
