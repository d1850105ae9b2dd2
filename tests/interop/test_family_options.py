"""Options of the newer families: each one counts, old spellings mean the same, the rest is refused.

Changes are made to the golden configurations; nothing here needs transformers.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.experts import Experts
from icl_jax.interop.huggingface import load
from icl_jax.interop.options import Options
from icl_jax.interop.registry import families, fitting_table
from icl_jax.interop.safetensors import MappedTensors, write_tensors
from tests.interop.other_options import check_another_model

GOLDEN = Path(__file__).parent / "golden"
MIXTURES = ("mixtral", "olmoe", "qwen2_moe", "qwen3_moe", "qwen3_next")
FAMILIES = ("bert", "gemma2", "gemma3", "olmo2", *MIXTURES)

#: Family, option, and a value that must change what the same weights compute.
CHANGES = (
    ("bert", "hidden_act", "relu"),
    ("bert", "layer_norm_eps", 0.1),
    ("gemma2", "attn_logit_softcapping", None),
    ("gemma2", "final_logit_softcapping", None),
    ("gemma2", "query_pre_attn_scalar", 12),
    ("gemma2", "sliding_window", 6),
    ("gemma2", "layer_types", ["full_attention", "sliding_attention"] * 2),
    ("gemma3", "rope_parameters.sliding_attention.rope_theta", 20000.0),
    ("gemma3", "rope_parameters.full_attention.rope_theta", 20000.0),
    ("gemma3", "rope_parameters.full_attention.factor", 4.0),
    ("gemma3", "sliding_window", 6),
    ("olmo2", "rms_norm_eps", 0.1),
    ("mixtral", "num_experts_per_tok", 1),
    ("mixtral", "sliding_window", None),
    ("olmoe", "norm_topk_prob", True),
    ("qwen2_moe", "norm_topk_prob", True),
    ("qwen3_moe", "norm_topk_prob", False),
    ("qwen3_moe", "num_experts_per_tok", 2),
)

#: Family, what is set in its configuration, and what the message must say.
REFUSED = (
    ("bert", {"position_embedding_type": "relative_key"}, "relative_key.*absolute"),
    ("bert", {"is_decoder": True}, "is_decoder = true"),
    ("bert", {"add_cross_attention": True}, "add_cross_attention = true"),
    ("bert", {"num_attention_heads": 5}, "num_attention_heads = 5"),
    ("gemma2", {"use_bidirectional_attention": True}, "use_bidirectional_attention = true"),
    ("gemma2", {"layer_types": ["full_attention"]}, "layer_types.*each of the 4 layers"),
    ("gemma2", {"layer_types": ["linear_attention"] * 4}, "sliding_attention or full_attention"),
    ("gemma2", {"hidden_activation": "softplus"}, 'hidden_activation = "softplus"'),
    ("gemma3", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0"),
    ("olmo2", {"rope_parameters": {"rope_type": "dynamic"}}, 'rope_type = "dynamic"'),
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv = 8.0.*null"),
    ("qwen2_moe", {"use_sliding_window": True}, "use_sliding_window = true"),
)


def golden_config(family):
    return json.loads((GOLDEN / family / "config.json").read_text())


@pytest.mark.wide(6)
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
    module = families()[family]
    assert module.build(Options(module.tiny())) == module.build(Options(golden_config(family)))


def test_gemma_3_never_scales_the_positions_of_windows():
    config = families()["gemma3"].tiny()
    for key in ("rope_theta", "rope_local_base_freq", "sliding_window_pattern"):
        del config[key]
    config["num_hidden_layers"] = 6
    model = families()["gemma3"].build(Options(config))
    rotaries = [block.contextual_layer.rotary for block in model.blocks]
    assert [one.base for one in rotaries] == [10000.0] * 5 + [1000000.0]
    assert [one.scaling is None for one in rotaries] == [True] * 5 + [False]


def test_gemma_2_without_caps_in_its_file_has_those_of_the_released_models():
    config = families()["gemma2"].tiny()
    del config["attn_logit_softcapping"], config["final_logit_softcapping"]
    model = families()["gemma2"].build(Options(config))
    assert model.soft_cap == 30.0
    assert {block.contextual_layer.soft_cap for block in model.blocks} == {50.0}


def test_qwen_has_experts_where_its_options_say():
    config = {**families()["qwen3_moe"].tiny(), "num_hidden_layers": 6}
    model = families()["qwen3_moe"].build(Options(config))
    sparse = [isinstance(block.mlp, Experts) for block in model.blocks]
    assert sparse == [False, True, False, False, False, True]


@pytest.mark.parametrize("family", MIXTURES)
def test_experts_in_two_tensors_are_the_same_experts(family, tmp_path):
    separate = load(GOLDEN / family, dtype=jnp.float32)
    files = MappedTensors(GOLDEN / family)
    module = families()[family]
    table = module.fused_table(separate.model, Options(separate.config))
    fused = {one.name: fuse(one.name, files) for one in table}
    assert any("experts.gate_up_proj" in name for name in fused)
    write_folder(tmp_path, fused, separate.config)
    found = load(tmp_path, dtype=jnp.float32)
    chosen = fitting_table(module, found.model, Options(found.config), fused)
    assert [one.name for one in chosen] == [one.name for one in table]
    jax.tree.map(np.testing.assert_array_equal, found.params, separate.params)


def fuse(name, files):
    """A tensor of the fused layout, out of the files of the other one."""
    mixtral = any(".block_sparse_moe." in one for one in files)
    name = name.replace(".mlp.", ".block_sparse_moe.") if mixtral else name
    if name in files:
        return np.array(files[name])
    start, kind = name.rsplit(".", 1)
    gates_and_ups = ("w1", "w3") if mixtral else ("gate_proj", "up_proj")
    downs = ("w2",) if mixtral else ("down_proj",)
    kernels = gates_and_ups if kind == "gate_up_proj" else downs
    count = sum(one.startswith(start) and one.endswith(f"{kernels[0]}.weight") for one in files)
    experts = [[files[f"{start}.{e}.{kernel}.weight"] for kernel in kernels] for e in range(count)]
    return np.stack([np.concatenate(expert) for expert in experts])


def test_bert_reads_files_with_a_prefix_old_names_and_heads(tmp_path):
    plain = load(GOLDEN / "bert", dtype=jnp.float32)
    files = MappedTensors(GOLDEN / "bert")
    older = {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): (
            np.array(files[name])
        )
        for name in files
    }
    older["bert.pooler.dense.weight"] = np.zeros((32, 32), np.float32)
    older["cls.seq_relationship.bias"] = np.zeros((2,), np.float32)
    config = {**plain.config, "architectures": ["BertForPreTraining"]}
    write_folder(tmp_path, older, config)
    found = load(tmp_path, dtype=jnp.float32)
    jax.tree.map(np.testing.assert_array_equal, found.params, plain.params)


def write_folder(folder, tensors, config):
    specs = {name: (array.dtype, array.shape) for name, array in tensors.items()}
    write_tensors(folder / "model.safetensors", specs, tensors.__getitem__)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("key", "value"),
    (
        ("rope_parameters", {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 1e3}),
        (
            "rope_parameters",
            {kind: {"rope_type": "default"} for kind in ("full_attention", "sliding_attention")},
        ),
        (
            "rope_scaling",
            {
                "full_attention": {"rope_type": "linear", "factor": 2.0},
                "sliding_attention": {"rope_type": "default"},
            },
        ),
    ),
)
def test_gemma_3_has_rotary_options_for_each_type_of_layer(key, value):
    """Otherwise transformers leaves them alone or fills in its own: logits were 0.1 to 0.2 off."""
    config = families()["gemma3"].tiny()
    config = {name: said for name, said in config.items() if not name.startswith("rope_")}
    with pytest.raises(ValueError, match=f"{key} = .* is not supported"):
        families()["gemma3"].build(Options({**config, "rope_theta": 1e6, key: value}))


@pytest.mark.parametrize("name", ["gemma3", "olmo3"])
@pytest.mark.parametrize("kinds", [("full_attention",), ("full_attention", "sliding_attention")])
def test_older_rotary_options_are_for_all_layers(name, kinds):
    """transformers looks for none of the types inside: OLMo 3's logits were 0.16 off."""
    scaling = {kind: {"rope_type": "linear", "factor": 4.0} for kind in kinds}
    config = {**families()[name].tiny(), "rope_scaling": scaling}
    with pytest.raises(ValueError, match="rope_scaling = .*; supported: one object for all layers"):
        families()[name].build(Options(config))
