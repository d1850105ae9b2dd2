"""submitit's local executor stands for SLURM: real processes, its own signals.

Needs the extra slurm; runs with the other tests of faults: ``pytest -m faults``.
"""

import os
import signal
from pathlib import Path

import pytest

from tests.launch import drive

pytestmark = pytest.mark.faults

FLAGS = ("--executor=slurm", "--slurm.cluster=local", "--slurm.parallel=3")


@pytest.fixture(autouse=True)
def submitit():
    pytest.importorskip("submitit")


def test_every_way_to_end_has_the_outcome_that_it_has_in_a_pool_of_processes(tmp_path):
    workdir = tmp_path / "sweep"
    shown = drive.finish(workdir, "acts", *FLAGS, code=1)
    done = {result["config"]["act"] for result in drive.results(workdir).values()}
    assert done == {"well", "killed_once", "preempted_once"}
    assert "ended with exit code 1" in shown and "killed by SIGKILL, 3 times" in shown
    assert sorted(drive.attempts(workdir).values()) == [1, 1, 2, 2, 3]


def parent(pid):
    """The parent of a process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def submission(pid):
    """The process of submitit that a worker belongs to."""
    while pid > 1:
        if b"submitit.core._submit" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
        pid = parent(pid)
    raise AssertionError("no submission")


def test_a_job_that_is_preempted_saves_and_is_started_again(tmp_path):
    workdir = tmp_path / "sweep"
    driver = drive.start(workdir, "slow", *FLAGS)
    drive.wait_until(lambda: list((workdir / "runs").rglob("step1.json")))
    (pid,) = drive.workers(workdir)
    os.kill(submission(pid), signal.SIGUSR2)  # As SLURM announces a preemption.
    assert driver.wait(drive.PATIENCE) == 0, drive.output(workdir)
    ((log),) = drive.events(workdir).values()
    told = [event["event"] for event in log if event["event"] != "observed"]
    assert told == ["started", "ended", "started", "ended"]
    assert [event["code"] for event in log if event["event"] == "ended"] == [42, 0]


def job_of(worker):
    """A worker and what submitit started for it, children first: nothing of it stays."""
    task = submission(worker)
    return [worker, task, parent(task)]


def square(number):
    """What ``twenty_four_steps`` finds."""
    return sum((number + step) ** 2 / 4 for step in range(4))


def assert_undisturbed(workdir):
    done = drive.results(workdir).values()
    assert {r["config"]["number"]: r["summary"]["square"] for r in done} == {
        number: square(number) for number in range(100, 124)
    }
    assert not drive.done_twice(workdir)


def in_the_middle(workdir):
    """The processes of runs that have begun to save steps and have some to go: process -> run."""
    return {
        pid: name
        for pid, name in drive.workers(workdir).items()
        if 1 <= len(list((workdir / "runs" / name).glob("step*.json"))) <= 3
    }


def test_a_sweep_survives_a_killed_run_and_the_loss_of_a_job(tmp_path):
    workdir = tmp_path / "sweep"
    driver = drive.start(workdir, "twenty_four_steps", *FLAGS)
    drive.wait_until(lambda: len(drive.results(workdir)) >= 6)
    killed, name = next(iter(drive.wait_until(lambda: in_the_middle(workdir)).items()))
    drive.kill(killed)
    drive.wait_until(lambda: f"again    {name}  killed by SIGKILL" in drive.output(workdir))
    lost, other = next(iter(drive.wait_until(lambda: in_the_middle(workdir)).items()))
    for pid in job_of(lost):  # As when a machine goes.
        drive.kill(pid)
    assert driver.wait(drive.PATIENCE) == 0, drive.output(workdir)
    assert f"again    {other}  its machine was lost" in drive.output(workdir)
    assert_undisturbed(workdir)
    drive.finish(workdir, "twenty_four_steps", *FLAGS)
    assert "24 runs, 24 done, 0 to do" in drive.output(workdir)


def test_a_driver_asked_to_stop_lets_its_jobs_save_and_exits_with_42(tmp_path):
    workdir = tmp_path / "sweep"
    driver = drive.start(workdir, "twelve_slow", *FLAGS)
    drive.wait_until(lambda: drive.results(workdir) and in_the_middle(workdir))
    driver.terminate()
    assert driver.wait(drive.PATIENCE) == 42, drive.output(workdir)
    assert not drive.workers(workdir)
    log = [event for events in drive.events(workdir).values() for event in events]
    assert 42 in [event["code"] for event in log if event["event"] == "ended"]
    done = drive.results(workdir)
    assert 1 <= len(done) < 12
    shown = drive.finish(workdir, "twelve_slow", *FLAGS)
    assert f"12 runs, {len(done)} done, {12 - len(done)} to do" in shown
    found = {r["config"]["number"]: r["summary"]["square"] for r in drive.results(workdir).values()}
    assert found == {number: square(number) for number in range(20, 32)}
    assert not drive.done_twice(workdir)
