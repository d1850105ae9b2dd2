"""Many configurations in one program find what each finds alone."""

import io
import json
import signal
import subprocess
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from experiments.tools.flags import UsageError
from experiments.tools.one_program import OneProgram
from icl_jax.records import Run
from launch import lifeline, sweep
from launch.combinators import grid, product, seeds
from launch.configuration import configurations, identify
from launch.executors import inprocess
from launch.layout import Layout
from launch.task import Batch, Task
from tests.launch import drive

TRAINING = "learner.training"
SMALL = {
    "quick": True,
    "num_prompts": 20,
    "learner.num_examples": 5,
    f"{TRAINING}.num_steps": 12,
    f"{TRAINING}.batch_size": 8,
    f"{TRAINING}.optimizer.warmup_steps": 3,
}


def trainings():
    """Three rates and two seeds."""
    rates = grid({f"{TRAINING}.learning_rate": (1e-3, 3e-3, 1e-2)})
    sweep = product(rates, seeds(f"{TRAINING}.seed", 2))
    return configurations("experiments.training", sweep, base=SMALL)


def two_shapes():
    """Two programs, and a rate that diverges."""
    rates = grid({f"{TRAINING}.learning_rate": (1e-3, 1e30)})
    both = product(grid({"learner.num_examples": (4, 5)}), rates)
    base = {k: v for k, v in SMALL.items() if k != "learner.num_examples"}
    base |= {f"{TRAINING}.optimizer.name": "sgd", f"{TRAINING}.optimizer.gradient_clip": None}
    return configurations("experiments.training", both, base=base)


def run(workdir, function, *flags, code=0):
    console = rich.console.Console(file=io.StringIO(), width=200)
    where = (f"--sweep=tests.launch.test_inprocess:{function}", f"--workdir={workdir}")
    assert sweep.main(["sweep", *where, "--executor=inprocess", *flags], console) == code
    return console.file.getvalue()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("inprocess") / "sweep"
    return workdir, run(workdir, "trainings")


def test_they_are_one_program(together):
    workdir, shown = together
    assert "one program, 6 runs: 1 program compiled" in shown
    assert len(drive.results(workdir)) == 6
    assert "6 runs, 6 done, 0 to do" in run(workdir, "trainings")


@pytest.mark.slow
def test_each_is_what_its_own_process_finds(together, tmp_path):
    workdir, _ = together
    chosen = identify(trainings())[3]
    command = Task(chosen, str(tmp_path / "alone")).command()
    subprocess.run(command, check=True, cwd=drive.ROOT, capture_output=True)
    alone = drive.results(tmp_path / "alone")[chosen.id]
    ours = drive.results(workdir)[chosen.id]
    assert ours["config"] == alone["config"] and ours["experiment"] == alone["experiment"]
    assert ours["summary"].keys() == alone["summary"].keys()
    # Twelve steps of Adam in float32, batched otherwise: a rounding a step, 1e-4 after twelve.
    for name, value in alone["summary"].items():
        if name != "largest_patched_gap":  # Itself a rounding.
            assert ours["summary"][name] == pytest.approx(value, rel=1e-4), name
    for folder in (workdir, tmp_path / "alone"):
        run_folder = folder / "runs" / chosen.id
        assert json.loads((run_folder / "config.json").read_text())["experiment"] == "training"
    arrays = [Run(f / "runs" / chosen.id) for f in (workdir, tmp_path / "alone")]
    mine, theirs = (a.load_arrays("arrays.npz") for a in arrays)
    assert {n: a.shape for n, a in mine.items()} == {n: a.shape for n, a in theirs.items()}


@pytest.mark.slow
def test_what_has_another_shape_is_another_program_and_what_diverges_fails_alone(tmp_path):
    shown = run(tmp_path / "s", "two_shapes", code=1)
    assert shown.count("one program, 2 runs") == 2
    assert shown.count("diverged: ") == 4  # When it happens, and in the list at the end.
    done = drive.results(tmp_path / "s").values()
    assert [r["config"]["learner"]["training"]["learning_rate"] for r in done] == [1e-3, 1e-3]


def test_a_dry_run_shows_the_programs(tmp_path, capsys):
    run(tmp_path / "s", "two_shapes", "--dry_run")
    shown = capsys.readouterr().out
    varies = "seed, learner.training.seed, learner.training.learning_rate"
    assert shown.count(f"# one program over {varies}; 2 runs:") == 2
    run(tmp_path / "s", "two_shapes", "--dry_run", "--inprocess.at_once=1")
    assert capsys.readouterr().out.count("1 runs:") == 4


def test_an_experiment_that_offers_no_program_is_refused(tmp_path):
    tasks = [Task(r, str(tmp_path)) for r in identify(configurations("tests.launch.trivial"))]
    executor = inprocess.make(inprocess.Options())
    with pytest.raises(UsageError, match="tests.launch.trivial offers no ONE_PROGRAM"):
        executor.describe(Batch("x", None, str(tmp_path), tasks))
    with pytest.raises(UsageError, match="must be a local folder"):
        executor.execute(Batch("x", None, "gs://bucket/x", tasks), None)
    with pytest.raises(ValueError, match="inprocess: at_once must be at least 1, got 0"):
        inprocess.Options(at_once=0)
    with pytest.raises(ValueError, match="inprocess: grace must be at least 0, got -1"):
        inprocess.Options(grace=-1)


class Told:
    """A watcher that remembers."""

    def __init__(self):
        self.all = []

    def __getattr__(self, name):
        return lambda task, *why: self.all.append((name, getattr(task, "id", task), *why))

    def of(self, name):
        return [entry[1:] for entry in self.all if entry[0] == name]


