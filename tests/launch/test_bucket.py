"""A sweep whose workdir is in a bucket, with a folder of this machine as the bucket."""

import os
import tarfile
import threading

import fsspec
import pytest

from launch import staging
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
