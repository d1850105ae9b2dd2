"""An option that nobody reads is harmless for a reason, or the checkpoint is refused."""

import json
import re

import pytest

from icl_jax.interop.harmless import COMMON
from icl_jax.interop.huggingface import load
from icl_jax.interop.options import Options
from icl_jax.interop.registry import build_model, families
from icl_jax.interop.safetensors import MappedTensors
from tests.interop.test_family_options import GOLDEN, golden_config, write_folder

FAMILIES = sorted(families())
GOLDEN_FAMILIES = [family for family in FAMILIES if (GOLDEN / family).is_dir()]


def build(config):
    return build_model(Options(config))[2]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_option_of_our_own_models_is_read_or_harmless(family):
    build(families()[family].tiny())


@pytest.mark.parametrize("family", GOLDEN_FAMILIES)
def test_every_option_that_transformers_writes_is_read_or_harmless(family):
    assert build(golden_config(family)) == families()[family].build(Options(golden_config(family)))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_option_that_nobody_knows_is_refused_by_name(family):
    config = families()[family].tiny()
    with pytest.raises(ValueError, match="config.json: logit_twist = 0.5 is not supported.*take"):
        build({**config, "logit_twist": 0.5})
    with pytest.raises(ValueError, match=r"one = \[1\] is not.*\(nor are other\)"):
        build({**config, "one": [1], "other": {"a": 2}})
    build({**config, "logit_twist": None})  # Null says nothing.


@pytest.mark.parametrize(
    ("key", "value"),
    (
        ("is_causal", False),
        ("is_encoder_decoder", True),
        ("use_bidirectional_attention", True),
        ("attention_bias", 1),
        ("pruned_heads", {"0": [1]}),
        ("add_cross_attention", True),
    ),
)
def test_an_option_that_is_harmless_with_one_value_is_refused_with_another(key, value):
    config = golden_config("mistral")
    with pytest.raises(ValueError, match=f"{key} = {re.escape(json.dumps(value))} is not supp"):
        build({**config, key: value})
    build({**config, key: COMMON[key].values[0]})


def test_a_key_inside_an_object_is_refused_with_its_path():
    config = golden_config("llama")
    config["rope_parameters"]["twist"] = 2
    with pytest.raises(ValueError, match="config.json: rope_parameters.twist = 2 is not supported"):
        build(config)
    config = golden_config("gemma3")
    config["rope_parameters"]["sliding_attention"]["twist"] = 2
    with pytest.raises(ValueError, match="rope_parameters.sliding_attention.twist = 2 is not"):
        build(config)
    config = golden_config("gemma3")
    config["rope_parameters"]["rope_theta"] = 2.0
    with pytest.raises(ValueError, match="rope_parameters.rope_theta = 2.0 is not supported"):
        build(config)


def test_layers_of_one_kind_may_be_said_to_be_so_and_others_are_refused():
    config = golden_config("mistral")
    assert build({**config, "layer_types": ["sliding_attention"] * 3}) == build(config)
    for kinds in (["full_attention"] * 3, ["sliding_attention", "full_attention"] * 2):
        with pytest.raises(ValueError, match="layer_types.*3 times sliding_attention"):
            build({**config, "layer_types": kinds})
    config["sliding_window"] = None
    assert build({**config, "layer_types": ["full_attention"] * 3}) == build(config)
    with pytest.raises(ValueError, match="layer_types.*3 times full_attention"):
        build({**golden_config("llama"), "layer_types": ["sliding_attention"] * 3})


def test_loading_refuses_it_too(tmp_path):
    config = {**golden_config("llama"), "is_causal": False}
    write_folder(tmp_path, dict(MappedTensors(GOLDEN / "llama")), config)
    with pytest.raises(ValueError, match="config.json: is_causal = false is not supported"):
        load(tmp_path)
