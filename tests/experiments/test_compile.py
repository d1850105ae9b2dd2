"""experiments.compile on a tiny random checkpoint: what it writes, measures and refuses."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.language.compile import run as compiling
from experiments.language.compile.arrays import (
    Arrays,
    Closed,
    Compiled,
    Descended,
    Heard,
    Lora,
    Sides,
    Tried,
)
from experiments.language.compile.report import sections, summarise, verdict
from experiments.language.compile.sides import (
    Lessons,
    descend_for,
    lora_memory,
    padded,
    solve_memory,
)
from experiments.tools.arrays import flatten, rebuild
from experiments.tools.flags import UsageError
from icl_jax.interop.banks import load_static
from icl_jax.interop.huggingface import load, make_tiny
from icl_jax.interop.tokenizer import load_tokenizer, save_tokenizer, train_bpe
from icl_jax.language.compile import static_logits
from icl_jax.language.prompt import full_logits
from icl_jax.patches.fit import Fit
from icl_jax.records import Run
from icl_jax.report.page import number
from tests.helpers import relative_error
from tests.report.helpers import texts

TEXT = "The lighthouse on Gull Rock was built in 1871 by Ada Brandt. It is red and white.\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    make_tiny("llama", folder / "tiny", jax.random.key(0), vocab_size=300)
    save_tokenizer(folder / "tiny", train_bpe([TEXT] * 5, 300))
    (folder / "context.txt").write_text(TEXT)
    return folder


def config(folder, **changes):
    named = {"checkpoint": str(folder / "tiny"), "context": str(folder / "context.txt")}
    quick = compiling.Config.quick()
    return type(quick)(**{**vars(quick), **named, **changes})


def test_lora_learns_what_the_model_wrote_and_not_what_it_was_given(folder):
    checkpoint = load(folder / "tiny")
    texts = [np.array([5, 6, 7, 8]), np.array([9, 10, 11])]
    lessons = Lessons(np.array([3, 4]), texts, [2, 0], 1)
    tokens_BT, learnt_BT = padded(lessons, checkpoint.model)
    assert np.asarray(tokens_BT)[0, :5].tolist() == [1, 5, 6, 7, 8]
    places = [np.flatnonzero(row).tolist() for row in np.asarray(learnt_BT)]
    assert places == [[3, 4], [1, 2, 3]]  # BOS is there from the start.
    alone = padded(Lessons(np.array([3]), texts, [0, 0], None), checkpoint.model)[1]
    assert [np.flatnonzero(row).tolist() for row in np.asarray(alone)] == [[1, 2, 3], [1, 2]]

    def loss(params):
        (logits,) = full_logits(checkpoint.model, params, [np.array([1, 5, 6, 7, 8])], [[2, 3]])
        chances = jax.nn.log_softmax(logits)
        return -float(chances[0, 7] + chances[1, 8])

    found = descend_for(checkpoint, lessons, 2, 1e-2, [0.0, 1.0], jax.random.key(0), loss)
    start, end = found.path
    assert start.steps == 0 and end.steps > 1 and end.seconds >= 1
    assert start.held_out == pytest.approx(loss(checkpoint.params))
    assert end.held_out < start.held_out


def made(lora=True):
    """What a run might have measured, of two queries."""
    one, top1 = np.array(1.0), np.array([0.5, 1.0])

    losses = np.array([3.5, 2.0, 1.0, 0.5])[:, None] * np.ones(2)
    path = Descended(losses, np.ones((4, 2)), np.array([0.3, 1.0, 3.0, 10.0]), np.arange(1, 5),
                     np.full(4, 1e-3), losses[:, 0])  # fmt: skip
    sides = Sides(
        nothing=Heard(np.full(2, 4.0), top1),
        thought=Closed(np.full(2, 3.0), top1, one, np.array(2_000_000), one),
        ridge=Compiled(
            np.full(2, 1.0), top1, one, np.array(3_500_000), one, np.array(8), np.array(0.1)
        ),
        lora=Lora(np.array([0.25, 1.0, 3.0, 10.0]), path, np.array(7e6)) if lora else None,
        tried=Tried(np.array([8, 8]), np.array([0.1, 1.0]), np.array([0.2, 0.3])),
    )
    return Arrays(sides, np.array(["a query"]), np.array(20), np.array(30))


@pytest.mark.parametrize("lora", [True, False])
def test_what_was_measured_is_read_back_and_told(lora):
    arrays = made(lora)
    found = rebuild(Arrays, flatten(arrays), {"sides.lora": lora})
    assert (found.sides.lora is None) == (not lora)
    about = {"export": "peft", "written": "adapter"}
    told = summarise(about, found)
    assert told["runs"]["ridge"]["share"] == 0.75 and told["written"] == "adapter"
    assert told["runs"]["nothing"]["share"] == 0 and "seconds" not in told["runs"]["nothing"]
    rival = "LoRA by descent, 10 times the seconds" if lora else "thought vector"
    assert f"{'less' if lora else 'more'} than the best rival, {rival}" in verdict(found.sides)
    kept, paid, tried = sections(about, found)
    assert len(kept.tables[0].rows) == (6 if lora else 4)
    assert len(paid.tables[0].rows) == (7 if lora else 3)
    assert told["runs"]["ridge"]["memory"] == 3_500_000
    assert "Rank 8 and ridge weight 0.100 are the best of 2" in tried.verdict
    ends = {row[0]: row[1] for row in tried.tables[-1].rows}
    assert f"asked it has {number(ends['compiled (closed form)'])}, no context " in tried.verdict
    assert ends["no context"] == arrays.sides.nothing.kl.mean() > ends["compiled (closed form)"]


def test_a_curve_of_descent_stands_beside_the_closed_forms_as_points():
    arrays = made()
    about = {"export": "none", "written": None}
    kept, paid, _ = sections(about, arrays)
    assert "1.00 seconds and 3.50 MB the closed form has a KL divergence of 1.00" in paid.verdict
    assert "no context 4.00" in paid.verdict
    assert "with 7.00 MB, is as good after 3 times the seconds; its best is 0.500" in paid.verdict
    rows = [label for label, *_ in paid.tables[0].rows if "LoRA" in label]
    times = [f"LoRA by descent, {time} times the seconds" for time in ("0.25", "1", "3", "10")]
    assert rows == times
    assert [label for label, *_ in kept.tables[0].rows if "LoRA" in label] == [times[1], times[3]]
    shown = {"LoRA by descent", "compiled (closed form)", "thought vector", "no context"}
    assert shown <= set(texts(paid.figure))
    lora = arrays.sides.lora
    assert (lora.same.kl == 2.0).all() and (lora.more.kl == 0.5).all()
    assert summarise(about, arrays)["lora"]["kl"] == [3.5, 2.0, 1.0, 0.5]
    better = dataclasses.replace(arrays.sides.ridge, kl=np.full(2, 0.1))
    sides = dataclasses.replace(arrays.sides, ridge=better)
    _, paid, _ = sections(about, dataclasses.replace(arrays, sides=sides))
    assert "not as good in 10 times the seconds; its best is 0.500, after 10 times" in paid.verdict


def test_the_states_of_more_queries_ask_for_more_memory_and_a_rank_for_more_of_adams(folder):
    checkpoint = load(folder / "tiny")
    few, many = (
        Lessons(np.array([3, 4]), [np.array([5, 6, 7, 8])] * count, [2] * count, 1)
        for count in (2, 32)
    )
    assert 0 < solve_memory(checkpoint, few, Fit()) < solve_memory(checkpoint, many, Fit())
    assert 0 < lora_memory(checkpoint, few, 1) < lora_memory(checkpoint, few, 8)


@pytest.mark.parametrize("times", [(0.5, 2.0), (2.0, 1.0), (1.0, 1.0), ()])
def test_times_without_the_same_seconds_or_out_of_order_are_refused(times):
    with pytest.raises(ValueError, match="times must increase and have 1"):
        dataclasses.replace(compiling.Config(), times=times)


def test_a_single_weight_is_not_told_as_the_best_of_many():
    arrays = made()
    one = Tried(np.array([8]), np.array([0.1]), np.array([0.2]))
    arrays = dataclasses.replace(arrays, sides=dataclasses.replace(arrays.sides, tried=one))
    *_, tried = sections({"export": "none", "written": None}, arrays)
    assert "Rank 8 and ridge weight 0.100 were tried, no others beside them" in tried.verdict


@pytest.mark.parametrize("change", ["sides.ridge.kl", "sides.ridge.entropy"])
def test_a_measure_too_few_or_too_many_is_an_error(change):
    arrays = flatten(made())
    arrays = {**arrays, change: np.zeros(2)} if "entropy" in change else arrays
    if change in flatten(made()):
        del arrays[change]
    with pytest.raises(ValueError, match=change):
        rebuild(Arrays, arrays, {"sides.lora": True})


def test_the_report_says_what_the_file_is_exact_for():
    kept, *_ = sections({"export": "patches", "written": "patches.safetensors"}, made())
    assert "every position and for every query, and are exact for none" in kept.text
    assert "exact for one prompt, and there for the next token alone" in kept.text
    unwritten, *_ = sections({"export": "none", "written": None}, made())
    assert "exact" not in unwritten.text


@pytest.mark.slow
@pytest.mark.parametrize("export", ["peft", "patches", "checkpoint"])
def test_a_file_becomes_weights_with_a_report_of_what_they_keep(export, folder, tmp_path):
    asked = config(folder, export=export, lora=export == "peft")
    outcome = compiling.run(asked, tmp_path)
    runs = outcome.summary["runs"]
    assert {"nothing", "thought", "ridge"} <= set(runs) and runs["nothing"]["share"] == 0
    assert (tmp_path / compiling.NAMES[export]).exists()
    names = {"sides.lora": export == "peft"}
    sides = rebuild(Arrays, Run(tmp_path).load_arrays("measured.npz"), names).sides
    assert ("lora_same" in sides.runs) == (export == "peft") == (sides.lora is not None)
    page = (tmp_path / "report.html").read_text()
    assert "take away" in verdict(sides) and "What is kept of the context" in page
    assert "are exact for none: a least-squares fit to the calibration queries" in page
    before = (tmp_path / "measured.npz").read_bytes()
    compiling.run(asked, tmp_path)  # Only the report again.
    other = "checkpoint" if export == "peft" else "peft"
    compiling.run(dataclasses.replace(asked, export=other), tmp_path)  # Another form of the same.
    assert (tmp_path / compiling.NAMES[other]).exists()
    assert (tmp_path / "measured.npz").read_bytes() == before


@pytest.mark.slow
def test_the_file_of_patches_is_what_was_measured(folder, tmp_path):
    compiling.run(config(folder, export="patches", lora=False), tmp_path / "patches")
    compiling.run(config(folder, export="checkpoint", lora=False), tmp_path / "merged")
    checkpoint = load(folder / "tiny")
    patches = load_static(tmp_path / "patches" / "patches.safetensors")
    merged = load(tmp_path / "merged" / "checkpoint")
    tokens_T = load_tokenizer(folder / "tiny").encode("The lighthouse").tokens_T
    read = np.arange(len(tokens_T))
    want = static_logits(checkpoint.model, checkpoint.params, tokens_T, read, patches)
    got = full_logits(merged.model, merged.params, tokens_T, read)
    assert relative_error(got, want) < 1e-4


@pytest.mark.parametrize("study", ["own", "self", "given"])
def test_no_query_is_calibrated_with_and_asked(study, folder, tmp_path):
    lines = "".join(f"line {number} is here\n" for number in range(12))
    (tmp_path / "lines.txt").write_text(lines)
    queries = str(tmp_path / "lines.txt") if study == "given" else ""
    asked = config(folder, study=study, queries=queries, num_tokens=4)
    checkpoint, _, context, stems = compiling.prepare(asked)
    parts = compiling.material(asked, checkpoint, context, stems, None)
    texts = [tuple(text.tolist()) for part in parts for text in part.texts]
    assert all(part.texts and len(part.texts) == len(part.stems) for part in parts)
    if study != "self":  # What a model writes may be the same twice.
        assert len(set(texts)) == len(texts)
    if study != "own":
        assert [len(part.texts) for part in parts] == [6, 2, 4]


def test_what_cannot_be_compiled_is_a_usage_error(folder, tmp_path):
    with pytest.raises(UsageError, match="--context is missing"):
        compiling.prepare(config(folder, context=""))
    with pytest.raises(UsageError, match="No such file"):
        compiling.prepare(config(folder, context=str(tmp_path / "none")))
    (tmp_path / "few.txt").write_text("one\ntwo\n")
    with pytest.raises(UsageError, match="has 2 lines, and .* are 12 together"):
        compiling.prepare(config(folder, study="given", queries=str(tmp_path / "few.txt")))
    with pytest.raises(ValueError, match="study='given' needs queries"):
        config(folder, study="given")
    make_tiny("mixtral", tmp_path / "mixture", jax.random.key(0), vocab_size=300)
    save_tokenizer(tmp_path / "mixture", train_bpe([TEXT] * 5, 300))
    mixture = {"checkpoint": str(tmp_path / "mixture")}
    with pytest.raises(UsageError, match="has experts.*Use --side=input --lora=false"):
        compiling.prepare(config(folder, **mixture))
    with pytest.raises(UsageError, match="Use --lora=false, and --export=checkpoint"):
        compiling.prepare(config(folder, side="input", **mixture))
