"""The letter-sorting GPT and its page: the numbers are the library's, and a trained model sorts."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.language.interactive.shell import unpacked
from experiments.language.sorting import run as sorting
from experiments.language.sorting.measure import KERNEL
from experiments.language.sorting.model import (
    ids,
    inputs,
    sequences,
    share_sorted,
    written,
)
from experiments.language.sorting.page import num_parameters
from icl_jax.blocks.functional import functional
from icl_jax.language.attribution import attribute
from icl_jax.language.prompt import full_logits, prompt_patches
from icl_jax.report.page import number
from icl_jax.stack.run import forward

QUICK = sorting.Config.quick()
CONFIG = dataclasses.replace(
    QUICK,
    inputs=("CABBAC", "BBCAAC"),
    num_held_out=4,
    training=dataclasses.replace(QUICK.training, num_steps=60),
)


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("sorting") / "run"
    sorting.run(CONFIG, workdir)
    return workdir


@pytest.fixture(scope="module")
def data(whole_run):
    page = (whole_run / "report.html").read_text()
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


@pytest.fixture(scope="module")
def model(whole_run):
    model, found, _ = sorting.trained(CONFIG, whole_run)  # Read back: it is done.
    return model, found.params


def test_it_has_about_eighty_five_thousand_parameters(model):
    assert num_parameters() == 85_728
    assert sum(leaf.size for leaf in jax.tree.leaves(model[1])) == 85_728


def test_every_input_is_trained_on_or_held_out():
    learned, held_out = inputs(145, 0)
    every = {tuple(row) for row in np.concatenate([learned, held_out]).tolist()}
    assert len(learned) == 584 and len(every) == 729
    read, said = sequences(jnp.asarray(ids("CABBAC"))[None])
    assert read[0].tolist() == ids("CABBACAABBC").tolist() and said[0].tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
    ]
    with pytest.raises(ValueError, match="'ABD' has letters other than A, B, C"):
        ids("ABD")


def test_writing_is_the_likeliest_letter_every_time(model):
    network, params = model
    tokens = ids("CABBAC")
    for _ in range(6):
        logits_KV = full_logits(network, params, tokens, np.arange(len(tokens)))
        tokens = np.append(tokens, int(np.argmax(logits_KV[-1]))).astype(np.int32)
    assert written(network, params, ids("CABBAC")[None])[0].tolist() == tokens[6:].tolist()


def test_the_steps_of_the_page_are_the_models_run(data, model):
    network, params = model
    assert data["inputs"] == ["CABBAC", "BBCAAC"] and data["tokens"][0] == list("CABBACAABBC")
    read_T = ids("CABBACAABBC")
    steps = {name: unpacked(entry)[:1] for name, entry in data["steps"].items()}
    want = network.apply({"params": params}, read_T)
    np.testing.assert_allclose(steps["logits"][0], want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(steps["probability"][0].sum(-1), 1, rtol=1e-5)
    layers = functional(network, params)
    stream_TD = network.apply({"params": params}, read_T, method="embed")
    np.testing.assert_allclose(steps["residual"][0, 0], stream_TD, atol=1e-6)
    np.testing.assert_allclose(
        steps["output"][0, -1], forward(layers, stream_TD), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_allclose(steps["weights"][0].sum(-1), 1, rtol=1e-5)
    assert steps["query"].shape == (1, 3, 11, 3, 16) and steps["hidden"].shape == (1, 3, 11, 192)


def test_the_weight_changes_of_the_page_are_the_patches(data, model):
    network, params = model
    read_T, token = ids("CABBACAABBC"), 7
    bank = prompt_patches(network, params, read_T, [token])
    changes = {name: unpacked(entry)[0, token] for name, entry in data["changes"].items()}
    found = attribute(network, params, read_T, [token], of=KERNEL)
    np.testing.assert_allclose(changes["shares"], found.shares_LAT, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(changes["remainder"], found.remainder_L, rtol=1e-3, atol=1e-4)
    for layer, (_, own) in enumerate(functional(network, params)):
        patch, kernel_DH = bank.layer(layer), own["mlp"][KERNEL]["kernel"]
        right_H = patch.input.delta_D[0] @ kernel_DH
        np.testing.assert_allclose(changes["v"][layer], patch.input.v_D[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(changes["right"][layer], right_H, rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(changes["bias"][layer], patch.output.delta_D[0], atol=1e-4)
        size = np.linalg.norm(patch.input.v_D[0]) * np.linalg.norm(right_H)
        relative = size / np.linalg.norm(kernel_DH)
        np.testing.assert_allclose(changes["relative"][layer], relative, rtol=1e-3)


def test_a_token_alone_with_the_changed_weights_gives_the_same(data):
    changes = {name: unpacked(entry)[:, 1:] for name, entry in data["changes"].items()}
    assert changes["patched_error"].max() < 1e-5
    assert changes["alone_error"].min() > 1e-3 and changes["other_error"].max() > 1e-2
    sums = changes["shares"].sum(axis=(-2, -1), dtype=np.float64) + changes["remainder"]
    np.testing.assert_allclose(sums, 1, atol=1e-4)
    np.testing.assert_allclose(changes["bias_shares"].sum(axis=(-2, -1)), 1, atol=1e-4)
    for entry in data["changes"].values():
        first = unpacked(entry)[:, 0]
        assert np.all(np.isfinite(first))
    assert not np.any(unpacked(data["changes"]["shares"])[:, 0])


def test_the_page_says_per_claim_what_was_found_beside_its_nulls(whole_run, data):
    page = (whole_run / "report.html").read_text()
    sorts, alone, shares = re.findall(r'<p class="verdict">(.*?)</p>', page)
    told = json.loads((whole_run / "summary.json").read_text())
    assert f"before training {100 * told['untrained_sorted']:.1f} %" in sorts
    changes = {name: unpacked(entry)[:, 1:] for name, entry in data["changes"].items()}
    other = number(float(np.median(changes["other_error"])))
    assert f"the nearest null, {other} (median)" in alone
    assert f"at least {number(float(changes['alone_error'].min()))} off" in alone
    assert f"without the remainder {number(told['remainder'])} is missing (median)" in shares
    foot = page.partition("<footer>")[2]
    assert "<dt>--training.num_steps</dt><dd>60</dd>" in foot
    assert "<dt>--inputs</dt><dd>CABBAC,BBCAAC</dd>" in foot


def test_blocks_are_counted_from_0(whole_run):
    page = (whole_run / "report.html").read_text()
    assert re.findall(r">(Block \d)<", page) == ["Block 0", "Block 1", "Block 2"]
    assert re.findall(r'id="block-(\w+)"', page) == ["in", "0", "1", "2", "out"]


def test_a_run_that_is_done_is_not_done_again(whole_run, monkeypatch):
    monkeypatch.setattr(sorting, "measure", None)
    sorting.run(CONFIG, whole_run)


def test_what_cannot_be_walked_is_refused():
    with pytest.raises(ValueError, match="inputs must be 6 letters of A, B and C each, got 'ABX"):
        sorting.Config(inputs=("ABCABC", "ABXABC"))
    with pytest.raises(ValueError, match="inputs must be two or more"):
        sorting.Config(inputs=("ABCABC",))
    with pytest.raises(ValueError, match="num_held_out=729 must be from num_inputs=5 to 728"):
        sorting.Config(num_held_out=729)


@pytest.mark.slow
def test_a_trained_model_sorts_what_it_never_saw(tmp_path):
    config = sorting.Config()
    model, found, before = sorting.trained(config, tmp_path)
    _, held_out = inputs(config.num_held_out, config.split_seed)
    assert share_sorted(model, found.params, held_out) >= 0.99
    assert share_sorted(model, before, held_out) < 0.1
