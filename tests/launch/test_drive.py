"""The check that nothing is done twice finds what is."""

import json

import pytest

from tests.launch import drive


@pytest.fixture
def done(tmp_path):
    """A workdir with two results that were seen."""
    for folder in ("results", "logs"):
        (tmp_path / folder).mkdir()
    for name in ("a", "b"):
        (tmp_path / "results" / f"{name}.json").write_text("{}")
        note(tmp_path, name, time=0.0)
    drive.look(tmp_path)
    assert drive.done_twice(tmp_path) == []
    return tmp_path


def note(workdir, name, time):
    with (workdir / "logs" / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps({"event": "started", "time": time}) + "\n")


def again(workdir, name):
    """Writes the same result again, in one step, as a run does."""
    (workdir / "new").write_text("{}")
    (workdir / "new").rename(workdir / "results" / f"{name}.json")


def test_a_result_that_is_written_again_is_found_though_it_says_the_same(done):
    again(done, "b")
    assert drive.done_twice(done) == ["b"]
    drive.forget(done)
    assert drive.done_twice(done) == []


def test_a_start_after_the_first_result_is_found_though_another_followed(done):
    first = (done / "results" / "a.json").stat().st_mtime
    note(done, "a", first + 0.001)
    again(done, "a")
    assert drive.done_twice(done) == ["a"]
