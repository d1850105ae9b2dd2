"""The command: what it refuses, what it would run, what it skips, and how quick it is."""

import io
import json
import os
import shlex
import subprocess
import sys
import time

import pytest
import rich.console

from launch import collect, sweep
from launch.configuration import identify, load_sweep
from launch.layout import Layout
from launch.progress import Progress, duration
from launch.task import Task
from tests.launch import drive, trivial


def run(*flags, code=0):
    console = rich.console.Console(file=io.StringIO(), width=200)
    assert sweep.main(["sweep", *flags], console) == code
    return console.file.getvalue()


def flags(workdir, name, *more):
    return (f"--sweep=tests.launch.trivial:{name}", f"--workdir={workdir}", *more)


def test_a_sweep_runs_records_and_is_skipped_the_second_time(tmp_path):
    shown = run(*flags(tmp_path / "s", "three"))
    assert "3 runs, 0 done, 3 to do" in shown
    found = drive.results(tmp_path / "s")
    assert {r["config"]["number"]: r["summary"]["square"] for r in found.values()} == {
        1: 1.0,
        2: 4.0,
        3: 9.0,
    }
    assert {tuple(r["summary"]) for r in found.values()} == {("square", "nested.half")}
    (log, *_) = sorted((tmp_path / "s" / "logs").glob("*.log"))
    assert "squared is" in log.read_text()
    for events in drive.events(tmp_path / "s").values():
        assert [event["event"] for event in events] == ["started", "ended"]
        assert events[1]["code"] == 0 and events[1]["compilations"] == 0
        assert events[1]["resident_bytes"] > 1e6

    assert "3 runs, 3 done, 0 to do" in run(*flags(tmp_path / "s", "three"))
    assert set(drive.attempts(tmp_path / "s").values()) == {1}


def test_a_dry_run_prints_commands_that_do_what_the_sweep_does(tmp_path, capsys):
    shown = run(*flags(tmp_path / "s", "three", "--dry_run"))
    assert "3 to do; nothing was run" in shown
    assert not (tmp_path / "s").exists()
    lines = capsys.readouterr().out.splitlines()
    names = [r.id for r in identify(trivial.three())]
    assert lines == [
        f"python -m launch.worker {tmp_path / 's'} {name} tests.launch.trivial --number={i}"
        for i, name in enumerate(names, 1)
    ]
    command = [sys.executable, *shlex.split(lines[1])[1:]]
    subprocess.run(command, check=True, cwd=drive.ROOT, capture_output=True)
    assert list(drive.results(tmp_path / "s")) == [names[1]]
    run(*flags(tmp_path / "s", "three", "--dry_run"))
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_shards_divide_the_work(tmp_path, capsys):
    lines = []
    for index in range(2):
        run(*flags(tmp_path / "s", "twelve", "--dry_run", f"--shard={index}/2"))
        lines += capsys.readouterr().out.splitlines()
    assert len(set(lines)) == 12


