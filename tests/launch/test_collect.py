"""Results become one table and one page."""

import csv
import io
import json

import pytest
import rich.console

from launch import collect
from launch.layout import Layout
from launch.table import gather


def save(layout, name, config, summary, experiment="experiments.descent"):
    layout.save_result(
        name, {"id": name, "experiment": experiment, "config": config, "summary": summary}
    )


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


def test_what_is_not_done_is_counted(sweep):
    runs = {name: [] for name in ("d-00", "d-01", "d-10", "d-11", "d-20", "d-21", "m-1", "m-2")}
    (sweep.root / "sweep.json").write_text(json.dumps({"runs": runs}))
    _, shown = run(sweep)
    assert "2 of the 8 runs of the sweep are not done" in shown
    assert "2 not done" in (sweep.root / "report.html").read_text()


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
