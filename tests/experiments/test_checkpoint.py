"""The experiment on a tiny checkpoint, from its making to its report."""

import dataclasses
import html
import json
import re
import shutil

import jax
import numpy as np
import pytest

from experiments.language.checkpoint import measure as checkpoint_measure
from experiments.language.checkpoint import report as checkpoint_report
from experiments.language.checkpoint import run as checkpoint
from experiments.language.checkpoint.arrays import Arrays, Compared, Exported, Written
from experiments.language.checkpoint.export import all_exports
from experiments.language.runs import LABELS
from experiments.tools.arrays import flatten, rebuild
from experiments.tools.flags import UsageError, launch
from icl_jax.interop.huggingface import load
from icl_jax.interop.saving import save
from icl_jax.interop.spans import Prompt
from icl_jax.records import Run, WorkdirError
from icl_jax.report.page import number


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny") / "gemma3"
    assert checkpoint.run(checkpoint.Config(make_tiny="gemma3"), folder) is None
    lines = (folder / "prompts.jsonl").read_text().splitlines()
    (folder / "two.jsonl").write_text("\n".join(lines[:2]))
    return folder


def config_of(tiny, **changes):
    return checkpoint.Config(
        checkpoint=str(tiny),
        prompts=str(tiny / "two.jsonl"),
        generate=4,
        export="checkpoint",
        dtype=("float32", "bfloat16"),
        **changes,
    )


