"""A training that is killed and started again ends bit for bit as if nothing had happened."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from icl_jax.records import WorkdirError, lock_folder

TRAINEE = Path(__file__).parent / "trainee.py"
NUM_STEPS = 403


def start(folder, *kill):
    command = [sys.executable, str(TRAINEE), str(folder / "run"), str(folder / "params.npz"), *kill]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def finish(folder):
    process = start(folder)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def num_rows(folder):
    path = folder / "run" / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def checkpoints(folder):
    return sorted(
        int(p.name) for p in (folder / "run" / "checkpoints").iterdir() if p.name.isdigit()
    )


def half_written(folder):
    return [p.name for p in (folder / "run" / "checkpoints").iterdir() if not p.name.isdigit()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    errors = finish(folder)
    assert num_rows(folder) == NUM_STEPS
    progress = [line.split()[0] for line in errors.splitlines()]
    assert set(progress) == {"step"} and len(progress) <= 10, errors  # And nothing from orbax.
    return folder


def assert_same_outcome(folder, uninterrupted):
    for name in ("params.npz", "run/metrics.jsonl"):
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes(), name


def test_killed_in_mid_training_it_resumes_bit_for_bit(tmp_path, uninterrupted):
    process = start(tmp_path)
    deadline = time.monotonic() + 60
    while num_rows(tmp_path) < 100:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 100 <= num_rows(tmp_path) < NUM_STEPS
    assert 0 < checkpoints(tmp_path)[-1] < NUM_STEPS
    assert not (tmp_path / "params.npz").exists()

    finish(tmp_path)
    assert_same_outcome(tmp_path, uninterrupted)


@pytest.mark.wide(2)
@pytest.mark.parametrize("rename", ["5", "6"])
def test_killed_while_it_writes_a_checkpoint_it_resumes_bit_for_bit(
    tmp_path, uninterrupted, rename
):
    process = start(tmp_path, rename)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert checkpoints(tmp_path) == [20, 40]
    assert half_written(tmp_path) != []
    assert num_rows(tmp_path) == 60

    finish(tmp_path)
    assert_same_outcome(tmp_path, uninterrupted)
    assert half_written(tmp_path) == []


def test_killed_and_its_newest_checkpoint_damaged_it_goes_on_from_the_one_before_bit_for_bit(
    tmp_path, uninterrupted
):
    process = start(tmp_path, "5")
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert checkpoints(tmp_path) == [20, 40]
    files = [p for p in (tmp_path / "run" / "checkpoints" / "40").rglob("*") if p.is_file()]
    damaged = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)

    errors = finish(tmp_path)
    assert "damaged checkpoints" in errors and "going on from step 20" in errors, errors
    assert_same_outcome(tmp_path, uninterrupted)


@pytest.mark.wide(2)
@pytest.mark.parametrize("rename", ["5", "6"])
def test_ctrl_c_while_it_writes_a_checkpoint_waits_until_that_is_whole(
    tmp_path, uninterrupted, rename
):
    process = start(tmp_path, rename, "INT")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors, errors
    assert checkpoints(tmp_path) == [40, 60] and half_written(tmp_path) == []
    assert (tmp_path / "run" / "checkpoints" / "60" / "checksums.json").is_file()

    finish(tmp_path)
    assert_same_outcome(tmp_path, uninterrupted)


def test_a_second_process_is_told_who_trains_there(tmp_path):
    process = start(tmp_path)
    deadline = time.monotonic() + 60
    while num_rows(tmp_path) < 20:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    with pytest.raises(WorkdirError, match=f"in use by process {process.pid} on "):
        lock_folder(tmp_path / "run")
    process.kill()
    process.communicate()
    # The kernel has let go of a dead process's lock.
    lock = lock_folder(tmp_path / "run")
    assert (tmp_path / "run" / ".lock").read_text().split()[0] == str(os.getpid())
    lock.release()
    assert not (tmp_path / "run" / ".lock").exists()


def test_asked_to_end_it_checkpoints_where_it_is_and_resumes_bit_for_bit(tmp_path, uninterrupted):
    process = start(tmp_path)
    deadline = time.monotonic() + 60
    while num_rows(tmp_path) < 100:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 42 and "Traceback" not in errors
    assert checkpoints(tmp_path)[-1] == num_rows(tmp_path) < NUM_STEPS

    finish(tmp_path)
    assert_same_outcome(tmp_path, uninterrupted)


@pytest.mark.faults
def test_sigkill_at_twenty_random_moments_changes_no_bit(tmp_path, uninterrupted):
    generator, kills = random.Random(0), 0
    folder = tmp_path / "killed"
    folder.mkdir()
    process = start(folder)
    while kills < 20:
        # While it starts, while it trains (up to a row drawn at random), or a moment later.
        row = num_rows(folder) + generator.randint(1, NUM_STEPS // 4)
        deadline = time.monotonic() + generator.choice((generator.uniform(0, 3), 120))
        while num_rows(folder) < row and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.02))
        if process.poll() is not None:  # Nothing is left to kill: from the start again.
            _, errors = process.communicate()
            assert process.returncode == 0, errors
            assert_same_outcome(folder, uninterrupted)
            shutil.rmtree(folder)
            folder.mkdir()
        else:
            process.kill()
            process.communicate()
            kills += 1
        process = start(folder)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert_same_outcome(folder, uninterrupted)
