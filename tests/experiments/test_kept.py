"""experiments.kept: tasks of enough pairs, verdicts in words, and a small run."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.language.kept import run as kept
from experiments.language.kept.arrays import Answered, Arrays, Descended, Solved
from experiments.language.kept.pairs import LINE, PAIRS
from experiments.language.kept.report import best_rung, sections, share, summarise, verdict
from experiments.language.kept.sides import Sizes, answer, lessons_of
from experiments.tools.arrays import flatten, rebuild
from icl_jax.interop.huggingface import load, make_tiny
from icl_jax.interop.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from icl_jax.records import WorkdirError
from tests.report.helpers import texts

SIZES = Sizes(2, 3, 2, 4, 2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny("llama", folder, jax.random.key(0), vocab_size=320)
    texts = [f"{LINE.format(x)} {y}\n" for x, y in PAIRS["past tense"]]
    save_tokenizer(folder, train_bpe(texts, 320))
    return folder


def test_there_are_five_tasks_and_more_and_pairs_enough_for_all_uses():
    config = kept.Config()
    assert len(PAIRS) >= 5
    needed = config.shown + config.calibration + config.held_out + config.asked
    for pairs in PAIRS.values():
        assert len({x for x, _ in pairs}) == len(pairs) >= needed
    with pytest.raises(ValueError, match="pairs together"):
        dataclasses.replace(config, asked=30)


def test_no_question_is_used_twice_and_answers_are_what_the_tokens_say(folder):
    tokenizer = load_tokenizer(folder)
    lessons, held, asked = lessons_of(load(folder), tokenizer, "past tense", SIZES, 1, 0)
    pairs = PAIRS["past tense"]
    assert tokenizer.decode(lessons.context) == "".join(
        f"{LINE.format(x)} {y}\n" for x, y in pairs[:2]
    )
    texts = [tokenizer.decode(one) for one in (*lessons.texts, *held.texts, *asked.texts)]
    for text, (x, _) in zip(texts, pairs[2:], strict=False):
        assert text.startswith(LINE.format(x))
    assert len(texts) == 9
    for text, token, (_, y) in zip(asked.texts, asked.answers, pairs[7:], strict=False):
        assert f" {y}".startswith(tokenizer.decode([token])) and len(text)


def test_a_context_moves_the_answers_of_the_same_questions(folder):
    checkpoint = load(folder)
    made = lessons_of(checkpoint, load_tokenizer(folder), "past tense", SIZES, 1, 0)
    lessons, _, asked = made
    alone = answer(checkpoint, lessons, asked)
    full = answer(checkpoint, lessons, asked, in_context=True)
    assert alone.log_chance.shape == (4,) and np.all(alone.log_chance < 0)
    assert np.abs(alone.log_chance - full.log_chance).max() > 1e-3


RUNGS = ("thought", "input", "down", "at_once", "both", "full_rank")


def task_of(**values):
    """A task in which every side but those that are given says the right answer at -3 nats."""
    one = np.array(1.0)

    def said(chance, *cost, kind=Answered):
        return kind(np.full(2, chance), np.array([True, False]), *cost)

    rungs = {name: said(values.get(name, -3.0), one, one, kind=Solved) for name in RUNGS}
    same, more = (
        said(values.get(name, -3.0), one, one, one, one, kind=Descended)
        for name in ("lora_same", "lora_more")
    )
    return Arrays(said(-5.0), said(-1.0), rungs, same, more, np.array(["Q: a"]))


def test_the_verdict_counts_tasks_and_names_those_that_are_lost():
    tasks = {"one": task_of(both=-2.0), "two": task_of(lora_more=-1.0)}
    assert share(tasks["one"], tasks["one"].rungs["both"]).value == 0.75
    assert best_rung(tasks["one"]) == "both"
    words = verdict(tasks)
    assert "LoRA, same seconds on 2 of 2 tasks" in words
    assert "LoRA, more seconds on 1 of 2 tasks, less on two" in words
    found = {"smollm2": tasks}
    assert summarise(found)["models"]["smollm2"]["one"]["best"] == "both"
    shown, _ = sections(kept.Config(), found)
    words = texts(shown.figure)
    assert {"one", "two", "no context", "full context"} <= set(words)
    assert "task, in the order of the table" not in words


def test_a_task_is_read_back_as_it_was_and_a_side_too_few_is_an_error():
    arrays = flatten(task_of(thought=-2.5))
    found = rebuild(Arrays, arrays, {"rungs": RUNGS})
    assert found.rungs["thought"].log_chance.tolist() == [-2.5, -2.5]
    assert list(found.rungs) == list(RUNGS) and found.written.tolist() == ["Q: a"]
    del arrays["lora_more.right"]
    with pytest.raises(ValueError, match="nothing was saved for lora_more.right"):
        rebuild(Arrays, arrays, {"rungs": RUNGS})


def test_a_rung_that_was_asked_for_and_is_not_there_is_an_error():
    arrays = flatten(task_of())
    lost = {name: array for name, array in arrays.items() if not name.startswith("rungs.input.")}
    with pytest.raises(ValueError, match="nothing was saved for rungs.input"):
        rebuild(Arrays, lost, {"rungs": RUNGS})
    with pytest.raises(ValueError, match="rungs.down is not asked for"):
        rebuild(Arrays, lost, {"rungs": [name for name in RUNGS if name not in ("input", "down")]})


def test_a_ladder_without_thought_vectors_is_drawn_without_them():
    rungs = ("down", "both")
    config = dataclasses.replace(kept.Config.quick(), rungs=rungs)
    whole = task_of()
    few = dataclasses.replace(whole, rungs={name: whole.rungs[name] for name in rungs})
    page = sections(config, {"smollm2": {"one": few}})[0]
    assert "thought vector" not in page.figure
    assert [row[1] for row in page.tables[0].rows][:2] == ["down kernel", "both, in order"]
    # A record that lacks what the configuration asked for has no page without it.
    with pytest.raises(KeyError, match="thought"):
        sections(kept.Config.quick(), {"smollm2": {"one": few}})


@pytest.mark.slow
def test_a_small_run_measures_every_side(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "real_model", lambda name, models: folder)
    monkeypatch.setitem(kept.BOS, "smollm2", 1)
    config = dataclasses.replace(
        kept.Config.quick(), tasks=("past tense",), rank=2, calibration=4, held_out=2, asked=4
    )
    outcome = kept.run(config, tmp_path)
    told = outcome.summary["models"]["smollm2"]["past tense"]
    assert {"thought", "both", "lora_same", "lora_more"} <= set(told)
    assert (tmp_path / "report.html").exists()
    monkeypatch.setattr(kept, "measure", None)  # Only the report again.
    assert kept.run(config, tmp_path).summary == outcome.summary
    (tmp_path / "smollm2" / "past_tense.npz").rename(tmp_path / "smollm2" / "past_tense.json")
    with pytest.raises(WorkdirError, match="an earlier version measured this"):
        kept.run(config, tmp_path)
