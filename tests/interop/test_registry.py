"""Families: every name in config.json finds its own, and no name is of two."""

import collections
import re
from pathlib import Path

import pytest

from icl_jax.interop.registry import descent_of, families, family_of
from icl_jax.interop.relatives import RELATIVES
from icl_jax.interop.text_part import WRAPPERS

README = Path(__file__).parents[2] / "README.md"
#: What README's table of families calls them -> the families.
README_NAMES = {
    "BERT (all-MiniLM)": ("bert",),
    "BLOOM": ("bloom",),
    "Cohere (Command R, R7B)": ("cohere", "cohere2"),
    "Falcon": ("falcon",),
    "GPT-2": ("gpt2",),
    "GPT-J": ("gptj",),
    "GPT-Neo": ("gpt_neo",),
    "GPT-NeoX / Pythia": ("gpt_neox",),
    "Gemma 1": ("gemma",),
    "Gemma 2": ("gemma2",),
    "Gemma 3 (of multimodal ones the text part)": ("gemma3",),
    "Granite 3": ("granite",),
    "Llama 2 / 3": ("llama",),
    "Mamba 2": ("mamba2",),
    "Ministral": ("ministral",),
    "Ministral 3": ("ministral3",),
    "Mistral": ("mistral",),
    "Mistral 3 (text part)": ("mistral", "ministral3"),
    "Mixtral": ("mixtral",),
    "OLMo 1 and 3": ("olmo", "olmo3"),
    "OLMo 2": ("olmo2",),
    "OLMoE": ("olmoe",),
    "OPT": ("opt",),
    "Phi": ("phi",),
    "Phi-3": ("phi3",),
    "Phi-4": ("phi3",),
    "Qwen 2 MoE": ("qwen2_moe",),
    "Qwen 2.5": ("qwen2",),
    "Qwen 3": ("qwen3",),
    "Qwen 3 MoE": ("qwen3_moe",),
    "Qwen3-Next": ("qwen3_next",),
    "SmolLM3": ("smollm3",),
    "StableLM": ("stablelm",),
    "StarCoder 2": ("starcoder2",),
    "gpt-oss (dequantised)": ("gpt_oss",),
}
#: The model_type of a multimodal model -> what the table calls it.
README_WHOLES = {
    "gemma3": "Gemma 3 (of multimodal ones the text part)",
    "mistral3": "Mistral 3 (text part)",
}
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


def named_in_the_readme():
    """The names in the first column of README's table of families, in order."""
    rows = README.read_text().split("| family | |\n|---|---|\n", 1)[1].split("\n\n", 1)[0]
    cells = [row.split("|")[1].strip() for row in rows.splitlines()]
    # A comma in brackets separates no families.
    return [name for cell in cells for name in re.split(r", (?![^(]*\))", cell)]


def test_the_readmes_table_names_every_family_and_no_other():
    assert sorted(named_in_the_readme()) == sorted(README_NAMES)
    assert {one for named in README_NAMES.values() for one in named} == set(families())


def test_the_readmes_table_names_every_multimodal_model_with_the_families_of_its_text_part():
    assert set(README_WHOLES) == set(WRAPPERS)
    for kind, name in README_WHOLES.items():
        found = {family_of({"model_type": text})[0] for text in WRAPPERS[kind].architectures}
        assert set(README_NAMES[name]) == found


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
