"""Results become one table and one page."""

import csv
import html
import io
import json
import re
import threading

import pytest
import rich.console

from experiments.tools import conduct
from launch import collect
from launch.layout import Layout
from launch.table import gather


def save(layout, name, config, summary, experiment="experiments.descent"):
    layout.save_result(
        name, {"id": name, "experiment": experiment, "config": config, "summary": summary}
    )


def note(layout, name, commit, jax="0.12.0", quick=True, measured=None):
    """What an experiment leaves in the folder of a run."""
    device = {"kind": "TPU v5 lite", "platform": "tpu", "count": 4}
    folder = layout.run(name)
    folder.mkdir(parents=True)
    command = f"python -m experiments.descent --workdir=x{' --quick' * quick}"
    about = {"commit": commit, "device": device, "command": command}
    about["versions"] = {"python": "3.12.3", "jax": jax}
    (folder / "provenance.json").write_text(json.dumps(about))
    if measured is not None:
        noted = [{"commit": one, "device": device} for one in measured]
        (folder / "measurement.json").write_text(json.dumps(noted))


def closing(layout):
    """The footer of the page, in plain words."""
    page = (layout.root / "report.html").read_text()
    text = re.sub(r"<[^>]+>", " ", page[page.index("<footer>") :])
    return re.sub(r"\s+", " ", re.sub(r"\s+([.,]\s)", r"\1", html.unescape(text)))


def config(rate, seed, widths=(8,)):
    return {"rate": rate, "same": "x", "inner": {"seed": seed, "widths": list(widths)}}


@pytest.fixture
def sweep(tmp_path):
    layout = Layout(str(tmp_path / "sweep"))
    for i, rate in enumerate((0.01, 0.1, 1.0)):
        for seed in (0, 1):
            summary = {"loss": rate + seed, "steps": 7, "name": "adam", "is_edge": i == 2}
            save(layout, f"d-{i}{seed}", config(rate, seed), summary)
    return layout


def run(layout, *flags):
    console = rich.console.Console(file=io.StringIO(), width=200)
    code = collect.main(["collect", f"--workdir={layout.workdir}", *flags], console)
    return code, console.file.getvalue()


def test_the_columns_are_what_differs_and_what_was_found(sweep):
    table = gather(sweep)
    assert table.axes == ["rate", "inner.seed"]
    assert table.numbers == ["loss", "steps", "name", "is_edge"]
    assert [row["id"] for row in table.rows] == ["d-00", "d-01", "d-10", "d-11", "d-20", "d-21"]
    assert table.cells()[1] == ["d-01", "experiments.descent", 0.01, 1, 1.01, 7, "adam", False]


def test_results_are_read_side_by_side_and_stay_in_order(sweep, monkeypatch):
    rows = gather(sweep).rows
    load, together = Layout.load_result, threading.Barrier(2)

    def waiting(layout, name):
        together.wait(60)  # For another reader: one by one nobody comes.
        return load(layout, name)

    monkeypatch.setattr(Layout, "load_result", waiting)
    assert len(rows) % 2 == 0 and gather(sweep).rows == rows


def test_results_of_several_experiments_leave_gaps(sweep):
    save(sweep, "z", {"depth": 3, "widths": [1, 2]}, {"error": 0.5}, "experiments.depth")
    table = gather(sweep)
    assert table.axes == ["rate", "same", "inner.seed", "inner.widths", "depth", "widths"]
    last = dict(zip(table.header, table.cells()[-1], strict=True))
    assert last["rate"] is None and last["loss"] is None
    assert last["error"] == 0.5 and last["widths"] == "1,2"


def test_collect_writes_a_csv_file_with_all_digits_and_a_page(sweep):
    save(sweep, "d-30", config(1 / 3, 2), {"loss": 0.1 + 0.2, "steps": 7})
    code, shown = run(sweep)
    assert code == 0
    rows = list(csv.DictReader(io.StringIO((sweep.root / "table.csv").read_text())))
    assert float(rows[-1]["rate"]) == 1 / 3 and float(rows[-1]["loss"]) == 0.1 + 0.2
    assert rows[-1]["name"] == ""
    page = (sweep.root / "report.html").read_text()
    assert "Over rate" in page and "Over inner.seed" in page and page.count("<svg") == 2
    assert "7 results" in shown and "table.csv" in shown


def test_bands_are_called_what_they_are(sweep):
    run(sweep)
    page = (sweep.root / "report.html").read_text()
    assert "from the lowest to the highest" in page and "95%" not in page
    assert "loss is lowest in the mean, 0.510, at 0.01, against 1.50 at 1, where it is" in page


def test_a_page_has_the_columns_that_fit_and_the_csv_file_all(sweep):
    many = {f"measures.number_{i}.value": float(i) for i in range(50)}
    for i in range(3):
        save(sweep, f"e-{i}", config(10.0 * i, 3), {**many, "loss": 0.5})
    run(sweep, "--numbers=loss,measures.number_1.value")
    with (sweep.root / "table.csv").open() as file:
        assert len(next(csv.reader(file))) == 2 + 2 + 4 + 50
    page = (sweep.root / "report.html").read_text()
    heads = re.findall(r"<th [^>]*>(.*?)</th>", page)
    assert heads == [
        "id",
        "rate",
        "inner.<wbr>seed",
        "loss",
        "measures.<wbr>number_<wbr>1.<wbr>value",
    ]
    assert "<code>table.csv</code> has all rows in full, and 53 more columns." in page


