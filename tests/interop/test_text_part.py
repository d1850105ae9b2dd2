"""Multimodal checkpoints: their text model is loaded alone, and computes what it always does."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.interop.huggingface import load
from icl_jax.interop.options import Options
from icl_jax.interop.peft import adapter_policy, save_adapter
from icl_jax.interop.registry import build_model
from icl_jax.interop.safetensors import MappedTensors
from icl_jax.interop.saving import save
from icl_jax.interop.text_part import text_part
from icl_jax.language.weights import prompt_weights
from tests.interop.test_family_options import GOLDEN, golden_config, write_folder

#: Text model -> the whole around it.
WHOLES = {
    "gemma3": ("Gemma3ForConditionalGeneration", "gemma3"),
    "mistral": ("Mistral3ForConditionalGeneration", "mistral3"),
    "ministral3": ("Mistral3ForConditionalGeneration", "mistral3"),
}
#: How names of the text model begin in files of all ages.
PREFIXES = ({"model.": "language_model.model."}, {"model.": "model.language_model."})


def whole_config(family, **changes):
    """config.json of a multimodal model around a golden text model."""
    inner = golden_config(family)
    tied = inner.pop("tie_word_embeddings", None)
    del inner["architectures"]
    if family == "gemma3":
        inner["final_logit_softcapping"] = None  # The whole has no cap.
    architecture, kind = WHOLES[family]
    return {
        "architectures": [architecture],
        "model_type": kind,
        "text_config": inner,
        "tie_word_embeddings": tied,
        "vision_config": {"hidden_size": 8, "num_hidden_layers": 1},
        "image_token_index": 10,
        **changes,
    }


def write_whole(folder, family, prefixes, **changes):
    """The golden text model beside tensors that read pictures."""
    files = MappedTensors(GOLDEN / family)
    outer = "language_model." if prefixes is PREFIXES[0] else ""
    begins = "model." if prefixes is PREFIXES[1] else ""
    tensors = {}
    for name in files:
        (old, new), *_ = prefixes.items()
        renamed = name.replace(old, new, 1) if name.startswith(old) else outer + name
        tensors[renamed] = np.array(files[name])
    for name in ("vision_tower.layers.0.weight", "multi_modal_projector.linear_1.weight"):
        tensors[begins + name] = np.ones((3, 3), np.float32)
    write_folder(folder, tensors, whole_config(family, **changes))


@pytest.mark.parametrize("prefixes", PREFIXES, ids=("older", "newer"))
@pytest.mark.parametrize("family", WHOLES)
def test_the_text_model_of_a_whole_is_the_text_model(family, prefixes, tmp_path):
    write_whole(tmp_path, family, prefixes)
    found, alone = load(tmp_path, dtype=jnp.float32), load(GOLDEN / family, dtype=jnp.float32)
    assert (found.model, found.family) == (alone.model.clone(soft_cap=None), alone.family)
    jax.tree.map(np.testing.assert_array_equal, found.params, alone.params)
    # Saved, it is a text model like any other.
    save(tmp_path / "text", found.model, found.params, found.config)
    again = load(tmp_path / "text")
    assert again.model == found.model and again.config["architectures"] != WHOLES[family][0]


def test_a_tensor_of_neither_text_nor_pictures_is_refused(tmp_path):
    write_whole(tmp_path, "mistral", PREFIXES[0])
    files = MappedTensors(tmp_path)
    tensors = {name: np.array(files[name]) for name in files}
    config = json.loads((tmp_path / "config.json").read_text())
    write_folder(tmp_path, {**tensors, "audio_tower.weight": np.ones(3)}, config)
    with pytest.raises(ValueError, match="1 extra: audio_tower.weight"):
        load(tmp_path)


def test_parts_that_read_no_text_are_refused_in_a_text_model(tmp_path):
    write_whole(tmp_path, "mistral", PREFIXES[0])
    (tmp_path / "config.json").write_text(json.dumps(golden_config("mistral")))
    with pytest.raises(ValueError, match="2 extra: .*vision_tower.layers.0.weight"):
        load(tmp_path)


def test_what_released_files_leave_out_is_what_their_models_have():
    inner = {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    }
    config = whole_config("gemma3", text_config=inner, tie_word_embeddings=None, eos_token_id=[1])
    found = text_part(config)
    assert found["eos_token_id"] == [1]
    name, _, model = build_model(Options(found))
    layer = model.blocks[0].contextual_layer
    assert (name, model.vocab_size, model.head) == ("gemma3", 262208, "tied")
    assert (layer.num_heads, layer.num_kv_heads, layer.head_width) == (8, 4, 256)


@pytest.mark.parametrize(
    ("outside", "inside", "head"), ((True, False, "tied"), (None, False, "own"))
)
def test_the_whole_says_first_whether_the_head_is_the_embedding(outside, inside, head):
    config = whole_config("mistral", tie_word_embeddings=outside)
    config["text_config"]["tie_word_embeddings"] = inside
    assert build_model(Options(text_part(config)))[2].head == head


@pytest.mark.parametrize(
    ("changes", "message"),
    (
        ({"architectures": ["Mistral3Model"]}, 'architectures = .*"Mistral3Model"'),
        ({"text_config": {"model_type": "llama"}}, 'text_config: model_type = "llama".*ministral3'),
        ({"audio_config": {"a": 1}}, "audio_config = .* is not supported"),
    ),
)
def test_wholes_that_are_not_understood_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        text_part(whole_config("mistral", **changes))


def test_a_cap_that_the_whole_does_not_apply_is_refused():
    config = whole_config("gemma3")
    config["text_config"]["final_logit_softcapping"] = 30.0
    with pytest.raises(ValueError, match="text_config: final_logit_softcapping = 30.0 is not supp"):
        text_part(config)


def test_an_option_inside_that_nobody_knows_is_refused_with_its_place(tmp_path):
    write_whole(tmp_path, "mistral", PREFIXES[0])
    config = whole_config("mistral")
    config["text_config"]["twist"] = 2
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="text_config: twist = 2 is not supported"):
        load(tmp_path)


def test_any_other_configuration_has_no_text_part():
    assert text_part(golden_config("gemma3")) is None
    assert text_part({}) is None


def test_an_adapter_needs_the_text_model_alone(tmp_path):
    write_whole(tmp_path, "mistral", PREFIXES[0])
    checkpoint = load(tmp_path, dtype=jnp.float32)
    weights = prompt_weights(
        checkpoint.model,
        checkpoint.params,
        np.arange(3, 13, dtype=np.int32),
        np.array([0, 8, 9]),
        output=adapter_policy(checkpoint),
    )
    with pytest.raises(ValueError, match="save_adapter: .* has more than the text model"):
        save_adapter(tmp_path / "adapter", checkpoint, weights.patches)
    save_adapter(tmp_path / "adapter", checkpoint, weights.patches, base="text")
