"""A sweep whose workdir is in a bucket, with a folder of this machine as the bucket."""

import os
import tarfile
import threading

import fsspec
import pytest

from launch import observe, staging, worker
from launch.layout import Layout
from launch.observe import read_events
from tests.launch import drive
from tests.launch.bucket.sitecustomize import Bucket

HERE = drive.ROOT / "tests" / "launch" / "bucket"


@pytest.fixture
def buckets(tmp_path, monkeypatch):
    monkeypatch.setenv("BUCKETS", str(tmp_path))
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    return tmp_path


def test_a_sweep_runs_into_a_bucket_and_goes_on_from_it(buckets):
    workdir = buckets / "bucket" / "sweep"
    workdir.parent.mkdir()
    environment = {"PYTHONPATH": os.pathsep.join([str(drive.ROOT), str(HERE)])}
    where = {"address": "gs://bucket/sweep", "environment": environment}
    shown = drive.finish(workdir, "preempted", **where)
    assert "again" in shown and "preempted" in shown
    found = drive.results(workdir)
    assert {r["config"]["act"]: r["summary"]["square"] for r in found.values()} == {
        "well": 0.5,
        "preempted_once": 0.5,
    }
    assert sorted(drive.attempts(workdir).values()) == [1, 2]
    for name in found:
        files = {path.name for path in (workdir / "runs" / name).iterdir()}
        assert {"config.json", "summary.json", "step0.json"} <= files
        assert "squared is 0.5" in (workdir / "logs" / f"{name}.log").read_text()
    assert not list((workdir / "runs").glob("*.tar"))
    assert "2 runs, 2 done" in drive.finish(workdir, "preempted", **where)


def test_what_an_attempt_left_is_there_for_the_next(buckets):
    layout = Layout("gs://bucket/sweep")
    with pytest.raises(KeyboardInterrupt), staging.folder(layout, "r") as local:
        (local / "checkpoints").mkdir(parents=True)
        (local / "checkpoints" / "state").write_bytes(b"\1\2")
        raise KeyboardInterrupt
    assert not local.exists()
    with staging.folder(layout, "r") as local:
        assert (local / "checkpoints" / "state").read_bytes() == b"\1\2"
        (local / "summary.json").write_text("{}")
        staging.publish(local, layout, "r")
    published = buckets / "bucket" / "sweep" / "runs"
    assert [p.name for p in published.rglob("*") if p.is_file()] == ["summary.json"]


def test_a_machine_that_is_lost_leaves_the_last_copy(buckets):
    layout = Layout("gs://bucket/sweep")
    archive = buckets / "bucket" / "sweep" / "runs" / "r.tar"
    with staging.folder(layout, "r", copy_every=0.05) as local:
        local.mkdir()
        (local / "step0").touch()
        drive.wait_until(archive.exists)
        drive.wait_until(lambda: "./step0" in names(archive))
    assert threading.active_count() < 100


@pytest.fixture
def trouble(buckets, monkeypatch):
    """Endings of names that the bucket neither writes nor deletes, and how often it was asked."""
    endings, asked = set(), []

    def troubled(method, writes):
        def guarded(self, path, *more, **options):
            if writes(*more, **options) and str(path).endswith(tuple(endings)):
                asked.append(str(path))
                raise RuntimeError("429: slow down")  # Not an OSError, as buckets have their own.
            return method(self, path, *more, **options)

        return guarded

    writes = lambda mode="rb", *_, **__: "r" not in mode  # noqa: E731
    monkeypatch.setattr(Bucket, "_open", troubled(Bucket._open, writes))
    monkeypatch.setattr(Bucket, "rm", troubled(Bucket.rm, lambda *_, **__: True))
    return endings, asked


def test_copies_go_on_when_the_bucket_s_trouble_is_over(buckets, trouble, capsys):
    endings, asked = trouble
    endings.add(".tar")
    archive = buckets / "bucket" / "sweep" / "runs" / "r.tar"
    with staging.folder(Layout("gs://bucket/sweep"), "r", copy_every=0.05) as local:
        local.mkdir()
        (local / "step0").touch()
        drive.wait_until(lambda: len(asked) > 2)
        assert not archive.exists()
        endings.clear()
        drive.wait_until(lambda: archive.exists() and "./step0" in names(archive))
    shown = capsys.readouterr().err
    assert shown == (
        "launch.staging: the run's folder was not copied (RuntimeError: 429: slow down); the copy "
        "before this one stays.\n"
    )


def test_what_an_attempt_leaves_for_the_next_must_arrive(buckets, trouble):
    endings, _ = trouble
    with pytest.raises(RuntimeError, match="slow down"):
        with staging.folder(Layout("gs://bucket/sweep"), "r") as local:
            local.mkdir()
            endings.add(".tar")


#: A run of ``trivial`` in a bucket.
WORKER = ["worker", "gs://bucket/sweep", "r", "tests.launch.trivial", "--number=3"]


def test_a_finished_run_needs_neither_its_log_nor_its_events(buckets, trouble, capfd, monkeypatch):
    endings, asked = trouble
    noted = observe.Observer.__enter__

    def then_trouble(observer):
        entered = noted(observer)
        endings.update((".jsonl", ".log", ".tar"))
        return entered

    monkeypatch.setattr(observe.Observer, "__enter__", then_trouble)
    assert worker.main(WORKER) == 0
    assert drive.results(buckets / "bucket" / "sweep")["r"]["summary"]["square"] == 9.0
    assert {path.rpartition("r.")[2] for path in asked} == {"jsonl", "log", "tar"}
    shown = capfd.readouterr().err
    assert "the end of the attempt was not noted (RuntimeError: 429: slow down)" in shown
    assert "runs/r.tar was not deleted" in shown and "logs/r.log was not written" in shown


def test_a_log_that_cannot_be_written_is_printed(buckets, trouble, capfd):
    trouble[0].add(".log")
    with staging.log(Layout("gs://bucket/sweep"), "r"):
        os.write(1, b"what the run said\n")
    assert capfd.readouterr().err.endswith("it is printed here.\nwhat the run said\n")


@pytest.mark.parametrize("ending", ["summary.json", "r.json"])
def test_a_run_whose_files_or_result_do_not_arrive_has_failed(buckets, trouble, ending):
    trouble[0].add(ending)
    with pytest.raises(RuntimeError, match="slow down"):
        worker.main(WORKER)
    assert not drive.results(buckets / "bucket" / "sweep")
    trouble[0].clear()
    assert worker.main(WORKER) == 0
    assert list(drive.results(buckets / "bucket" / "sweep")) == ["r"]


def names(archive):
    try:
        with tarfile.open(archive) as tar:
            return tar.getnames()
    except tarfile.ReadError:  # In the middle of being written; a bucket's object never is.
        return []


def test_events_of_a_bucket_are_read_as_they_were_written(buckets):
    path = Layout("gs://bucket/sweep").log("r", "jsonl")
    assert read_events(path) == []
    path.write_text('{"event": "started"}\n{"event": "en')
    assert read_events(path) == [{"event": "started"}]
