"""The page of a prompt: its numbers are the library's, and what cannot be shown is said in time."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

import icl_jax
from experiments.language.interactive.shell import packed, unpacked
from experiments.language.prompt_page import run as prompt_page
from experiments.tools.flags import UsageError, launch
from icl_jax.interop.huggingface import make_tiny
from icl_jax.interop.tokenizer import save_tokenizer, train_bpe
from icl_jax.language.attribution import attributable, attribute

TEXT = "Ada built the lighthouse in 1871. </script> Who built it?"


def checkpoint(family, folder):
    make_tiny(family, folder, jax.random.key(0), vocab_size=300)
    save_tokenizer(folder, train_bpe([TEXT], 300))
    return str(folder)


def data_of(page):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    config = prompt_page.Config(checkpoint=checkpoint("llama", folder / "model"), text=TEXT)
    prompt_page.run(config, folder / "run")
    return config, folder / "run"


def test_the_numbers_of_the_page_are_the_librarys(made):
    config, folder = made
    data = data_of((folder / "report.html").read_text())
    model = icl_jax.load(config.checkpoint, dtype=np.float32)
    tokens = model.prompt(TEXT).tokens
    assert "".join(data["tokens"]).endswith(TEXT[-20:]) and len(data["tokens"]) == len(tokens)
    assert data["targets"] == list(range(len(tokens) - 4, len(tokens)))
    assert [kernel["name"] for kernel in data["kernels"]] == list(attributable(model.model))
    kept = [0, data["targets"][1]]
    for kernel in data["kernels"]:
        run = (model.model, model.params, tokens, kept)
        found = attribute(*run, of=kernel["name"])
        for name, want in (
            ("shares", found.shares_LAT),
            ("remainder", found.remainder_L),
            ("norm", found.norm_L),
        ):
            np.testing.assert_allclose(
                unpacked(kernel[name])[1], want, rtol=1e-4, atol=1e-5, err_msg=name
            )


def test_shares_and_remainder_add_up_to_one_and_the_patched_run_is_the_full_one(made):
    _, folder = made
    data = data_of((folder / "report.html").read_text())
    for kernel in data["kernels"]:
        total = unpacked(kernel["shares"]).sum(axis=(-2, -1), dtype=np.float64)
        np.testing.assert_allclose(total + unpacked(kernel["remainder"]), 1, atol=1e-5)
        assert np.any(unpacked(kernel["remainder"])) == (kernel["name"] != "output")
        shares_NLAT = unpacked(kernel["shares"])
        for row, kept in zip(shares_NLAT, np.asarray(data["kept"], bool), strict=True):
            assert not np.any(row[..., kept])
    assert unpacked(data["patched_error"]).max() < 1e-5 < unpacked(data["alone_error"]).min()
    summary = json.loads((folder / "summary.json").read_text())
    assert max(summary["sum_error"].values()) < 1e-5 and summary["num_tokens"] > 10


def test_a_part_of_the_text_can_be_the_context(tmp_path):
    config = prompt_page.Config(
        checkpoint=checkpoint("gpt2", tmp_path),
        text=TEXT,
        remove="the lighthouse",
        num_targets=2,
        front=0,
    )
    pretrained, tokens_T, targets, kept = prompt_page.prepare(config)
    removed = set(range(len(tokens_T))) - set(pretrained.prompt(TEXT, remove=config.remove).kept)
    assert len(targets) == 2 and all(target > max(removed) for target in targets)
    for target, positions in zip(targets, kept, strict=True):
        assert positions[-1] == target and not removed & set(positions)


def test_what_cannot_be_shown_is_said_before_anything_long(made, monkeypatch, capsys):
    config, _ = made
    with pytest.raises(UsageError, match="--text is missing"):
        prompt_page.prepare(dataclasses.replace(config, text=""))
    with pytest.raises(ValueError, match=r"remove='a harbour' is not in text"):
        dataclasses.replace(config, remove="a harbour")
    with pytest.raises(ValueError, match="front must be 0 or more, got -1"):
        dataclasses.replace(config, front=-1)
    with pytest.raises(UsageError, match="leave no token with a context in front"):
        prompt_page.prepare(dataclasses.replace(config, text="Ada", front=9))
    monkeypatch.setattr(prompt_page, "MOST_NUMBERS", 100)
    with pytest.raises(UsageError, match=r"--num_targets=4: a page of 4 targets x .* has"):
        prompt_page.prepare(config)
    with pytest.raises(SystemExit):
        launch(
            prompt_page.Config,
            prompt_page.run,
            prompt_page.__doc__,
            argv=["prompt_page", "--workdir=x", "--text=a"],
        )
    assert "--checkpoint is missing" in capsys.readouterr().err


def test_the_page_is_one_file_that_asks_for_nothing(made):
    page = (made[1] / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=|url\(|@import|fetch\(|https?://""", page)
    assert page.count("</script>") == 2  # That in the prompt is escaped.


def test_packed_arrays_come_back_bit_for_bit():
    values = np.array([[1e-30, -2.5, np.pi]], np.float32)
    again = unpacked(packed(values))
    assert again.dtype == np.float32 and np.array_equal(values, again)