def test_settings_that_do_not_fit_give_way_to_numbers(sweep):
    for i in range(3):
        wide = {f"s{k}": i * k for k in range(20)}
        save(sweep, f"e-{i}", wide, {"loss": 0.1 * i}, "experiments.depth")
    table = collect.columns(gather(sweep), ["loss", "steps"])
    assert len(table) == collect.MOST_COLUMNS
    assert table[:3] == ["id", "experiment", "rate"] and table[-2:] == ["loss", "steps"]


def test_what_is_not_done_is_counted(sweep):
    runs = {name: [] for name in ("d-00", "d-01", "d-10", "d-11", "d-20", "d-21", "m-1", "m-2")}
    (sweep.root / "sweep.json").write_text(json.dumps({"sweep": "m:f", "runs": runs}))
    _, shown = run(sweep)
    assert "2 of the 8 runs of the sweep are not done" in shown
    assert "2 not done" in (sweep.root / "report.html").read_text()


def test_the_page_closes_with_commands_commits_devices_and_versions(sweep, monkeypatch):
    monkeypatch.setattr(collect.origins, "provenance", lambda: {"commit": "fff"})
    (sweep.root / "sweep.json").write_text(json.dumps({"sweep": "my.sweeps:rates", "runs": {}}))
    for name in sweep.done():
        note(sweep, name, "aaa", measured=["aaa"])
    assert run(sweep, "--title=Rates, and seeds", "--numbers=loss")[0] == 0
    told = closing(sweep)
    where = f"--workdir={sweep.workdir}"
    assert f"python -m launch.collect {where} --numbers=loss --title='Rates, and seeds'" in told
    by = f"by python -m launch.sweep --sweep=my.sweeps:rates {where}, with --quick."
    assert f"Runs of experiments.descent {by}" in told
    assert "Measured by commit aaa on 4 x TPU v5 lite (tpu)." in told
    assert "Report by commit fff." in told and "python 3.12.3, jax 0.12.0." in told
    assert "it is not known" not in told and "Not the same" not in told


def test_results_of_several_commits_and_versions_are_counted(sweep):
    note(sweep, "d-00", "bbb", measured=["aaa"])  # Reported anew by a later commit.
    note(sweep, "d-01", "aaa", measured=["aaa", "bbb"])
    note(sweep, "d-10", "aaa", jax="0.10.2", quick=False)
    run(sweep)
    told = closing(sweep)
    device = "on 4 x TPU v5 lite (tpu)"
    assert (
        f"Measured by commit aaa {device} (2 results); commit aaa {device} and commit bbb "
        f"{device} (1 result)." in told
    )
    assert "Runs of experiments.descent, with --quick (2 results), without --quick (1" in told
    assert (
        "python 3.12.3. Not the same in all results: jax 0.12.0 (2 results), 0.10.2 (1 result)."
    ) in told
    assert "Of 3 of 6 results it is not known what measured them" in told


def test_the_page_closes_with_what_was_swept_and_what_all_runs_share(sweep):
    for i in range(20):
        save(sweep, f"s-{i}", config(0.1, i, (8, 16)), {"loss": 1.0})
    run(sweep)
    told = closing(sweep)
    assert "--rate 0.01, 0.1, 1.0 (swept)" in told
    assert "--inner.seed 0, 1, ..., 19: 20 values (swept)" in told
    assert "--inner.widths 8; 8,16 (swept)" in told
    assert told.index("(swept)") < told.index("--same x")
    assert "Of 26 of 26 results it is not known what measured them" in told


def test_a_page_is_written_by_the_commit_that_runs(sweep):
    run(sweep)
    assert f"Report by commit {conduct.commit()}." in closing(sweep)


def test_numbers_that_are_not_there_and_empty_folders_are_said_in_one_line(sweep, tmp_path, capsys):
    assert run(sweep, "--numbers=accuracy")[0] == 2
    assert "the results have no such number. They have loss, steps" in capsys.readouterr().err
    assert run(Layout(str(tmp_path / "empty")))[0] == 2
    assert "has no results. Run launch.sweep first." in capsys.readouterr().err
    assert collect.main(["collect"]) == 2
    assert "--workdir=DIR is missing" in capsys.readouterr().err


def test_parquet_keeps_numbers_as_numbers(sweep):
    parquet = pytest.importorskip("pyarrow.parquet")
    assert run(sweep, "--parquet")[0] == 0
    table = parquet.read_table(str(sweep.root / "table.parquet"))
    assert table.column("loss").to_pylist() == [0.01, 1.01, 0.1, 1.1, 1.0, 2.0]


def test_parquet_that_is_not_installed_is_named(sweep, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    assert run(sweep, "--parquet")[0] == 2
    assert "pip install 'icl_jax[parquet]'" in capsys.readouterr().err


def test_the_help_names_the_program(capsys):
    assert collect.main(["collect", "--help"]) == 0
    assert "Usage: python -m launch.collect [flags]" in capsys.readouterr().out
