"""The pages that answer, in a real browser: clicks, keys, no request, no complaint.

Needs Chromium (Debian: apt-get install chromium); pytest -m browser. With ``SHOTS`` set to a
folder, a picture of every state is left there to be looked at.
"""

import os
from pathlib import Path

import jax
import pytest

from experiments.language.prompt_page import run as prompt_page
from experiments.language.sorting import run as sorting
from icl_jax.interop.huggingface import make_tiny
from icl_jax.interop.tokenizer import save_tokenizer, train_bpe
from tests.browser.devtools import browser

pytestmark = pytest.mark.browser

TEXT = "Ada built the lighthouse in 1871.\nKarl built the harbour in 1902. Who built it?"
VIEWS = {"wide": {"width": 1200}, "phone": {"width": 420, "height": 860, "phone": True}}
VIEWS["dark"] = {"width": 1200, "dark": True}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    make_tiny("llama", folder / "model", jax.random.key(0), vocab_size=300)
    save_tokenizer(folder / "model", train_bpe([TEXT], 300))
    asked = prompt_page.Config(checkpoint=str(folder / "model"), text=TEXT, num_targets=3)
    prompt_page.run(asked, folder / "prompt")
    sorting.run(sorting.Config.quick(), folder / "sorting")
    return {name: folder / name / "report.html" for name in ("prompt", "sorting")}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


@pytest.fixture
def shots(tmp_path):
    return Path(os.environ.get("SHOTS", tmp_path))


def quiet(page, file):
    """Nothing but the file itself was asked for, and nobody complained."""
    assert set(page.requests) == {file.absolute().as_uri()}
    assert page.complaints == []


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", ("prompt", "sorting"))
def test_a_page_fits_its_window_and_asks_for_nothing(files, page, shots, name, view):
    page.requests.clear()
    page.open(files[name], **VIEWS[view])
    assert page.overflow() <= 0
    clipped = page.js(
        "[...document.querySelectorAll('button, .card, .change, .letter small, .bars .number')]"
        ".filter(e => { const b = e.getBoundingClientRect();"
        " return b.width && (b.left < -0.5 || b.right > innerWidth + 0.5); }).map(e => e.outerHTML)"
    )
    assert clipped == []
    grounds = page.luminances("body, .tokens, .matrix", "backgroundColor")
    assert all(one < 0.05 if view == "dark" else one > 0.9 for one in grounds)
    page.photograph(shots / f"{name}-{view}.png")
    quiet(page, files[name])


@pytest.mark.parametrize("name", ("prompt", "sorting"))
def test_a_page_can_be_printed(files, page, shots, name):
    page.open(files[name])
    page.print(shots / f"{name}.pdf")
    assert (shots / f"{name}.pdf").read_bytes().startswith(b"%PDF")
    assert page.cut_on_paper(642) == []


def test_tokens_tell_their_numbers_to_the_mouse_and_to_the_keys(files, page, shots):
    page.requests.clear()
    page.open(files["prompt"])
    page.hover(".token.context")
    told = page.text("#told")
    assert "% of the update (all heads); most by head" in told and told.startswith("Token 1 ")
    page.click(".token.context")
    assert page.js("document.activeElement.dataset.position") == "1"
    page.press("ArrowRight", "ArrowRight")
    assert page.js("document.activeElement.dataset.position") == "3"
    assert page.text("#told").startswith("Token 3 ")
    assert page.js("document.activeElement.getAttribute('aria-label')") == page.text("#told")
    layer = page.text("#layer-name")
    page.press("ArrowUp")
    assert page.text("#layer-name") != layer and "layer 0:" in page.text("#told")
    page.press("End")
    last = page.js("DATA.targets.at(-1)")
    assert page.text("#told").endswith("the target")
    assert page.js("document.activeElement.dataset.position") == str(last)
    page.press("ArrowLeft", "Enter")  # The one before becomes the target.
    assert (
        page.js("state.target") == 1 and page.js("document.querySelector('#target').value") == "1"
    )
    assert page.js("document.querySelectorAll('.token.unseen').length") == 1
    page.photograph(shots / "prompt-keys.png")
    quiet(page, files["prompt"])


