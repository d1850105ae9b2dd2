"""generation_config.json: what it asks for is known, and what of it is not applied can be named."""

import json
import shutil

import pytest

from icl_jax.interop.generation_config import (
    _DRAWING,
    _OTHERS,
    GenerationConfig,
    read_generation_config,
    stop_tokens,
)
from icl_jax.interop.huggingface import load
from tests.interop.test_family_options import GOLDEN

# As Qwen 2.5 and Llama 3 come with, and what is in neither.
GIVEN = {
    "bos_token_id": 5,
    "pad_token_id": None,
    "do_sample": True,
    "eos_token_id": [7, 8],
    "repetition_penalty": 1.05,
    "temperature": 0.7,
    "top_p": 0.8,
    "top_k": 20,
    "no_repeat_ngram_size": 3,
    "typical_p": 1.0,
    "transformers_version": "4.37.0",
}


def written(folder, **changes):
    (folder / "generation_config.json").write_text(json.dumps({**GIVEN, **changes}))
    return read_generation_config(folder)


def test_every_setting_has_its_name_and_value(tmp_path):
    assert written(tmp_path) == GenerationConfig(
        do_sample=True,
        temperature=0.7,
        top_k=20,
        top_p=0.8,
        repetition_penalty=1.05,
        eos_ids=(7, 8),
        bos_id=5,
        others=(("typical_p", 1.0), ("no_repeat_ngram_size", 3)),
    )


def test_what_is_not_applied_is_named_and_what_does_nothing_is_not(tmp_path):
    found = written(tmp_path)
    assert found.ignored() == (
        "do_sample = True",
        "temperature = 0.7",
        "top_k = 20",
        "top_p = 0.8",
        "repetition_penalty = 1.05",
        "no_repeat_ngram_size = 3",
    )
    applied = ("do_sample", "temperature", "top_k", "top_p")
    assert found.ignored(applied) == ("repetition_penalty = 1.05", "no_repeat_ngram_size = 3")
    neutral = written(tmp_path, temperature=1.0, top_p=1.0, top_k=0, repetition_penalty=1.0)
    assert neutral.ignored(["do_sample", "no_repeat_ngram_size"]) == ()
    # The most probable token is the same at every temperature.
    greedy = written(tmp_path, do_sample=False)
    assert greedy.ignored() == ("repetition_penalty = 1.05", "no_repeat_ngram_size = 3")


def test_what_is_not_known_is_named_and_what_chooses_no_token_is_not(tmp_path):
    harmless = {"use_cache": True, "_from_model_config": True, "output_scores": True}
    found = written(tmp_path, **harmless, of_tomorrow=0.5, of_yesterday=None, min_p=0.1)
    assert found.others == (
        ("typical_p", 1.0),
        ("no_repeat_ngram_size", 3),
        ("of_tomorrow", 0.5),
    )
    applied = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    assert found.ignored(applied) == ("no_repeat_ngram_size = 3", "of_tomorrow = 0.5")


def test_every_setting_of_transformers_is_known(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = dict.fromkeys(vars(transformers.GenerationConfig()), 1)
    model = {name: None for name in ("eos_token_id", "bos_token_id", "pad_token_id", "do_sample")}
    given = dict.fromkeys(GIVEN) | settings | model
    others = dict(written(tmp_path, **given).others)
    assert len(others) > 20 and set(others) <= {*_DRAWING, *_OTHERS}


def test_without_the_file_the_configuration_of_the_model_counts(tmp_path):
    assert read_generation_config(tmp_path) == GenerationConfig()
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 3, "temperature": 0.5}))
    assert read_generation_config(tmp_path) == GenerationConfig(eos_ids=(3,), temperature=0.5)
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8, "min_length": 2}))
    assert read_generation_config(tmp_path).others == (("min_length", 2),)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    (
        ("temperature", -1.0, "temperature = -1.0 is not supported; supported: 0 or more"),
        ("temperature", "hot", 'temperature must be a finite number, got "hot"'),
        ("top_p", 1.5, "top_p = 1.5 is not supported; supported: 0 to 1.0"),
        ("min_p", 1.5, "min_p = 1.5 is not supported; supported: 0 to 1.0"),
        ("top_k", 2.5, "top_k must be a whole number of 32 bits, got 2.5"),
        ("do_sample", "yes", 'do_sample must be true or false, got "yes"'),
        ("eos_token_id", [1.5], r"eos_token_id must be token ids, whole .*, got \[1.5\]"),
        ("eos_token_id", [7, -4], r"eos_token_id must be token ids, whole .*, got \[7, -4\]"),
        (
            "repetition_penalty",
            0.0,
            "repetition_penalty = 0.0 is not supported; supported: above",
        ),
        ("repetition_penalty", -2.0, "repetition_penalty = -2.0 is not supported; supported: 0 or"),
    ),
)
def test_a_setting_that_cannot_be_is_named(tmp_path, key, value, expected):
    with pytest.raises(ValueError, match=f"generation_config.json: {expected}"):
        written(tmp_path, **{key: value})


def test_a_loaded_checkpoint_has_them(tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(GOLDEN / "llama", folder)
    assert load(folder).generation == GenerationConfig(eos_ids=(2,), bos_id=1)
    assert written(folder) == load(folder).generation


def test_a_token_that_the_model_does_not_have_is_refused_where_texts_would_end_with_it(tmp_path):
    folder = tmp_path / "llama"
    shutil.copytree(GOLDEN / "llama", folder)
    written(folder, eos_token_id=[7, 99999])
    found = load(folder)  # Which is of use without a text, too.
    sizes = {"vocab_size": found.model.vocab_size, "folder": folder}
    with pytest.raises(ValueError, match=r"llama: eos_token_id = 99999 \(generation_config.json"):
        stop_tokens(found.generation, (), **sizes)
    with pytest.raises(ValueError, match="eos_token_id = 88888 .* no token of the model's vocab"):
        stop_tokens(GenerationConfig(eos_ids=(7,)), (88888,), **sizes)
    assert stop_tokens(GenerationConfig(eos_ids=(7, 3)), (5, 7), **sizes) == (3, 5, 7)
