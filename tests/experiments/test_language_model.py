"""The language model, made tiny: trained, saved, read back, ready for experiments.checkpoint."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from experiments.language import language_model
from icl_jax.interop.huggingface import load
from icl_jax.interop.spans import read_prompts
from icl_jax.interop.tokenizer import load_tokenizer
from icl_jax.language.prompt import alone_logits, full_logits, patched_logits, prompt_patches
from icl_jax.records import Run, WorkdirError
from icl_jax.training.config import TrainingConfig
from tests.helpers import relative_error

CONFIG = language_model.Config(
    vocab_size=300,
    length=32,
    width=32,
    hidden_width=64,
    num_layers=2,
    num_prompts=2,
    training=TrainingConfig(
        num_steps=60, batch_size=8, learning_rate=1e-2, steps_per_call=20, checkpoint_every=20
    ),
)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("language_model") / "run"
    language_model.run(CONFIG, workdir)
    return workdir


@pytest.fixture(scope="module")
def summary(whole_run):
    return json.loads((whole_run / "summary.json").read_text())


@pytest.mark.slow
def test_it_learns(summary):
    assert summary["final_loss"] < summary["initial_loss"] - 0.5
    assert summary["bigram_loss"] < summary["unigram_loss"] < summary["uniform_loss"]
    assert summary["uniform_loss"] == pytest.approx(np.log(300))
    bits = summary["final_loss"] / np.log(2) / summary["bytes_per_token"]
    assert summary["bits_per_byte"] == pytest.approx(bits)


@pytest.mark.slow
def test_its_files_give_the_same_logits(summary):
    assert summary["reload_difference"] == 0.0


def test_its_prompts_are_ones_that_a_trained_model_answers_without_their_context(whole_run):
    checkpoint = load(whole_run / "checkpoint")
    tokenizer = load_tokenizer(whole_run / "checkpoint")
    prompts = read_prompts(whole_run / "prompts.jsonl", tokenizer, vocab_size=300)
    assert len(prompts) == 2
    run = (checkpoint.model, checkpoint.params, prompts[0].tokens)
    want = full_logits(*run, prompts[0].kept)
    got = patched_logits(*run, prompt_patches(*run, prompts[0].kept))
    assert len(prompts[0].tokens) > 200
    assert relative_error(got, want) < 1e-5
    assert relative_error(alone_logits(*run, prompts[0].kept), want) > 1e-2


def test_the_report_has_curve_and_text(whole_run):
    page = (whole_run / "report.html").read_text()
    assert "<svg" in page and "What it writes" in page


def test_a_run_that_is_done_is_not_done_again(whole_run, monkeypatch):
    monkeypatch.setattr(language_model, "measure", None)
    language_model.run(CONFIG, whole_run)


@pytest.mark.parametrize("name", ["numbers.bigram_loss", "numbers.reload_difference", "loss"])
def test_a_number_too_few_is_refused(name, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    records = Run(tmp_path / "run")
    arrays = records.load_arrays("arrays.npz")
    assert arrays["loss"].shape == arrays["step"].shape == (60,)
    del arrays[name]
    records.save_arrays("arrays.npz", arrays)
    with pytest.raises(WorkdirError, match=f"nothing was saved for {name}"):
        language_model.run(CONFIG, tmp_path / "run")


def test_counting_is_what_it_says():
    corpus_N = np.array([0, 1] * 200, np.int32)
    losses = language_model.counted_losses(corpus_N, np.array([[0, 1, 0, 1]]), 2)
    assert losses["uniform_loss"] == pytest.approx(np.log(2))
    assert losses["unigram_loss"] == pytest.approx(np.log(2), rel=1e-2)
    assert losses["bigram_loss"] < 0.01


def test_heads_have_to_fit():
    with pytest.raises(ValueError, match="num_heads=3 must be even"):
        dataclasses.replace(CONFIG, num_heads=3)
