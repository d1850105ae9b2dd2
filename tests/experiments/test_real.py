"""The experiment on real models, with tiny random ones in their place."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest

from experiments.language.real import measure
from experiments.language.real import run as real
from experiments.language.real.arrays import (
    Arrays,
    ByLayer,
    Exactness,
    Generation,
    Growth,
    Parity,
    Right,
    Tasks,
    Texts,
    Writers,
)
from experiments.language.real.prompts import QUESTIONS, TASKS, removal, task_prompts
from experiments.language.real.report import SHUFFLED, sections, summarise
from experiments.language.runs import LABELS
from experiments.tools.arrays import rebuild
from icl_jax.checks import NumericalError
from icl_jax.interop.huggingface import make_tiny
from icl_jax.interop.tokenizer import save_tokenizer, train_bpe
from icl_jax.records import Run
from icl_jax.report.page import number
from icl_jax.tasks.text import reference_texts

CONFIG = real.Config(lengths=(29,), num_prompts=1, num_tokens=3, shown=3, asked=2, contexts=(4, 8))


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"{context}{question}" for context, question in QUESTIONS]
    return train_bpe([*texts, reference_texts()["with"]], 384)


@pytest.fixture(scope="module")
def outcome(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")

    def tiny(name, _):
        made = folder / name
        if not made.exists():
            family = "llama" if name == "smollm2" else "gemma3"
            make_tiny(family, made, jax.random.key(0), vocab_size=384)
            save_tokenizer(made, tokenizer)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(real, "real_model", tiny)
        patch.setattr(
            measure, "parity", lambda *_: Parity(np.zeros(0))
        )  # tests/real has transformers.
        real.run(CONFIG, folder / "run")
    return folder / "run"


@pytest.mark.slow
def test_the_summary_has_every_model_precision_and_policy(outcome):
    models = json.loads((outcome / "summary.json").read_text())["models"]
    assert list(models) == ["smollm2", "gemma3-270m"]
    for one in models.values():
        assert {"parity", "exactness", "generation", "tasks"} <= set(one)
        for dtype, bound in (("float32", 1e-5), ("bfloat16", 0.1)):
            exact = one["exactness"][dtype]
            assert exact["closed"]["auto"] < bound < exact["unpatched"]
            assert exact["open"]["auto"] < bound
            for task in one["tasks"][dtype].values():
                assert task["context"] == task["patched"]
                assert task["questions"] == 2
        written = one["generation"]["float32"]
        assert written["auto"]["agreement"] == written["auto"]["twice_agreement"] == 1
        assert written["twice"] == 1 > written["unpatched"]
        assert one["attribution"]["total"] == pytest.approx(1, abs=1e-4)
    assert set(models["gemma3-270m"]["exactness"]["float32"]["closed"]) == {
        "auto", "scale", "balanced", "balanced+remainder",
    }  # fmt: skip
    for name in models:  # Fewer layers are another model.
        arrays = Run(outcome).load_arrays(f"{name}/float32/layers.npz")
        layers = rebuild(
            ByLayer, arrays, {"policies": models[name]["exactness"]["float32"]["closed"]}
        )
        assert len(set(layers.unpatched)) == len(layers.layers) > 1
    assert (outcome / "report.html").stat().st_size > 10_000


def made(unpatched, shuffled):
    """A record of one model in one precision, of two policies."""
    twice = np.array([1.0, 1.0])
    policies = ("auto", "scale")
    exactness = Exactness(
        tokens=np.array([29] * 4),
        bos_kept=np.ones(4, bool),
        loop=np.array(["closed", "closed", "open", "open"]),
        policy=np.array([*policies, *policies]),
        relative_error=np.array([1e-7, 2e-7, 3e-7, 4e-7]),
        same_top1=np.ones(4),
        unpatched=np.full(4, unpatched),
        shuffled=np.full(4, shuffled),
        growth=np.array([np.nan, np.nan, 5.0, 6.0]),
        refused=np.array([False, False, False, True]),
    )
    layers = ByLayer(np.array([1, 2]), 0.5 * twice, {p: 1e-7 * twice for p in policies})
    texts = Texts(twice, np.array([3, 3]), 0.5 * twice, twice, 1e-6 * twice)
    written = np.array(["a", "b"])
    return Arrays(
        exactness=exactness,
        layers=layers,
        tasks=Tasks({"capitals": Right(np.ones(2, bool), np.ones(2, bool), np.zeros(2, bool))}),
        generation=Generation(
            written, written, 0.25 * twice, 0.75 * twice, np.array([2, 3]),
            dict.fromkeys(policies, texts),
        ),
        parity=Parity(np.array([1e-7, 3e-7])),
        growth=Growth(np.array([3, 7]), np.array([0.1, 0.2]), np.array([0.08, 0.15])),
        attribution=Writers(
            np.array(1), np.array("Why?"), written, np.array([0.6, 0.3]), np.array(0.3),
            np.array(0.1), np.array(1.0),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(("unpatched", "shuffled"), [(0.3, 0.4), (0.5, 0.45)])
def test_verdicts_name_the_nearest_null_as_tables_and_legends_do(unpatched, shuffled):
    found = {"tiny": {"float32": made(unpatched, shuffled)}}
    exact, layers, texts, tasks, grown = sections(found)
    null = "unpatched" if unpatched < shuffled else "shuffled"
    least = min(unpatched, shuffled)
    told = f"by {number(1e-7)} at most (nearest null, at least: {LABELS[null]}, {number(least)})"
    assert f"off in float32 {told}" in exact.verdict
    columns = exact.tables[0].header
    assert "" not in columns and columns[columns.index("top-1") - 1] == "open loop"
    assert columns[-2:] == (LABELS["unpatched"], LABELS["shuffled"])
    policy = columns.index("policy")
    assert {row[policy] for row in exact.tables[0].rows} == {LABELS["auto"], LABELS["scale"]}
    for label in (LABELS["auto"], LABELS["scale"], LABELS["unpatched"]):
        assert label in layers.figure
    assert f"({LABELS['unpatched']}: 25.0%; twice without a patch: 75.0%)" in texts.verdict
    assert "unpatched 0%, 100% with it" in tasks.verdict
    assert "unpatched" in tasks.tables[0].header
    moved = "7 tokens move the inputs by 0.200 of their length (shuffled tokens: 0.150)"
    assert moved in grown.verdict
    assert (
        "'a' has the largest share of an update, 0.600, where an even one is 0.3" in grown.verdict
    )
    assert f"tiny, {SHUFFLED}" in grown.figure


def test_by_default_ten_texts_of_a_hundred_tokens_are_written():
    config = real.Config()
    assert (config.num_prompts, config.num_tokens) == (10, 100) and len(QUESTIONS) >= 10


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"num_prompts": 99}, "texts to write, got num_prompts=99"),
        ({"asked": 99}, "pairs to show and to ask for, got shown=6 and asked=99"),
        ({"contexts": (8, 1)}, "contexts must be at least 2, got 1"),
    ],
)
def test_more_than_there_is_to_ask_is_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        real.Config(**bad)


def test_what_is_published_stands_beside_what_is_measured():
    found = {"tiny": {"bfloat16": made(0.3, 0.4)}}
    assert summarise(found)["published_agreement"] == (0.875, 0.98, 1.0)
    assert "87.5%, 98.0%, 100.0% of the tokens" in sections(found)[2].text


def test_the_summary_is_made_of_the_record():
    one = summarise({"tiny": {"float32": made(0.3, 0.4)}})["models"]["tiny"]
    assert one["parity"] == {"largest_relative_error": 3e-7, "prompts": 2}
    assert one["exactness"]["float32"]["open"] == {"auto": 3e-7, "scale": 4e-7}
    assert one["exactness"]["float32"]["refused"] == {"auto": 0, "scale": 1}
    assert one["tasks"]["float32"]["capitals"]["questions"] == 2


def test_the_question_stays_and_the_context_goes(tokenizer):
    for context, question in QUESTIONS:
        prompt = removal(tokenizer, context, question)
        assert tokenizer.decode(prompt.tokens_T[prompt.kept_K]).strip() in question
        assert len(prompt.kept_K) < len(prompt.tokens_T)
        assert prompt.kept_K[-1] == len(prompt.tokens_T) - 1


def test_an_answer_is_the_token_after_its_question(tokenizer):
    for task in TASKS:
        prompts = task_prompts(tokenizer, task, shown=6, asked=16)
        assert len(prompts) == 16
        for (_, answer), (prompt, token) in zip(TASKS[task][6:22], prompts, strict=True):
            assert answer.startswith(tokenizer.decode([token]).strip())
            assert prompt.kept_K[-1] == len(prompt.tokens_T) - 1


def test_a_text_without_patches_costs_the_others_nothing(monkeypatch):
    """A scale patch divides by the output, which can be zero: one such prompt ends its batch."""
    asked = []

    def write(model, params, tokens, kept, num_tokens, *, output):
        asked.append(len(tokens))
        if any(tokens_T[0] == 3 for tokens_T in tokens):
            raise NumericalError("no patches")
        both = zip(tokens, kept, strict=True)
        return [f"{tokens_T[0]} {kept_K[0]} {output}" for tokens_T, kept_K in both]

    monkeypatch.setattr(measure, "patched_generate", write)
    tokens = [np.array([number]) for number in range(5)]
    kept = [np.array([10 * number]) for number in range(5)]
    checkpoint = types.SimpleNamespace(model=None, params=None)
    found = measure._patched(checkpoint, tokens, kept, 4, "scale")
    assert found == ["0 0 scale", "1 10 scale", "2 20 scale", None, "4 40 scale"]
    assert asked == [5, 2, 3, 1, 2, 1, 1]


def test_the_summary_counts_texts_without_patches():
    record = made(0.3, 0.4)
    texts = Texts(*(np.array([0.0, 1.0]) for _ in range(4)), np.array([np.nan, 1e-6]))
    policies = {**record.generation.policies, "scale": texts}
    generation = dataclasses.replace(record.generation, policies=policies)
    found = {"tiny": {"float32": dataclasses.replace(record, generation=generation)}}
    written = summarise(found)["models"]["tiny"]["generation"]["float32"]
    assert (written["scale"]["without_patches"], written["auto"]["without_patches"]) == (1, 0)
    assert written["scale"]["largest_relative_error"] == 1e-6
    (table,) = sections(found)[2].tables
    column = table.header.index("texts without patches")
    assert [row[column] for row in table.rows] == [0, 1]
