"""A run of a sweep in two real processes: one record, one lock, and one way to end.

Run by its own command: ``pytest -m faults``.
"""

import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from experiments.tools.flags import UsageError
from icl_jax.records import Run
from launch import worker
from launch.configuration import configurations, identify
from launch.lifeline import locked
from launch.outcomes import ELSEWHERE, PREEMPTED
from launch.task import Task
from tests.launch import drive
from tests.pair import free_port, start

pytestmark = pytest.mark.faults

MESH = "data:4,model:2"


def task(workdir, experiment, settings, mesh=MESH):
    (run,) = identify(configurations(experiment, [settings]))
    return Task(run, str(workdir), mesh=mesh)


def training(workdir, steps, mesh=MESH):
    """A short one of the learner, divided over prompts and heads."""
    settings = {
        "quick": True,
        "num_prompts": 64,
        "learner.training.batch_size": 16,
        "learner.training.steps_per_call": 10,
        "learner.training.checkpoint_every": 10,
        "learner.training.num_steps": steps,
        "learner.training.optimizer.warmup_steps": 0,
    }
    return task(workdir, "experiments.training", settings, mesh)


def start_two(task):
    """Two workers for one task, as a pod on each of two hosts starts it."""
    which = ("--distributed", f"--coordinator=127.0.0.1:{free_port()}", "--processes=2")
    return [
        start(
            4, *task.command()[2:], *which, "--heartbeat=60", f"--process={index}",
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )
        for index in range(2)
    ]  # fmt: skip


def finish(*processes):
    told = [process.communicate(timeout=900)[1] for process in processes]
    return [process.returncode for process in processes], told


def ends(workdir):
    """The codes of all attempts that are on record, whichever process wrote them."""
    (log,) = drive.events(workdir).values()
    assert sum(event["event"] == "started" for event in log) == 1
    return [event["code"] for event in log if event["event"] == "ended"]


def test_two_processes_leave_the_result_of_one(tmp_path):
    # The first steps: each step of Adam makes more of the order in which sums are rounded.
    alone = training(tmp_path / "one", 5, mesh=None)
    both = training(tmp_path / "two", 5)
    codes, told = finish(*start_two(both))
    assert codes == [0, 0], told
    # Whoever comes later, as a pod that is started again, finds it done.
    before = drive.events(tmp_path / "two")
    codes, told = finish(*start_two(both), start(1, *alone.command()[2:], stderr=subprocess.PIPE))
    assert codes == [0, 0, 0], told
    assert drive.events(tmp_path / "two") == before and ends(tmp_path / "two") == [0]

    ((name, want),) = drive.results(tmp_path / "one").items()
    ((other, got),) = drive.results(tmp_path / "two").items()
    assert name == other == both.id and want["config"] == got["config"]
    assert want["summary"].keys() == got["summary"].keys()
    for key, value in want["summary"].items():
        if isinstance(value, float):
            assert got["summary"][key] == pytest.approx(value, rel=1e-5), key
        else:
            assert got["summary"][key] == value, key
    first, second = (Run(Path(one.layout.run(name))) for one in (alone, both))
    found = second.load_arrays("arrays.npz")
    for key, values in first.load_arrays("arrays.npz").items():
        np.testing.assert_allclose(found[key], values, rtol=1e-5, err_msg=key)
    assert second.load_json("provenance.json")["device"]["count"] == 8
    for index in range(2):
        log = (second.workdir / f"process-{index}.log").read_text()
        assert log.startswith(f"process {index} of 2, 4 devices")


def test_what_another_process_has_both_leave_alone(tmp_path):
    taken = task(tmp_path, "tests.launch.trivial", {"number": 3})
    with locked(Path(taken.layout.log(taken.id, "lock"))) as free:
        assert free
        codes, told = finish(*start_two(taken))
    assert codes == [ELSEWHERE, ELSEWHERE], told
    assert not drive.results(tmp_path) and not drive.events(tmp_path)


def test_an_error_of_the_run_is_one_of_both(tmp_path):
    codes, told = finish(*start_two(task(tmp_path, "tests.launch.trivial", {"act": "error"})))
    assert codes == [1, 1], told
    assert ends(tmp_path) == [1] and not drive.results(tmp_path)


def test_where_the_first_cannot_write_the_result_the_other_ends_as_it_does(tmp_path):
    (tmp_path / "results").touch()  # It should be a folder.
    codes, told = finish(*start_two(task(tmp_path, "tests.launch.trivial", {"number": 3})))
    assert codes == [1, 1], told


def test_sigterm_to_one_preempts_both_and_both_go_on(tmp_path):
    long = training(tmp_path, 200)
    both = start_two(long)
    folder = Path(long.layout.run(long.id))
    while not any(p.read_bytes().count(b"\n") >= 30 for p in folder.glob("learners/*/*.jsonl")):
        assert all(process.poll() is None for process in both), finish(*both)
        time.sleep(0.1)
    both[1].send_signal(signal.SIGTERM)
    codes, told = finish(*both)
    assert codes == [PREEMPTED, PREEMPTED], told
    assert ends(tmp_path) == [PREEMPTED]
    codes, told = finish(*start_two(long))
    assert codes == [0, 0], told
    assert list(drive.results(tmp_path)) == [long.id]


def test_processes_share_no_bucket():
    words = ("gs://bucket/sweep", "trivial-1", "tests.launch.trivial", "--distributed")
    with pytest.raises(UsageError, match="write into one folder, which gs://bucket/sweep is not"):
        worker.main(["worker", *words])