def test_every_run_is_told_the_mesh(tmp_path, capsys):
    run(*flags(tmp_path / "s", "three", "--dry_run", "--mesh=data:4,model:2"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3 and all("--mesh=data:4,model:2" in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--workdir=x",), "--sweep=MODULE:FUNCTION is missing."),
        (("--sweep=a:b",), "--workdir=DIR is missing"),
        (flags("x", "nothing"), "has no function 'nothing'"),
        (flags("x", "wrong"), "tests.launch.trivial: --number=13: Config: number must not be 13."),
        (flags("x", "three", "--shard=2/2"), "--shard=2/2: must be i/n"),
        (flags("x", "three", "--executor=lokal"), "Did you mean local?"),
        (flags("x", "three", "--local.workers=0"), "local: workers must be at least 1, got 0."),
        (flags("x", "three", "--local.retries=-1"), "--local.retries=-1: must be from 0 to"),
        (flags("x", "three", "--local.time_limit=0"), "local: time_limit must be above 0"),
        (flags("x", "three", "--local.devices=0,1", "--local.workers=3"), "leave workers out"),
        (flags("x", "three", "--mesh=data"), "--mesh=data: mesh must be written as NAME:SIZE"),
        (flags("x", "three", "--mesh=data:2", "--executor=inprocess"), "devices share the runs"),
        (flags("x", "three", "--distributed"), "a run of a sweep is one process"),
    ],
)
def test_what_cannot_be_run_is_named_in_one_line(arguments, message, capsys):
    run(*arguments, code=2)
    shown = capsys.readouterr().err
    assert shown.startswith("sweep: error: ") and shown.count("\n") == 1 and message in shown


def test_the_help_shows_every_executor_s_options(capsys):
    run("--help")
    shown = capsys.readouterr().out
    assert "Usage: python -m launch.sweep [flags]" in shown
    assert "--local.time_limit=FLOAT|none" in shown


def test_every_worker_is_told_its_device(tmp_path, monkeypatch):
    from launch.executors import local

    seen = []

    class Attempt:
        def __init__(self, task, *, environment, **_):
            self.task = task
            seen.append(environment)
            task.layout.save_result(task.id, {})

        def code(self):
            return 0

    monkeypatch.setattr(local, "Attempt", Attempt)
    run(*flags(tmp_path / "s", "three", "--local.devices=4,7"))
    assert seen == [{"CUDA_VISIBLE_DEVICES": device} for device in ("4", "7", "4")]


def test_progress_counts_and_says_how_long_it_will_take(tmp_path):
    console = rich.console.Console(file=io.StringIO(), width=200)
    tasks = [Task(run, str(tmp_path)) for run in identify(trivial.three())]
    progress = Progress(3, console)
    assert progress.seconds_left() is None
    progress.started(tasks[0])
    progress.done(tasks[0])
    left = progress.seconds_left()
    assert left is not None and left >= 0
    progress.failed(tasks[1], "as asked")
    progress.again(tasks[2], "preempted")
    shown = console.file.getvalue().splitlines()
    assert shown[0].startswith(f"done     {tasks[0].id}  [1/3, 0 running")
    assert "as asked; see" in shown[1] and "2/3, 0 running, 1 failed" in shown[1]
    assert shown[2].startswith(f"again    {tasks[2].id}  preempted")
    assert progress.failures == {tasks[1].id: "as asked"}
    assert [duration(s) for s in (4.2, 75, 4000, 2e5)] == ["4s", "1m 15s", "1h 06m", "2d 07h"]


def test_ten_thousand_runs_are_listed_skipped_and_collected_in_seconds(tmp_path):
    layout = Layout(str(tmp_path / "s"))
    (layout.root / "results").mkdir(parents=True)
    # What a page says of how results came about is read from the folder of every run.
    device = {"platform": "cpu", "kind": "cpu", "count": 1}
    about = {"device": device, "versions": {"jax": "1.0"}, "command": "python -m t --quick"}
    told = json.dumps({**about, "commit": "1a2b3c"})
    for name in (runs := [r.id for r in identify(load_sweep("tests.launch.trivial:many"))]):
        config = {"number": int(name[-8:], 16), "act": "well"}
        result = {"id": name, "experiment": "t", "config": config, "summary": {"square": 1.0}}
        with open(layout.result(name), "w") as file:
            json.dump(result, file)
        os.makedirs(folder := layout.run(name))
        with open(folder / "provenance.json", "w") as file:
            file.write(told)
    start = time.monotonic()
    shown = run(*flags(tmp_path / "s", "many"))
    assert "10000 runs, 10000 done, 0 to do" in shown
    listed = time.monotonic() - start
    start = time.monotonic()
    console = rich.console.Console(file=io.StringIO(), width=200)
    assert collect.main(["collect", f"--workdir={tmp_path / 's'}"], console) == 0
    collected = time.monotonic() - start
    assert len((tmp_path / "s" / "table.csv").read_text().splitlines()) == 1 + len(runs)
    page = (tmp_path / "s" / "report.html").read_text()
    assert "Measured by commit 1a2b3c on 1 x cpu (cpu)." in page and "jax 1.0." in page
    # A second and seven, on two busy cores; what asks every run about every other takes minutes.
    assert listed < 20 and collected < 60
