"""Families: every name in config.json finds its own, and no name is of two."""

import collections

import pytest

from icl_jax.interop.registry import descent_of, families, family_of
from icl_jax.interop.relatives import RELATIVES

NAMES = [(name, asked) for name, family in families().items() for asked in family.ARCHITECTURES]


@pytest.mark.parametrize(("family", "asked"), NAMES)
def test_every_architecture_and_model_type_finds_its_family(family, asked):
    for config in ({"architectures": [asked]}, {"model_type": asked}):
        assert family_of(config) == (family, families()[family])


@pytest.mark.parametrize("family", families())
def test_a_tiny_configuration_is_of_its_family_by_either_name(family):
    config = families()[family].tiny()
    for key in ("architectures", "model_type"):
        assert family_of({key: config[key]})[0] == family


def test_no_name_is_of_two_families():
    counts = collections.Counter(asked for _, asked in NAMES)
    assert [asked for asked, count in counts.items() if count > 1] == []


@pytest.mark.parametrize(
    ("architectures", "kind", "named"),
    (
        (["EvilForCausalLM"], "llama", r"\(EvilForCausalLM: of none; llama: llama\)"),
        (["Unheard", "Qwen2ForCausalLM"], "qwen2", "Unheard: of none; Qwen2ForCausalLM: qwen2;"),
        (["LlamaForCausalLM"], "qwen2", r"\(LlamaForCausalLM: llama; qwen2: qwen2\)"),
        (["LlamaForCausalLM"], "evil", r"\(LlamaForCausalLM: llama; evil: of none\)"),
        (["Qwen2MoeForCausalLM"], "qwen2", r"\(Qwen2MoeForCausalLM: qwen2_moe; qwen2: qwen2\)"),
        (["Olmo2_5ForCausalLM"], None, "nearest to Olmo2_5ForCausalLM is Olmo2ForCausalLM"),
        ("LlamaForCausalLM", "llama", 'must be a list of texts, got "LlamaForCausalLM"'),
        ([1], "llama", r"must be a list of texts, got \[1\]"),
    ),
)
def test_all_names_must_be_of_one_family(architectures, kind, named):
    with pytest.raises(ValueError, match=named):
        family_of({"architectures": architectures, "model_type": kind})


@pytest.mark.parametrize("kind", RELATIVES)
def test_relatives_are_unsupported_families_and_supported_ones(kind):
    assert RELATIVES[kind][0] in families() and kind not in families()
    with pytest.raises(ValueError, match=f"nearest to {kind} is .*, but "):
        family_of({"model_type": kind})


@pytest.mark.parametrize("name", ("Mamba", "FalconMamba"))
def test_an_older_state_space_is_refused_with_the_reason(name):
    wording = f"nearest to {name}ForCausalLM is Mamba2ForCausalLM, but its state space is another"
    with pytest.raises(ValueError, match=wording):
        family_of({"architectures": [f"{name}ForCausalLM"]})


@pytest.mark.parametrize(
    ("architecture", "kind"),
    (
        ("LlamaModel", "llama"),
        ("BertForPreTraining", "bert"),
        ("GPT2DoubleHeadsModel", "gpt2"),
        ("Qwen2ForSequenceClassification", "qwen2"),
    ),
)
def test_a_model_with_another_head_is_of_its_family(architecture, kind):
    assert family_of({"architectures": [architecture], "model_type": kind})[0] == kind


def test_how_a_descendant_was_read_can_be_told():
    assert descent_of({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}) == ""
    assert descent_of({"model_type": "llama"}) == ""
    said = descent_of({"architectures": ["LlamaModel"], "model_type": "llama"})
    assert "LlamaModel is not listed and was read as LlamaForCausalLM" in said


@pytest.mark.parametrize(
    ("config", "named"),
    (
        (
            {"architectures": ["RwkvForCausalLM"], "model_type": "rwkv"},
            r'architectures = \["RwkvForCausalLM"\], model_type = "rwkv" is not supported',
        ),
        ({}, r"architectures = \[\], model_type = null is not supported"),
        # Names are matched as a whole and with their case.
        ({"model_type": "LLAMA"}, r'architectures = \[\], model_type = "LLAMA" is not supported'),
    ),
)
def test_an_unknown_architecture_is_named_with_those_that_there_are(config, named):
    with pytest.raises(ValueError, match=f"config.json: {named}") as error:
        family_of(config)
    supported = str(error.value).partition("Supported are ")[2]
    for name, family in families().items():
        assert f"{name}: {', '.join(family.ARCHITECTURES)}" in supported