@pytest.fixture
def measured(monkeypatch):
    """How many runs each program measured."""
    counts, measure = [], inprocess.measure

    def counting(program, config, values):
        counts.append(len(values["number"]))
        return measure(program, config, values)

    monkeypatch.setattr(inprocess, "measure", counting)
    return counts


def tasks_of(workdir, numbers):
    sweep = configurations("tests.launch.pure", grid({"number": numbers}))
    return [Task(run, str(workdir)) for run in identify(sweep)]


def test_what_another_driver_did_meanwhile_is_not_measured_again(tmp_path, measured):
    tasks, told = tasks_of(tmp_path, (0.1, 0.2, 0.3)), Told()
    tasks[1].layout.save_result(tasks[1].id, {"by": "another"})
    inprocess.make(inprocess.Options()).execute(Batch("x", None, str(tmp_path), tasks), told)
    assert measured == [2] and drive.results(tmp_path)[tasks[1].id] == {"by": "another"}
    assert sorted(told.of("done")) == sorted((task.id,) for task in tasks)
    assert not told.of("failed")


def test_a_run_that_another_process_has_is_waited_for_and_done_where_it_leaves_no_result(
    tmp_path, measured, monkeypatch
):
    monkeypatch.setattr(inprocess, "_PAUSE", 0.05)
    tasks, told = tasks_of(tmp_path, (0.1, 0.2, 0.3)), Told()
    first, second, _ = (task.id for task in tasks)
    held = [lifeline.locked(inprocess._lock(task)) for task in tasks[:2]]
    assert all(lock.__enter__() for lock in held)

    def elsewhere():
        drive.wait_until(lambda: len(told.of("again")) == 2)
        time.sleep(0.3)
        tasks[0].layout.save_result(first, {"by": "another"})
        for lock in held:
            lock.__exit__(None, None, None)

    other = threading.Thread(target=elsewhere)
    other.start()
    inprocess.make(inprocess.Options()).execute(Batch("x", None, str(tmp_path), tasks), told)
    other.join()
    assert measured == [1, 1]
    assert told.of("again") == [(name, "run by another process") for name in (first, second)]
    assert drive.results(tmp_path)[first] == {"by": "another"}
    assert drive.results(tmp_path).keys() == {task.id for task in tasks}
    assert len(told.of("done")) == 3 and not told.of("failed")


def test_as_many_runs_are_locked_as_the_system_allows_files(monkeypatch):
    monkeypatch.setattr(inprocess.resource, "getrlimit", lambda which: (300, 400))
    raised = []
    monkeypatch.setattr(inprocess.resource, "setrlimit", lambda which, to: raised.append(to))
    assert inprocess._most_locks(10) == 44 and raised == []
    assert inprocess._most_locks(1024) == 144 and raised == [(400, 400)]


def test_runs_are_divided_over_the_devices_and_the_last_share_is_filled_up():
    def square(config, values):
        return {"square": values["x"] ** 2, "same": jnp.arange(2), "offset": config + values["n"]}

    program = OneProgram(("x", "n"), square)
    assert len(jax.devices()) == 8
    for count in (1, 3, 8, 11):
        x = np.linspace(0.0, 1.0, count)
        found = inprocess.measure(program, 10, {"x": x, "n": np.arange(count)})
        np.testing.assert_array_equal(found["square"], x**2)
        np.testing.assert_array_equal(found["offset"], 10 + np.arange(count))
        assert found["same"].shape == (count, 2)


def test_values_are_as_exact_as_python_s():
    tasks = [Task(r, "x") for r in identify(trainings())]
    configs = [task.run.configuration.resolve() for task in tasks]
    program = OneProgram((f"{TRAINING}.seed", f"{TRAINING}.learning_rate"), lambda c, v: {})
    values = inprocess.Group(program, tasks, configs).values()
    assert values[f"{TRAINING}.seed"].dtype == np.int64
    assert values[f"{TRAINING}.learning_rate"].tolist() == [1e-3, 1e-3, 3e-3, 3e-3, 1e-2, 1e-2]
    assert Layout("x").workdir == "x"


STOPPED = ("--executor=inprocess", "--inprocess.at_once=1")


@pytest.mark.faults
def test_a_driver_asked_to_stop_saves_what_its_program_finds_and_exits_with_42(tmp_path):
    drive.finish(tmp_path / "undisturbed", "tests.launch.pure:eight", *STOPPED)
    workdir = tmp_path / "sweep"
    driver = drive.start(workdir, "tests.launch.pure:eight", *STOPPED, "--inprocess.grace=300")
    drive.wait_until(lambda: drive.results(workdir))
    driver.terminate()
    assert driver.wait(drive.PATIENCE) == 42, drive.output(workdir)
    done = drive.results(workdir)
    assert 1 <= len(done) < 8
    shown = drive.finish(workdir, "tests.launch.pure:eight", *STOPPED)
    assert f"8 runs, {len(done)} done, {8 - len(done)} to do" in shown
    assert drive.results(workdir) == drive.results(tmp_path / "undisturbed")


@pytest.mark.faults
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 42), (signal.SIGINT, 130)])
def test_a_program_that_does_not_end_in_time_is_left(tmp_path, number, code):
    workdir = tmp_path / "sweep"
    driver = drive.start(workdir, "tests.launch.pure:endless", *STOPPED, "--inprocess.grace=1")
    (name,) = drive.wait_until(lambda: drive.results(workdir))
    drive.wait_until(lambda: f"done     {name}" in drive.output(workdir))
    driver.send_signal(number)
    assert driver.wait(drive.PATIENCE) == code, drive.output(workdir)
    assert list(drive.results(workdir)) == [name]
