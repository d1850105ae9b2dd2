"""Released configurations beside the families' tiny ones compute what transformers computes."""

import json
import shutil

import jax.numpy as jnp
import pytest

from icl_jax.interop.huggingface import load
from icl_jax.interop.options import Options
from icl_jax.interop.registry import build_model
from icl_jax.interop.text_part import text_part
from tests.helpers import relative_error
from tests.interop.golden.variants import VARIANTS
from tests.interop.test_parity import BOUNDS, GOLDEN, batch_logits, golden, loaded

#: Name -> family.
FAMILY = {
    "gemma_3_multimodal": "gemma3",
    "ministral_3_multimodal": "ministral3",
    "mistral_3": "mistral",
    "phi_4": "phi3",
    "phi_4_mini": "phi3",
    "yarn_without_mscale_all_dim": "llama",
}

#: Name, option, and a value with which the same weights compute something else: the options that
#: make the variant what it is are read, and its golden logits depend on them.
CHANGES = (
    ("gemma_3_multimodal", "text_config.sliding_window", 4),
    ("gemma_3_multimodal", "text_config.rope_scaling.factor", 4.0),
    ("ministral_3_multimodal", "text_config.rope_parameters.factor", 4.0),
    ("mistral_3", "text_config.sliding_window", None),
    ("phi_4", "rope_theta", 10000.0),
    ("phi_4", "sliding_window", 7),
    ("phi_4_mini", "rope_scaling.long_factor", [1.0, 1.2, 1.4]),
    ("phi_4_mini", "rope_scaling.short_factor", [1.0, 1.5, 4.0]),
    ("phi_4_mini", "original_max_position_embeddings", 64),
    ("phi_4_mini", "max_position_embeddings", 64),
    ("phi_4_mini", "sliding_window", None),
    ("yarn_without_mscale_all_dim", "rope_scaling.mscale_all_dim", 1.3),
)


def test_no_variant_is_left_out():
    written = {path.parent.name for path in GOLDEN.glob("variants/*/logits.npz")}
    assert written == set(VARIANTS) == set(FAMILY)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_golden_configuration_is_spelt_as_the_released_one(name):
    assert json.loads((GOLDEN / "variants" / name / "config.json").read_text()) == VARIANTS[name]


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", BOUNDS)
def test_logits_are_those_of_transformers(name, dtype):
    given, checkpoint = golden(f"variants/{name}"), loaded(f"variants/{name}", dtype)
    assert checkpoint.family == FAMILY[name]
    got, mask = batch_logits(checkpoint.model, checkpoint.params, given), given["mask"]
    assert got.dtype == dtype
    assert relative_error(got[mask], given[dtype][mask]) < BOUNDS[dtype]


def error_with(folder, name, option, value):
    """How far the logits are off where an option (with its path) is another; ... leaves it out."""
    shutil.copytree(GOLDEN / "variants" / name, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    *outer, last = option.split(".")
    place = config
    for key in outer:
        place = place[key]
    assert place.pop(last) != value
    if value is not ...:
        place[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    checkpoint, given = load(folder, dtype=jnp.float32), golden(f"variants/{name}")
    got, mask = batch_logits(checkpoint.model, checkpoint.params, given), given["mask"]
    return relative_error(got[mask], given["float32"][mask])


@pytest.mark.parametrize(("name", "option", "value"), CHANGES)
def test_another_option_is_another_model(name, option, value, tmp_path):
    assert error_with(tmp_path, name, option, value) > 1e-3


def test_a_whole_that_does_not_say_whether_its_head_is_tied_has_the_head_that_is_stored(tmp_path):
    # As in the released Mistral 3, of whose config.json transformers makes the same.
    assert error_with(tmp_path, "mistral_3", "tie_word_embeddings", ...) < BOUNDS["float32"]


def described(name):
    """The model, its first layer and that layer's rotary embeddings."""
    model = build_model(Options(text_part(VARIANTS[name]) or VARIANTS[name]))[2]
    layer = model.blocks[0].contextual_layer
    return model, layer, layer.rotary


def test_phi_4_mini_turns_three_quarters_of_a_head_by_longrope_under_one_embedding():
    model, layer, rotary = described("phi_4_mini")
    assert (model.head, layer.num_heads, layer.num_kv_heads, layer.window) == ("tied", 6, 2, 19)
    assert rotary.features == 0.75 * layer.head_width
    assert (rotary.scaling.kind, rotary.scaling.original_length) == ("longrope", 16)


def test_phi_4_turns_whole_heads_unscaled_without_a_window():
    model, layer, rotary = described("phi_4")
    assert (model.head, layer.num_heads, layer.num_kv_heads, layer.window) == ("own", 8, 2, None)
    assert rotary.scaling is None and rotary.base == 250000.0
    assert rotary.features in (None, layer.head_width)


def test_a_weight_of_zero_leaves_yarns_standard_factor():
    scaling = described("yarn_without_mscale_all_dim")[2].scaling
    assert scaling.kind == "yarn" and scaling.attention_factor is None
