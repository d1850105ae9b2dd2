"""experiments.real_composition and real_demonstrations: prompts, scores and tiny runs."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.language.composition import run as composed
from experiments.language.composition.facts import FACTS, FITTED, NEW, STATED, facts
from experiments.language.composition.report import AGREED, NAMES, USES
from experiments.language.demonstrations import run as demonstrations
from experiments.language.demonstrations.prompts import asked_prompts
from experiments.language.demonstrations.report import (
    LABELS,
    WAYS,
    Arrays,
    _choosing,
    over_random,
    verdict,
)
from experiments.language.demonstrations.sides import left_out, log_chances, scores
from experiments.language.kept.pairs import LINE, PAIRS
from experiments.tools.arrays import flatten, rebuild
from icl_jax.interop.huggingface import load, make_tiny
from icl_jax.interop.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from tests.report.helpers import texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny("llama", folder, jax.random.key(0), vocab_size=320)
    texts = [f"{LINE.format(x)} {y}\n" for x, y in PAIRS["past tense"]]
    texts += [STATED.format(x, y) + NEW.format(x) for x, y in FACTS]
    save_tokenizer(folder, train_bpe(texts, 320))
    return folder


@pytest.fixture(scope="module")
def prompt(folder):
    return asked_prompts(load_tokenizer(folder), "past tense", pool=4, asked=2, bos=1)[0]


def test_a_prompt_knows_the_tokens_of_its_demonstrations(folder, prompt):
    tokenizer = load_tokenizer(folder)
    whole = prompt.tokens()
    for member_T, (x, y) in zip(prompt.member_NT, PAIRS["past tense"], strict=False):
        assert tokenizer.decode(whole[member_T]) == f"{LINE.format(x)} {y}\n"
    assert prompt.member_NT.sum() + len(prompt.kept) == len(whole)
    assert not prompt.member_NT[:, prompt.kept].any()
    np.testing.assert_array_equal(prompt.tokens([2, 0]), prompt.in_order([0, 2]))
    assert prompt.token_groups.sum() == prompt.member_NT.sum()


def test_scores_know_no_answer_and_leave_one_out_is_really_leaving_out(folder, prompt):
    checkpoint = load(folder)
    chances_V = log_chances(checkpoint, [prompt.tokens()])[0]
    own = int(np.argmax(chances_V))
    seen = scores(checkpoint, prompt, own, 2)
    other = dataclasses.replace(prompt, answer=(prompt.answer + 1) % 320)
    again = scores(checkpoint, other, own, 2)
    np.testing.assert_array_equal(seen.demonstrations["size"], again.demonstrations["size"])
    # By token and by demonstration: the shares add up, but for what is no demonstration's.
    assert seen.greedy.shape == (2,) and 0 < seen.cosine <= 1.0001
    assert np.isneginf(seen.tokens["size"][prompt.kept]).all()
    found = left_out(checkpoint, prompt, own, float(chances_V[own]))
    without = log_chances(checkpoint, [prompt.in_order([0, 2, 3])])[0][own]
    np.testing.assert_allclose(found[1], chances_V[own] - without, atol=1e-4)


def test_the_verdict_says_so_when_the_update_does_not_beat_chance():
    zeros, ones = np.zeros(6), np.ones(6)
    ways = {"update": ones, "share": ones, "size": ones, "answer": 2 * ones, "attention": zeros,
            "gradient": zeros}  # fmt: skip

    def task(chosen):
        return Arrays(zeros, zeros, chosen, np.zeros((6, 2)), {}, {}, ones, ones, {}, None)

    good, bad = task(ways), task({**ways, "update": -ones})
    assert over_random(good, "update") == (1.0, 1.0, 1.0)
    words = verdict({"one": good, "two": good})
    assert "update does beat" in words and "lies above zero on 2 of 2" in words
    words = verdict({"one": good, "two": bad})
    assert "does not beat" in words and "below on 1" in words and "leave one out" in words


def test_tasks_stand_in_rows_of_their_own_with_their_names():
    ones, none = np.ones(6), np.zeros(6)
    ways = {way: ones for way in WAYS}
    right = {way: ones for way in (*WAYS, "none", "full", "random")}
    one = Arrays(none, none, ways, np.zeros((6, 2)), right, {}, ones, ones, {}, None)
    asks = demonstrations.Config.quick()
    words = texts(_choosing(asks, {"capitals": one, "past tense": one}).figure)
    assert {"capitals", "past tense", "random", *map(LABELS.get, ("update", "answer"))} <= set(
        words
    )
    assert "task, in the order of the table" not in words


def test_facts_are_asked_in_words_that_were_not_fitted(folder):
    made = facts(load_tokenizer(folder), 2)
    assert NEW not in FITTED and len(made.fitted[0]) == len(FITTED)
    decode = load_tokenizer(folder).decode
    assert decode(made.stated[1]) == STATED.format(*FACTS[1])
    assert f" {FACTS[0][1]}".startswith(decode([made.answers[0]]))
    assert len({thing for _, thing in FACTS}) == len(FACTS)


@pytest.mark.slow
@pytest.mark.slow
def test_tiny_runs_report(folder, tmp_path, monkeypatch):
    for module in (composed, demonstrations):
        monkeypatch.setattr(module, "real_model", lambda name, models: folder)
        monkeypatch.setitem(module.BOS, "smollm2", 1)
    config = composed.Config(facts=2, stacked=(1, 2), texts=1, length=16, rank=2, written=1)
    outcome = composed.run(config, tmp_path / "composed")
    assert {"own", "another", "layer", "context"} <= set(outcome.summary["runs"])
    small = dataclasses.replace(
        demonstrations.Config.quick(), pool=4, asked=2, texts=2, length=32, players=3
    )
    outcome = demonstrations.run(small, tmp_path / "demonstrations")
    tokens = outcome.sections[1]
    assert LABELS["size"] in tokens.verdict
    assert LABELS["size"] in {row[1] for row in tokens.tables[0].rows}
    assert len(outcome.sections) == 4 and (tmp_path / "demonstrations/report.html").exists()


def composition(**changes):
    """What a model may say of two facts."""
    rng = np.random.default_rng(0)
    runs = {name: -rng.random(2) for name in USES}
    right = dict.fromkeys(USES, np.ones(2, bool))
    one = np.full(2, -1.0)
    cosines = dict.fromkeys(AGREED, np.ones((3, 2)))
    disturbed = np.ones((2, 1))
    return composed.Arrays(
        {**runs, **changes}, right, one, one, one, one, disturbed, disturbed[0], cosines
    )


def test_a_patch_that_cannot_move_to_the_next_layer_is_said_to_be_none():
    config = composed.Config(facts=2, stacked=(1, 2))
    for made, moves in ((composition(), True), (composition(layer=np.full(2, np.nan)), False)):
        assert ("layer" in composed.summarise(config, made)["runs"]) == moves
        section = composed.sections(config, made, 3)[0]
        assert ("in the next layer it gains" in section.verdict) == moves
        assert len(section.tables[0].rows) == len(USES) - (not moves)
    arrays = flatten(composition())
    del arrays["log_chance.layer"]  # Lost is something else.
    with pytest.raises(ValueError, match="nothing was saved for log_chance.layer"):
        rebuild(composed.Arrays, arrays, NAMES)


def test_sums_and_orders_of_facts_are_drawn_as_they_stand_in_the_table():
    made = composition()
    means = {"sum": 0.9, "order": 1.0, "one": 0.5, "another": 0.1}
    cosines = {name: np.full((3, 2), mean) for name, mean in means.items()}
    config = composed.Config(facts=2, stacked=(1, 2))
    page = composed.sections(config, dataclasses.replace(made, agreed=cosines), 3)[2]
    words = texts(page.figure)
    assert {*AGREED.values(), "input side", "down kernel"} <= set(words)
    assert "0" in words  # Another order of the same facts, to the bit.


def test_what_cannot_be_chosen_or_stacked_is_refused_before_any_work():
    with pytest.raises(ValueError, match="chosen=20 are more than pool=16"):
        demonstrations.Config(chosen=20)
    with pytest.raises(ValueError, match="pairs together"):
        demonstrations.Config(asked=40)
    with pytest.raises(ValueError, match="must begin with 1"):
        composed.Config(stacked=(2,))
    with pytest.raises(ValueError, match="facts must be at most 8, got 9"):
        composed.Config(facts=9)
