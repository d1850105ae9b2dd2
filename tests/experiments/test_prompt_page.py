"""The page of a prompt: its numbers are the library's, and what cannot be shown is said in time."""

import dataclasses
import html
import json
import re

import jax
import numpy as np
import pytest

import icl_jax
from experiments.language.interactive.shell import packed, unpacked
from experiments.language.prompt_page import run as prompt_page
from experiments.language.prompt_page.measure import backwards
from experiments.language.prompt_page.page import claims
from experiments.tools.flags import UsageError, launch
from icl_jax.interop.huggingface import make_tiny
from icl_jax.interop.tokenizer import save_tokenizer, train_bpe
from icl_jax.language.attribution import attributable, attribute
from icl_jax.language.prompt import full_logits
from icl_jax.report.page import number

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


def test_the_page_says_per_claim_what_was_found_beside_its_nulls(made):
    config, folder = made
    page = (folder / "report.html").read_text()
    verdicts = [html.unescape(one) for one in re.findall(r'<p class="verdict">(.*?)</p>', page)]
    told = json.loads((folder / "summary.json").read_text())
    assert verdicts[0] == (
        f"Its logits are off by at most {number(told['patched_error'])}, relative; with the "
        "model's own weights, without a change, by at least "
        f"{number(told['alone_error'])}, and with those of the same context backwards, the nearest "
        f"null, by at least {number(told['other_error'])}."
    )
    assert f"has {100 * told['most_by_one']:.1f} % of it" in verdicts[1]
    even = f"{100 * told['even_share']:.1f} %"
    assert f"if all wrote the same, each had {even}." in verdicts[1]
    # The same context backwards is another prompt, whose own run the null has to be.
    model = icl_jax.load(config.checkpoint, dtype=np.float32)
    tokens = np.asarray(model.prompt(TEXT).tokens)
    targets = data_of(page)["targets"]
    errors, even = [], []
    for target in targets:
        other = tokens.copy()
        other[1:target] = tokens[1:target][::-1]
        run = (model.model, model.params)
        full, found = (full_logits(*run, each, [target])[-1] for each in (tokens, other))
        errors.append(np.linalg.norm(found - full) / np.linalg.norm(full))
        even.append(1 / (target - 1))
    np.testing.assert_allclose(told["other_error"], min(errors), rtol=1e-3)
    np.testing.assert_allclose(told["even_share"], np.median(even))
    shares_NLT = unpacked(data_of(page)["kernels"][0]["shares"]).sum(axis=-2)
    np.testing.assert_allclose(told["most_by_one"], np.median(shares_NLT.max(axis=-1)))


def test_a_context_that_reads_the_same_backwards_is_no_null():
    tokens_T = np.array([5, 7, 8, 7, 9])
    assert backwards(tokens_T, [0, 4]).tolist() == [5, 7, 8, 7, 9]
    assert backwards(tokens_T, [0, 3]).tolist() == [5, 8, 7, 7, 9]
    told = {
        "patched_error": 1e-7,
        "alone_error": 2.5,
        "other_error": None,
        "sum_error": {"output": 2e-7},
        "remainder": {"output": 0.0},
        "most_by_one": 0.5,
        "even_share": 0.25,
    }
    alone, written = (claim.verdict for claim in claims(told, "a part"))
    assert alone.endswith("without a change, by at least 2.50.")
    assert written.startswith("Shares add up to 1 to 2.0e-07, without a remainder. The token")


def test_the_foot_of_the_page_has_the_whole_configuration(made):
    _, folder = made
    foot = (folder / "report.html").read_text().partition("<footer>")[2].partition("</footer>")[0]
    assert "<summary>Configuration</summary>" in foot and "<code>python -m experiments" in foot
    told = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", foot))
    assert told["--num_targets"] == "4" and told["--front"] == "1"
    assert set(told) == {f"--{field.name}" for field in dataclasses.fields(prompt_page.Config)}


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
