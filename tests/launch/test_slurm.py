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


def submission(pid):
    """The process of submitit that a worker belongs to."""
    while pid > 1:
        if b"submitit.core._submit" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
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
