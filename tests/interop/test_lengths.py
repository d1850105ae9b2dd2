"""The longest prompt that a configuration has room for."""

import json

import jax
import pytest

import icl_jax
from experiments.language.checkpoint.run import Config, prepare
from experiments.tools.flags import UsageError
from icl_jax.interop.huggingface import load, make_tiny
from icl_jax.interop.lengths import longest_prompt
from icl_jax.language.generation import generate
from icl_jax.language.prompt import full_logits
from tests.interop.test_family_options import GOLDEN

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("config", "expected"),
    (
        ({}, None),
        ({"max_position_embeddings": 128}, 128),
        ({"n_positions": 64}, 64),
        # Qwen's files keep the length of the training beside the scaling.
        ({"max_position_embeddings": 32, "rope_scaling": YARN}, 128),
        ({"max_position_embeddings": 32, "rope_scaling": {**YARN, "factor": None}}, 32),
        ({"max_position_embeddings": 512, "rope_parameters": YARN}, 512),
        ({"max_position_embeddings": 32, "rope_scaling": {"type": "linear", "factor": 2.5}}, 80),
        ({"max_position_embeddings": 32, "rope_parameters": {"rope_theta": 1e4}}, 32),
        (
            {
                "max_position_embeddings": 32,
                "rope_parameters": {
                    "full_attention": {"rope_type": "linear", "factor": 8.0},
                    "sliding_attention": {"rope_type": "default"},
                },
            },
            256,
        ),
        ({"text_config": {"max_position_embeddings": 16}}, 16),
    ),
)
def test_it_is_that_of_the_training_or_of_the_scaling(config, expected):
    assert longest_prompt(config) == expected


def test_a_length_that_is_none_is_refused():
    with pytest.raises(ValueError, match="max_position_embeddings = 0 is not supported"):
        longest_prompt({"max_position_embeddings": 0})


def test_every_checkpoint_knows_its_own():
    assert load(GOLDEN / "mistral").max_positions == 128
    assert load(GOLDEN / "gpt2").max_positions == 128


def test_a_longer_prompt_is_refused_before_anything_is_computed(tmp_path):
    make_tiny("mistral", tmp_path / "tiny", jax.random.key(0))
    prompt = {"tokens": [1] * 10**6, "keep": [0, 10**6 - 1]}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt))
    config = Config(checkpoint=str(tmp_path / "tiny"), prompts=str(tmp_path / "prompts.jsonl"))
    with pytest.raises(UsageError, match="1000000 tokens are more than the model has room for, 12"):
        prepare(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_loaded_model_refuses_a_longer_prompt_by_itself():
    checkpoint = load(GOLDEN / "mistral")
    run = (checkpoint.model, checkpoint.params)
    with pytest.raises(ValueError, match="full_logits: 129 tokens are needed.* at most 128"):
        full_logits(*run, [1] * 129, [0, 128])
    with pytest.raises(ValueError, match="generate: 131 tokens are needed.* at most 128"):
        generate(*run, [1] * 128, 3)
    # Also where nothing is removed, in text or in ids.
    pretrained = icl_jax.load(GOLDEN / "mistral")
    with pytest.raises(ValueError, match="131 tokens are needed.* at most 128"):
        pretrained.generate([1] * 128, 3)
    with pytest.raises(ValueError, match="129 tokens are needed.* at most 128"):
        pretrained.logits([1] * 129)
    beyond = checkpoint.model.clone(max_positions=None)
    assert full_logits(beyond, checkpoint.params, [1] * 129, [0, 128]).shape[0] == 2
