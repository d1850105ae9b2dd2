"""A run folder is open in one process at a time; the lock of a dead one keeps nobody out."""

import errno
import fcntl
import gc
import os
import platform
import subprocess
import sys
from dataclasses import make_dataclass

import pytest

from icl_jax.records import WorkdirError, lock_folder, open_run
from tests.records.opening import open_here

HOLD = (
    "import sys; from icl_jax.records import *; from dataclasses import make_dataclass\n"
    "try: run = open_run(sys.argv[1], make_dataclass('C', [])(), experiment='e')\n"
    "except WorkdirError as error: print(error)\n"
    "else:\n"
    "    print('open', flush=True)\n"
    "    sys.stdin.read()\n"
)


def holder(folder):
    """A process that has opened a run, and keeps it open until it is told to end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )


def test_a_second_process_is_told_who_has_the_folder_and_a_dead_ones_lock_is_none(tmp_path):
    config = make_dataclass("C", [])()
    first = holder(tmp_path)
    assert first.stdout.readline() == "open\n"
    with pytest.raises(WorkdirError) as caught:
        open_run(tmp_path, config, experiment="e")
    message = str(caught.value)
    assert f"is in use by process {first.pid} on {platform.node()}. Wait until" in message
    assert ".lock" in message
    first.kill()
    first.communicate()
    assert (tmp_path / ".lock").exists()  # Nobody was left to delete it; nobody holds it.
    run = open_run(tmp_path, config, experiment="e")
    again = open_run(tmp_path, config, experiment="e")  # The same process may.
    assert again.lock is run.lock

    second = holder(tmp_path)
    out, _ = second.communicate("")
    assert f"in use by process {os.getpid()} on" in out
    del run, again
    gc.collect()
    assert not (tmp_path / ".lock").exists()
    third = holder(tmp_path)
    assert third.communicate("")[0] == "open\n"
    assert not (tmp_path / ".lock").exists()


def test_where_the_file_system_knows_no_locks_the_process_is_asked_for(tmp_path, monkeypatch):
    def unknown(*args):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unknown)
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    for owner, refused in (
        (f"{os.getppid()} {platform.node()}", True),
        (f"{gone.pid} {platform.node()}", False),
        (f"{gone.pid} another-host", True),
        ("", False),
    ):
        (tmp_path / ".lock").write_text(owner + "\n")
        if refused:
            with pytest.raises(WorkdirError, match=f"in use by process {owner.split()[0]} on"):
                lock_folder(tmp_path)
        else:
            lock_folder(tmp_path).release()
            assert not (tmp_path / ".lock").exists()


def test_a_folder_that_is_refused_is_left_without_a_lock(tmp_path):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(WorkdirError):
        open_here(tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]