@pytest.fixture(scope="module")
def whole_run(tiny, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "run"
    checkpoint.run(config_of(tiny), workdir)
    return workdir


@pytest.fixture(scope="module")
def summary(whole_run):
    return json.loads((whole_run / "summary.json").read_text())


def test_every_prompt_is_exact_and_the_controls_are_not(summary):
    assert summary["family"] == "gemma3" and len(summary["prompts"]) == 2
    for prompt in summary["prompts"].values():
        errors = prompt["relative_error"]
        assert errors["patched"] <= 1e-5
        assert min(errors["unpatched"], errors["shuffled"]) >= 1e-2
        assert prompt["top1"] == 1.0 and prompt["kl"] < 1e-6 < prompt["unpatched_kl"]
        numbers = prompt["conditioning"]
        assert len(numbers["max_scale_change"]) == len(numbers["min_normalised"]) == 4
        assert all(value > 0 for values in numbers.values() for value in values)
    assert summary["dtypes"]["bfloat16"]["relative_error"]["patched"] < 2e-2


@pytest.mark.parametrize("generate", (0, 4))
def test_one_nan_in_a_weight_is_one_line_and_no_summary(tiny, tmp_path, capsys, generate):
    found = load(tiny)
    gains = {name: leaf.at[0].set(np.nan) for name, leaf in found.params["norm_final"].items()}
    params = {**found.params, "norm_final": gains}
    save(tmp_path / "bad", found.model, params, found.config)
    (tmp_path / "one.jsonl").write_text(json.dumps({"tokens": [3, 1, 4, 1, 5], "keep": [0, 4]}))
    given = {"checkpoint": tmp_path / "bad", "prompts": tmp_path / "one.jsonl"}
    given |= {"generate": generate, "workdir": tmp_path / "run"}
    argv = ["checkpoint", *(f"--{name}={value}" for name, value in given.items())]
    with pytest.raises(SystemExit) as ended:
        launch(checkpoint.Config, checkpoint.run, checkpoint.__doc__, argv=argv)
    assert ended.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("checkpoint: error: prompt 'line 1' in float32: full_logits: the logit")
    assert "are not finite. Look for NaN or infinity" in error
    assert not (tmp_path / "run" / "summary.json").exists()


def test_conditioning_is_told_of_every_precision(summary):
    for dtype in ("float32", "bfloat16"):
        found = summary["dtypes"][dtype]["conditioning"]
        hardest = np.array(
            [p["conditioning"]["relative_change"] for p in summary["prompts"].values()]
        )
        np.testing.assert_allclose(
            found["relative_change"], hardest.max(axis=0), rtol=1e-6 if dtype == "float32" else 0.1
        )


def test_generation_agrees(summary):
    for prompt in summary["prompts"].values():
        assert prompt["generation"]["agreement"] == 1.0
        assert prompt["generation"]["tokens"] == 4
    assert summary["dtypes"]["float32"]["generation"]["tokens"] == 8


def test_the_export_is_a_checkpoint_that_answers_alone(tiny, whole_run, summary):
    exported = summary["exports"]["checkpoint"]
    assert exported["format"] == "checkpoint"
    assert exported["logit_error"] < 1e-4 < exported["unpatched_logit_error"]
    # Exact for one position only, and said so.
    assert exported["earlier_logit_error"] > 1e-4
    assert 0 <= exported["following_agreement"] <= 1
    report = (whole_run / "report.html").read_text()
    assert "neither for earlier positions nor for what follows" in report
    assert "Of the next 12 greedy tokens" in report
    folder = whole_run / exported["folder"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in folder.iterdir()
    }


def test_the_report_shows_all_of_it(whole_run):
    page = (whole_run / "report.html").read_text()
    for title in (
        "The same logits",
        "How hard the patches",
        "Which prompt",
        "The same text",
        "The context as a",
    ):
        assert title in page
    assert page.count("<svg") >= 3


def test_what_is_measured_is_not_measured_again(tiny, whole_run, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(checkpoint, "measure", never)
    monkeypatch.setattr(checkpoint, "measure_generation", never)
    before = (whole_run / "summary.json").read_text()
    checkpoint.run(config_of(tiny), whole_run)
    assert (whole_run / "summary.json").read_text() == before


def test_the_files_of_earlier_runs_are_read(whole_run):
    runs = ("patched", "scale", "unpatched", "shuffled")
    names = {f"{run}.{one}" for run in runs for one in ("relative_error", "kl", "top1")}
    hardest = ("relative_change", "max_scale_change", "min_normalised")
    names |= {f"{run}.{one}" for run in runs[:2] for one in hardest}
    records = Run(whole_run)
    arrays = records.load_arrays("float32/0000.npz")
    assert set(arrays) == names
    assert flatten(rebuild(Compared, arrays)).keys() == names
    written = records.load_arrays("float32/0000.generated4.npz")
    assert "generation.expected_tokens" in written
    assert rebuild(Written, written).generation.relative_error.shape == (4,)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_measure_too_few_or_too_many_is_refused(change, tiny, whole_run, tmp_path):
    shutil.copytree(whole_run, tmp_path / "run")
    records = Run(tmp_path / "run")
    arrays = records.load_arrays("bfloat16/0001.npz")
    if change == "missing":
        del arrays["shuffled.relative_error"]
    else:
        arrays["shuffled.entropy"] = np.zeros(())
    records.save_arrays("bfloat16/0001.npz", arrays)
    said = r"0001.npz: rebuild: .*shuffled.*Was it measured by another version\? Choose another"
    with pytest.raises(WorkdirError, match=said):
        checkpoint.run(config_of(tiny), tmp_path / "run")


def test_the_verdict_names_the_nearest_null_as_the_legend_does(whole_run, summary):
    page = (whole_run / "report.html").read_text()
    for found in summary["dtypes"].values():
        errors = found["relative_error"]
        null = min(("unpatched", "shuffled"), key=lambda name: errors[name])
        assert f"at least {LABELS[null]}, {number(errors[null])} (nearest null; " in page
    shown = [LABELS[name] for name in ("patched", "scale", "unpatched", "shuffled")]
    assert "".join(f"<th>{html.escape(name)}</th>" for name in shown) in re.sub(
        r"<th[^>]*>", "<th>", page
    )


def test_a_killed_run_loses_one_prompt_at_most(tiny, whole_run, monkeypatch):
    (whole_run / "float32" / "0001.npz").unlink()
    measured, original = [], checkpoint.measure

    def counted(config, loaded, prompts, index):
        measured.append(index)
        return original(config, loaded, prompts, index)

    monkeypatch.setattr(checkpoint, "measure", counted)
    checkpoint.run(config_of(tiny), whole_run)
    assert measured == [1]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Of transformers and peft, of themselves.
def test_another_export_or_a_longer_text_is_added_and_the_rest_kept(tiny, tmp_path, monkeypatch):
    plain = dataclasses.replace(config_of(tiny), generate=0, export="none", dtype=("float32",))
    checkpoint.run(plain, tmp_path / "run")

    def never(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr(checkpoint, "measure", never)
    more = dataclasses.replace(plain, generate=3)
    summary = checkpoint.run(more, tmp_path / "run").summary
    assert summary["dtypes"]["float32"]["generation"]["tokens"] == 6
    summary = checkpoint.run(
        dataclasses.replace(plain, export="checkpoint"), tmp_path / "run"
    ).summary
    assert set(summary["exports"]) == {"checkpoint"}
    assert summary["dtypes"]["float32"]["generation"]["tokens"] == 6
    first = summary["exports"]["checkpoint"]
    checkpoint.run(dataclasses.replace(plain, export="peft"), tmp_path / "run")
    summary = checkpoint.run(plain, tmp_path / "run").summary
    assert summary["exports"]["checkpoint"] == first
    assert summary["exports"]["peft"]["folder"] == "adapter"
    page = (tmp_path / "run" / "report.html").read_text()
    assert "The context as a checkpoint" in page and "The context as an adapter" in page
    with pytest.raises(WorkdirError, match="loop: closed -> open"):
        checkpoint.run(dataclasses.replace(plain, loop="open"), tmp_path / "run")


class TestErrors:
    def test_other_prompts_need_another_folder(self, tiny, whole_run):
        file = tiny / "two.jsonl"
        text = file.read_text()
        file.write_text(text.replace("the", "thy"))
        try:
            with pytest.raises(WorkdirError, match="begun with other prompts"):
                checkpoint.run(config_of(tiny), whole_run)
        finally:
            file.write_text(text)

    def test_what_is_missing_is_named(self, tiny, tmp_path):
        with pytest.raises(UsageError, match="--checkpoint is missing. To try without one"):
            checkpoint.run(checkpoint.Config(), tmp_path / "run")
        with pytest.raises(UsageError, match="--workdir=DIR is missing"):
            checkpoint.run(config_of(tiny), None)
        wrong = dataclasses.replace(config_of(tiny), prompts=str(tiny / "none.jsonl"))
        with pytest.raises(UsageError, match="none.jsonl: no such file"):
            checkpoint.run(wrong, tmp_path / "run")
        with pytest.raises(UsageError, match="make_tiny: family must be one of bert, .*falcon"):
            checkpoint.run(checkpoint.Config(make_tiny="gpt9"), tmp_path / "tiny")

    def test_values_are_checked(self):
        with pytest.raises(ValueError, match="dtype must be one of 'float32', .* got 'int8'"):
            checkpoint.Config(dtype=("int8",))
        with pytest.raises(ValueError, match="max_prompts"):
            checkpoint.Config(max_prompts=0)

    def test_a_policy_without_its_weights_comes_before_any_work(self, tiny, tmp_path):
        config = dataclasses.replace(config_of(tiny), output_patch="bias")
        with pytest.raises(UsageError, match="output='bias' needs a block that ends in a bias"):
            checkpoint.run(config, tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_one_prompt_alone_is_controlled_by_its_context_reversed(tiny):
    loaded = load(tiny)
    prompt = Prompt(np.arange(8, dtype=np.int32), np.array([0, 7], np.int32), "one")
    other = checkpoint_measure.another(loaded, [prompt], 0)
    assert other.tokens[:8].tolist() == [0, 6, 5, 4, 3, 2, 1, 7]


def test_the_same_prompt_twice_is_controlled_by_other_tokens(tiny):
    loaded = load(tiny)
    # Reversed, the context is what it was.
    prompts = [Prompt(np.array([7, 3, 3, 7], np.int32), np.array([0, 3], np.int32), "one")] * 2
    for index in range(2):
        other = checkpoint_measure.another(loaded, prompts, index)
        assert other.tokens[:4].tolist() == [7, 4, 5, 7]


@pytest.mark.slow
def test_a_model_that_no_scale_patch_fits_is_measured_without(tiny, tmp_path):
    # As in a pruned model: one entry of the MLP's output is always zero.
    loaded = load(tiny)
    params = jax.tree.map_with_path(
        lambda path, leaf: leaf.at[..., 3].set(0.0) if "'down'" in str(path) else leaf,
        loaded.params,
    )
    pruned = dataclasses.replace(loaded, params=params)
    prompts = [
        Prompt(np.arange(3, 3 + length, dtype=np.int32), np.array([0, length - 1]), str(length))
        for length in (9, 12)
    ]
    config = config_of(tiny)
    compared = checkpoint_measure.measure(config, pruned, prompts, 0)
    assert np.isnan(compared.scale.relative_error) and compared.patched.relative_error < 1e-5
    numbers = Arrays(compared, None)
    found = checkpoint_report.summarise({}, ["nine"], {"float32": [numbers]}, [])
    assert found["prompts"]["nine"]["relative_error"]["scale"] is None
    json.dumps(found, allow_nan=False)
    sections = checkpoint_report.sections(["nine"], [(9, 2)], [], {"float32": [numbers]}, [])
    assert all("nan" not in section.text for section in sections)


@pytest.mark.slow
def test_last_states_are_no_distribution(tmp_path):
    folder = tmp_path / "bert"
    checkpoint.run(checkpoint.Config(make_tiny="bert"), folder)
    config = checkpoint.Config(checkpoint=str(folder), prompts=str(folder / "prompts.jsonl"))
    summary = checkpoint.run(config, tmp_path / "run").summary
    for prompt in summary["prompts"].values():
        assert prompt["relative_error"]["patched"] <= 1e-5
        assert prompt["kl"] is None and prompt["top1"] is None
    page = (tmp_path / "run" / "report.html").read_text()
    assert "relative error of the last states" in page.lower() and "top-1" not in page


def test_a_prompt_without_a_patch_is_named(tiny, tmp_path, monkeypatch):
    def refuse(*args):
        raise ValueError("no patch exists")

    monkeypatch.setattr(checkpoint, "measure", refuse)
    with pytest.raises(UsageError, match="prompt '.+' in float32: no patch exists"):
        checkpoint.run(config_of(tiny), tmp_path / "run")


EXPORTED = {
    "format": "checkpoint", "prompt": "line 1", "folder": "export", "logit_error": 1e-7,
    "transformers_logit_error": None, "unpatched_logit_error": 0.5,
    "earlier_logit_error": 0.25, "unpatched_earlier_logit_error": 0.375,
    "following_agreement": 1 / 12, "unpatched_following_agreement": 0.0,
}  # fmt: skip


def test_an_export_is_saved_under_the_name_of_the_program_that_was_asked():
    assert Exported.read(EXPORTED).told() == EXPORTED
    adapter = {**EXPORTED, "format": "peft", "peft_logit_error": 1e-6}
    del adapter["transformers_logit_error"]
    read = Exported.read(adapter)
    assert (read.program, read.other_logit_error) == ("peft", 1e-6)
    assert read.told() == adapter


@pytest.mark.parametrize("name", ["earlier_logit_error", "transformers_logit_error", "folder"])
def test_an_export_that_lacks_a_number_is_refused(name, tmp_path):
    """A report of it would say nothing of the earlier positions, as if there were none."""
    run = Run(tmp_path)
    run.save_json("export-checkpoint.json", {k: v for k, v in EXPORTED.items() if k != name})
    missing = "other_logit_error" if name.startswith("transformers") else name
    said = rf"export-checkpoint.json: export: {missing}: missing.*Choose another --workdir"
    with pytest.raises(WorkdirError, match=said):
        all_exports(run)
    run.save_json("export-checkpoint.json", {**EXPORTED, "entropy": 1.0})
    with pytest.raises(WorkdirError, match="entropy: unknown"):
        all_exports(run)


def test_every_export_into_a_folder_is_told(tmp_path):
    run = Run(tmp_path)
    assert all_exports(run) == []
    adapter = {**EXPORTED, "format": "peft", "folder": "adapter", "peft_logit_error": 1e-6}
    del adapter["transformers_logit_error"]
    run.save_json("export-peft.json", adapter)
    assert [one.told() for one in all_exports(run)] == [adapter]
    run.save_json("export-checkpoint.json", EXPORTED)
    found = all_exports(run)
    assert [one.told() for one in found] == [EXPORTED, adapter]
    compared = [checkpoint_report._export(one) for one in found]
    assert [one.title for one in compared] == [
        "The context as a checkpoint",
        "The context as an adapter",
    ]
    assert [one.anchor for one in compared] == ["export-checkpoint", "export-peft"]


def test_the_table_of_an_export_says_where_it_is_not_exact():
    section = checkpoint_report._export(Exported.read(EXPORTED))
    (table,) = section.tables
    assert section.verdict.endswith(
        "; unpatched, the original weights miss them by 0.500. At the earlier kept positions it "
        "misses by 0.250 (unpatched: 0.375). Of the next 12 greedy tokens 1 agree (unpatched: 0)."
    )
    assert table.rows[-1][0] == "unpatched"
    assert table.header[1:] == (
        "relative error of the last logits",
        "of those at earlier kept positions",
        "same of the next 12 greedy tokens",
    )
    assert [row[1:] for row in table.rows] == [
        (1e-7, 0.25, 1), ("not asked", None, None), (0.5, 0.375, 0),
    ]  # fmt: skip