def test_layer_head_and_kernel_are_chosen_and_the_sum_is_always_one(files, page, shots):
    page.requests.clear()
    page.open(files["prompt"])
    kernels = page.js("DATA.kernels.map(kernel => kernel.name)")
    for index, kernel in enumerate(kernels):
        page.choose("#kernel", index)
        assert page.text("#sum").endswith("= 100.0 %")
        assert ("no remainder" in page.text("#sum")) == (kernel == "output")
        page.photograph(shots / f"prompt-{kernel}.png", whole=False)
    page.choose("#kernel", 1)
    page.click("#heads button:nth-of-type(2)")
    assert page.js("state.head") == 1 and "of which head 1" in page.text("#sum")
    shown = page.js("share(state.layer, 2)")
    assert shown == page.js("DATA.kernels[1].shares.at(state.target, state.layer, 1, 2)")
    page.click("#heads button:nth-of-type(2)")
    assert page.js("state.head") == -1
    page.click("#layer", across=0.01)
    page.press("ArrowRight")
    assert page.js("state.layer") == 1
    page.click("#all", across=0.1, down=0.1)
    assert page.js("state.layer") == 0
    page.press("ArrowDown")
    assert "layer 1" in page.text("#told")
    quiet(page, files["prompt"])


def test_the_walk_goes_step_by_step_with_buttons_and_keys(files, page, shots):
    page.requests.clear()
    page.open(files["sorting"])
    names = page.js("STEPS.map(step => step.name)")
    assert len(names) == 3 + 3 * 13 + 3 and names[:3] == ["Letter", "Position", "Embedding"]
    for name in ("Norm", "Queries", "Keys", "Values", "Attention", "Projection", "MLP, hidden"):
        assert names.count(name) in (3, 6)
    page.click("#next")
    assert page.text("#step-name") == "2 of 45: in, Position"
    assert page.js("document.querySelectorAll('[aria-current=step]').length") == 1
    page.click("#step", across=0.5)
    at = page.js("state.step")
    page.press("ArrowRight")
    assert page.js("state.step") == at + 1
    inside = page.js(
        "(b => b.top > 0 && b.bottom < innerHeight)"
        "(document.querySelector('[aria-current=step]').getBoundingClientRect())"
    )
    assert inside
    page.photograph(shots / "sorting-step.png", whole=False)
    page.click("#back")
    assert page.js("state.step") == at
    quiet(page, files["sorting"])


def test_letters_rows_and_inputs_are_chosen_and_the_changed_weights_follow(files, page, shots):
    page.requests.clear()
    page.open(files["sorting"])
    page.click(".letter:nth-child(4)")
    assert "token 3" in page.text("#change-0 h3")
    page.press("ArrowRight")
    assert "token 4" in page.text("#change-1 h3")
    for layer in range(3):
        error = page.text(f"#change-{layer} .patched-error")
        assert error == page.js(f"number(W.patched_error.at(0, 4, {layer}))")
        assert float(error) < 1e-5
    page.press("Home")
    assert "Nothing stands before it" in page.text("#change-2")
    page.photograph(shots / "sorting-first.png")
    page.click("#step-3 .matrix", across=0.3, down=0.75)
    token = page.js("state.token")
    assert token == 8 and page.js("state.step") == 3
    page.choose("#input", 1)
    assert page.text("#letters b") == page.js("DATA.tokens[1][0]")
    page.hover("#step-5 .matrix", across=0.01, down=0.05)
    value = page.js("number(S.key.at(1, 0, 0, 0, 0))")
    assert page.text("#told").endswith(f"head 0, feature 0: {value}")
    page.photograph(shots / "sorting-second.png")
    quiet(page, files["sorting"])
