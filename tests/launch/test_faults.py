"""Whatever is killed, filled up or started twice: nothing is lost, and nothing is done twice.

Real processes, real signals. Run by its own command: ``pytest -m faults``.
"""

import random
import shutil
import signal
import subprocess
import time

import pytest

from tests.launch import drive

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of Unix"),
]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed") / "sweep"
    drive.finish(workdir, "twelve")
    found = drive.results(workdir)
    assert len(found) == 12
    assert set(drive.attempts(workdir).values()) == {1}
    return found


def assert_as_undisturbed(workdir, undisturbed):
    assert drive.results(workdir) == undisturbed
    assert not drive.done_twice(workdir)


def test_sigkill_at_twenty_random_moments_changes_no_number_and_repeats_nothing(
    tmp_path, undisturbed
):
    workdir, generator = tmp_path / "sweep", random.Random(0)
    kills = 0
    driver = drive.start(workdir, "twelve", "--local.retries=20")
    while kills < 20:
        # Nothing left to kill: from the start again, with what was found so far checked.
        code = driver.poll()
        assert code in (None, 0), drive.output(workdir)
        if code == 0:
            assert_as_undisturbed(workdir, undisturbed)
            shutil.rmtree(workdir)
            drive.forget(workdir)
            driver = drive.start(workdir, "twelve", "--local.retries=20")
        time.sleep(generator.uniform(0.0, 0.8))
        victims = list(drive.workers(workdir))
        if not victims:
            continue
        if generator.random() < 0.3:
            driver.kill()
            driver.wait()
            kills += 1
            driver = drive.start(workdir, "twelve", "--local.retries=20")
        else:
            kills += drive.kill(generator.choice(victims))
    assert driver.wait(drive.PATIENCE) == 0, drive.output(workdir)
    assert_as_undisturbed(workdir, undisturbed)


def test_a_killed_driver_takes_its_workers_along_and_the_next_goes_on(tmp_path, undisturbed):
    workdir = tmp_path / "sweep"
    driver = drive.start(workdir, "twelve")
    drive.wait_until(lambda: len(drive.results(workdir)) >= 2 and drive.workers(workdir))
    driver.kill()
    driver.wait()
    drive.wait_until(lambda: not drive.workers(workdir), patience=5.0)
    done = drive.results(workdir)
    assert 2 <= len(done) < 12

    drive.finish(workdir, "twelve")
    assert f"12 runs, {len(done)} done, {12 - len(done)} to do" in drive.output(workdir)
    assert_as_undisturbed(workdir, undisturbed)


def test_a_driver_asked_to_end_lets_its_workers_save_and_exits_with_42(tmp_path, undisturbed):
    workdir = tmp_path / "sweep"
    driver = drive.start(workdir, "twelve")
    drive.wait_until(lambda: drive.results(workdir))
    driver.terminate()
    assert driver.wait(drive.PATIENCE) == 42
    assert not drive.workers(workdir)
    drive.finish(workdir, "twelve")
    assert_as_undisturbed(workdir, undisturbed)


def test_two_drivers_at_once_share_the_runs(tmp_path, undisturbed):
    workdir = tmp_path / "sweep"
    drivers = [drive.start(workdir, "twelve", "--local.workers=2") for _ in range(2)]
    assert [driver.wait(drive.PATIENCE) for driver in drivers] == [0, 0], drive.output(workdir)
    assert_as_undisturbed(workdir, undisturbed)
    assert set(drive.attempts(workdir).values()) == {1}


def test_every_way_to_end_has_its_outcome(tmp_path):
    workdir = tmp_path / "sweep"
    shown = drive.finish(workdir, "acts", code=1)
    done = {result["config"]["act"] for result in drive.results(workdir).values()}
    assert done == {"well", "killed_once", "preempted_once"}
    assert "ended with exit code 1" in shown and "killed by SIGKILL, 3 times" in shown
    assert sorted(drive.attempts(workdir).values()) == [1, 1, 2, 2, 3]
    # What failed is tried again by the same command, and only that.
    before = drive.attempts(workdir)
    drive.finish(workdir, "acts", "--local.retries=0", code=1)
    again = {n for n, count in drive.attempts(workdir).items() if count > before[n]}
    assert again == set(before) - set(drive.results(workdir))


def test_a_run_beyond_its_time_limit_saves_and_ends(tmp_path):
    workdir = tmp_path / "sweep"
    shown = drive.finish(workdir, "sleeper", "--local.time_limit=8", code=1)
    assert "stopped by its time limit" in shown
    ((log),) = drive.events(workdir).values()
    assert log[-1]["event"] == "ended" and log[-1]["code"] == 42


def test_trivial_runs_are_each_started_once(tmp_path):
    """What that costs beside their start-ups is ``benchmarks.sweeps``."""
    drive.finish(tmp_path / "sweep", "twenty_four", "--local.workers=2")
    assert len(drive.results(tmp_path / "sweep")) == 24
    started = drive.attempts(tmp_path / "sweep")
    assert len(started) == 24 and set(started.values()) == {1}


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk can be mounted by root only")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_fails_what_needs_it_and_nothing_else_and_room_mends_it(small_disk):
    workdir = small_disk / "sweep"
    shown = drive.finish(workdir, "filler", code=1)
    assert "the disk is full" in shown
    assert [result["config"]["act"] for result in drive.results(workdir).values()] == ["well"]
    assert not list(workdir.rglob("*.partial"))
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    drive.finish(workdir, "filler")
    assert len(drive.results(workdir)) == 2
