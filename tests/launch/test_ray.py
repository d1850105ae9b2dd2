"""A real Ray cluster of two nodes on this machine; one of them is lost midway.

Needs the extra ray; by its own command: ``pytest -m ray``.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.launch import drive

pytestmark = pytest.mark.ray

PORT = 6399
#: A token of this test's own: else Ray makes one for the user, or lets everybody run code here.
CLUSTER = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Of a node that is alive but starved: a busy machine misses five looks in a row.
    "RAY_health_check_failure_threshold": "20",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
}
RAY = Path(sys.executable).with_name("ray")


def start_node(address, folder, *arguments):
    """Starts a node in the foreground, loopback only; it ends with its process."""
    environment = {**os.environ, **CLUSTER, "PYTHONPATH": str(drive.ROOT)}
    # Ray's workers give way to everything else (nice 15); on a busy machine they starve.
    environment["RAY_worker_niceness"] = "0"
    command = [str(RAY), "start", "--block", f"--node-ip-address={address}", "--num-cpus=1"]
    command += ["--object-store-memory=100000000", *arguments]
    with (folder / f"node-{address}.log").open("ab") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=drive.ROOT)


def log_of(address, folder):
    """What a node said so far."""
    return (folder / f"node-{address}.log").read_text()


def raylets():
    """The raylets of our cluster, oldest first: process -> its start."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes()
            start = int((path / "stat").read_text().rpartition(")")[2].split()[19])
        except (OSError, IndexError):
            continue
        if line.split(b"\0")[0].endswith(b"raylet") and f":{PORT}".encode() in line:
            found[int(path.name)] = start
    return sorted(found, key=lambda pid: found[pid])


def parent(pid):
    """The parent of a process, None when it has ended."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def tree(pid):
    """A process and all that it started, parents before children."""
    parents = {int(path.name): parent(int(path.name)) for path in Path("/proc").glob("[0-9]*")}
    found = [pid]
    for known in found:
        found += [child for child, its in parents.items() if its == known]
    return found


def on(node, workdir):
    """The runs that a node is at work on."""
    family = tree(node)
    return [name for pid, name in drive.workers(workdir).items() if pid in family]


def is_in_the_middle(workdir, name):
    """Whether a run has begun to save steps and has some to go."""
    saved = len(list((workdir / "runs" / name).glob("step*.json")))
    return 1 <= saved <= 3


@pytest.fixture
def two_nodes(tmp_path):
    pytest.importorskip("ray")
    # Not under tmp_path: the names of sockets are short.
    session = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    head = ["--head", f"--port={PORT}", "--include-dashboard=false", f"--temp-dir={session}"]
    nodes = [start_node("127.0.0.2", tmp_path, *head)]
    try:
        drive.wait_until(lambda: "Ray runtime started" in log_of("127.0.0.2", tmp_path))
        nodes.append(start_node("127.0.0.3", tmp_path, f"--address=127.0.0.2:{PORT}"))
        drive.wait_until(lambda: len(raylets()) == 2)
        yield tmp_path
    finally:
        for node in reversed(nodes):
            node.terminate()
        for node in nodes:
            node.wait(60)
        shutil.rmtree(session, ignore_errors=True)


def test_a_driver_asked_to_stop_lets_its_runs_save_and_exits_with_42(two_nodes, tmp_path):
    workdir = tmp_path / "sweep"
    flags = ("--executor=ray", f"--ray.address=127.0.0.2:{PORT}")
    driver = drive.start(workdir, "twelve_slow", *flags, environment=CLUSTER)
    drive.wait_until(
        lambda: any(is_in_the_middle(workdir, name) for name in drive.workers(workdir).values())
    )
    driver.terminate()
    assert driver.wait(drive.PATIENCE) == 42, drive.output(workdir)
    assert not drive.workers(workdir)
    log = [event for events in drive.events(workdir).values() for event in events]
    assert 42 in [event["code"] for event in log if event["event"] == "ended"]
    drive.finish(workdir, "twelve_slow", *flags, environment=CLUSTER)
    found = {r["config"]["number"]: r["summary"]["square"] for r in drive.results(workdir).values()}
    assert found == {n: sum((n + step) ** 2 / 4 for step in range(4)) for n in range(20, 32)}
    assert not drive.done_twice(workdir)


def test_a_sweep_survives_the_loss_of_a_node(two_nodes, tmp_path):
    workdir = tmp_path / "sweep"
    flags = ("--executor=ray", f"--ray.address=127.0.0.2:{PORT}")
    driver = drive.start(workdir, "twenty_four_steps", *flags, environment=CLUSTER)
    _, second = raylets()
    # Midway: some runs are done, and the second node is in the middle of one.
    drive.wait_until(lambda: len(drive.results(workdir)) >= 6)
    drive.wait_until(lambda: any(is_in_the_middle(workdir, name) for name in on(second, workdir)))
    for pid in tree(second):  # As when a machine goes: everything on it, at once.
        drive.kill(pid)
    assert len(drive.results(workdir)) < 24
    assert driver.wait(drive.PATIENCE) == 0, drive.output(workdir)
    assert len(raylets()) == 1
    assert "its machine was lost" in drive.output(workdir)
    found = {r["config"]["number"]: r["summary"]["square"] for r in drive.results(workdir).values()}
    assert found == {n: sum((n + step) ** 2 / 4 for step in range(4)) for n in range(100, 124)}
    assert max(drive.attempts(workdir).values()) == 2
    assert not drive.done_twice(workdir)
    drive.finish(workdir, "twenty_four_steps", *flags, environment=CLUSTER)
    assert "24 runs, 24 done, 0 to do" in drive.output(workdir)
