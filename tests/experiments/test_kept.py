"""experiments.kept: tasks of enough pairs, verdicts in words, and a small run."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.language.kept import run as kept
from experiments.language.kept.arrays import Answered, Arrays, Descended, Said, Solved
from experiments.language.kept.pairs import LINE, PAIRS
from experiments.language.kept.report import (
    best_rung,
    lost,
    right_share,
    sections,
    share,
    summarise,
    verdict,
)
from experiments.language.kept.sides import Sizes, answer, material
from experiments.language.kept.tasks import TASKS
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


def test_there_are_ten_tasks_and_questions_enough_for_all_uses():
    config = kept.Config()
    assert {"translation", "currencies", "instruction", "recall", "page"} <= set(config.tasks)
    needed = config.calibration + config.held_out + config.asked
    for task in TASKS.values():
        context, pairs = task.behind(config.shown)
        assert len({x for x, _ in pairs}) == len(pairs) >= needed and context.endswith("\n")
    with pytest.raises(ValueError, match="39 pairs together, and .* has 38 that are not"):
        dataclasses.replace(config, asked=17)


@pytest.mark.parametrize("name", ["recall", "page"])
def test_a_fact_is_asked_in_words_that_were_not_fitted_and_the_context_has_it(name):
    config = kept.Config()
    context, pairs = TASKS[name].behind(config.shown)
    fitted = pairs[: config.calibration]
    asked = pairs[config.calibration + config.held_out :][: config.asked]
    assert sorted(y for _, y in fitted) == sorted(y for _, y in asked)
    assert len({y for _, y in fitted}) == 16 and all(y in context for _, y in fitted)
    assert not {x for x, _ in fitted} & {x for x, _ in asked}


@pytest.mark.parametrize("name", ["past tense", "instruction"])
def test_no_question_is_used_twice_and_answers_are_what_the_tokens_say(name, folder):
    tokenizer, task = load_tokenizer(folder), TASKS[name]
    made = material(load(folder), tokenizer, task, SIZES, 1, 0)
    context, pairs = task.behind(2)
    assert tokenizer.decode(made.lessons.context) == context
    if name == "past tense":
        assert context == "".join(f"{LINE.format(x)} {y}\n" for x, y in task.pairs[:2])
    kinds = (made.lessons.texts, made.held_out.texts, made.asked.texts)
    texts = [tokenizer.decode(one) for kind in kinds for one in kind]
    for text, (x, _) in zip(texts, pairs, strict=False):
        assert text.startswith(task.question(x))
    assert len(texts) == 9
    for kind, first in ((made.fitted, 0), (made.held_out, 3), (made.asked, 5)):
        for text, token, (_, y) in zip(kind.texts, kind.answers, pairs[first:], strict=False):
            assert f" {y}".startswith(tokenizer.decode([token])) and len(text)


@pytest.mark.parametrize("name", ["past tense", "instruction"])
def test_a_context_moves_the_answers_of_the_same_questions(name, folder):
    checkpoint = load(folder)
    made = material(checkpoint, load_tokenizer(folder), TASKS[name], SIZES, 1, 0)
    alone = answer(checkpoint, made.lessons, made.asked)
    full = answer(checkpoint, made.lessons, made.asked, in_context=True)
    assert alone.log_chance.shape == (4,) and np.all(alone.log_chance < 0)
    assert np.abs(alone.log_chance - full.log_chance).max() > 1e-3


RUNGS = ("thought", "input", "down", "at_once", "both", "full_rank")


def task_of(fitted=(), held_out=(), right=1, **values):
    """A task in which every side but those that are given says the right answer at -3 nats, to new
    questions and, but for those that ``fitted`` has, to fitted ones; ``right``, of 2, are right."""
    one = np.array(1.0)

    def said(chance, *cost, right=right, fitted=None, kind=Said):
        found = (np.full(2, each) for each in (chance, chance if fitted is None else fitted))
        return kind(*(Answered(each, np.arange(2) < right) for each in found), *cost)

    def side(name, kind, *cost):
        chance = values.get(name, -3.0)
        held = np.array(dict(held_out).get(name, -chance))
        return said(chance, one, held, *cost, fitted=dict(fitted).get(name), kind=kind)

    rungs = {name: side(name, Solved, one) for name in RUNGS}
    same, more = (side(name, Descended, one, one) for name in ("lora_same", "lora_more"))
    ends = said(-5.0, right=0), said(-1.0, right=2)
    return Arrays(*ends, rungs, same, more, np.array(["Q: a"]))


def test_the_verdict_counts_tasks_and_names_those_that_are_lost():
    tasks = {"one": task_of(both=-2.0), "two": task_of(lora_more=-1.0)}
    assert share(tasks["one"], tasks["one"].rungs["both"]).value == 0.75
    assert best_rung(tasks["one"]) == "both"
    words = verdict(tasks)
    assert "LoRA, same seconds on 2 of 2 tasks" in words
    assert "LoRA, more seconds on 1 of 2 tasks (as many right answers on 2), less on two" in words
    found = {"smollm2": tasks}
    told = summarise(found)["models"]["smollm2"]
    assert told["one"]["best"] == "both" and told["one"]["both"]["held_out"] == 2.0
    assert told["one"]["lost"] == {} and list(told["two"]["lost"]) == ["lora_more"]
    shown, _ = sections(kept.Config(), found)
    words = texts(shown.figure)
    assert {"one", "two", "no context", "full context"} <= set(words)
    assert "task, in the order of the table" not in words


def test_the_best_rung_is_best_on_held_out_questions_and_not_on_those_that_are_reported():
    task = task_of(both=-2.0, down=-1.5, held_out={"both": 0.5})
    assert best_rung(task) == "both" and best_rung(task, "both") == "down"
    assert "keeps 0.75 to 0.75 of the gap" in verdict({"one": task})
    failed = task_of(held_out={name: np.nan for name in RUNGS[:-2]}, both=-4.0)
    assert best_rung(failed) == "both"  # A loss that is not finite is not the best.


def test_a_lost_task_says_whether_it_was_lost_in_generalising_or_in_capacity():
    kept_it = task_of(lora_more=-2.0, fitted={"lora_more": -2.0, "thought": -1.0})
    (one,) = lost(kept_it).values()
    assert one == ("thought", (0.5, 0.75), (1.0, 0.75)) and one.where == "generalising"
    words = verdict({"easy": kept_it})
    told = "thought vector 0.50 against 0.75, of fitted questions 1.00 against 0.75: lost in gen"
    assert f"less on easy ({told}" in words
    (one,) = lost(task_of(lora_more=-2.0)).values()
    assert one.fitted == (0.5, 0.75) and one.where == "capacity"
    assert not lost(task_of())


def test_of_right_answers_there_is_a_share_only_where_the_context_gives_more_of_them():
    task = task_of()
    assert right_share(task, task.rungs["both"]).value == 0.5
    assert "and 0.50 to 0.50 of that in right answers (no context" in verdict({"one": task})
    flat = dataclasses.replace(task, context=task.nothing)
    assert right_share(flat, flat.rungs["both"]) is None
    wrong = Answered(np.full(2, -1.0), np.zeros(2, bool))
    mixed = {"one": task, "flat": dataclasses.replace(task, context=Said(wrong, wrong))}
    assert "of that in right answers (no gap in right answers on flat)" in verdict(mixed)
    assert "of that in right" not in verdict({"flat": mixed["flat"]})
    shown, _ = sections(kept.Config(), {"smollm2": mixed})
    rights = [row[3] for row in shown.tables[0].rows]
    assert rights.count("no gap") == len(RUNGS) + 4


def test_a_task_is_read_back_as_it_was_and_a_side_too_few_is_an_error():
    arrays = flatten(task_of(thought=-2.5))
    found = rebuild(Arrays, arrays, {"rungs": RUNGS})
    assert found.rungs["thought"].new.log_chance.tolist() == [-2.5, -2.5]
    assert list(found.rungs) == list(RUNGS) and found.written.tolist() == ["Q: a"]
    del arrays["lora_more.new.right"]
    with pytest.raises(ValueError, match="nothing was saved for lora_more.new.right"):
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
