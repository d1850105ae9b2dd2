"""Rows come back as they went in, and a torn or surplus row is dropped."""

import errno
import os

import numpy as np
import pytest

from icl_jax.records import WorkdirError
from icl_jax.training.metrics import append_rows, columns, keep_rows, read_rows

ROWS = [{"step": step, "loss": 0.1 * step} for step in range(1, 6)]


def test_rows_come_back_exactly(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_rows(path, ROWS[:2])
    append_rows(path, ROWS[2:])
    assert read_rows(path) == ROWS
    assert path.read_text().splitlines()[0] == '{"step": 1, "loss": 0.1}'


def test_no_file_has_no_rows(tmp_path):
    assert read_rows(tmp_path / "metrics.jsonl") == []


def test_numbers_that_are_not_finite_come_back_as_they_were(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_rows(path, [{"a": float("nan"), "b": float("inf"), "c": -float("inf")}])
    assert path.read_text() == '{"a": "nan", "b": "inf", "c": "-inf"}\n'
    (row,) = read_rows(path)
    np.testing.assert_array_equal(list(row.values()), [np.nan, np.inf, -np.inf])


def test_a_row_that_was_not_written_to_its_end_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_rows(path, ROWS)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"step": 6, "lo')
    assert read_rows(path) == ROWS
    keep_rows(path, 5)
    assert path.read_bytes() == whole


def test_rows_beyond_the_checkpoint_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_rows(path, ROWS)
    assert keep_rows(path, 3) == ROWS[:3]
    assert read_rows(path) == ROWS[:3]


def test_a_missing_row_is_an_error_that_changes_nothing(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_rows(path, ROWS[:2] + ROWS[3:])
    before = path.read_bytes()
    with pytest.raises(WorkdirError, match="one row for each step up to 5.*Put the file back"):
        keep_rows(path, 5)
    assert path.read_bytes() == before


def test_columns_are_arrays_with_an_entry_per_row():
    table = columns(ROWS)
    np.testing.assert_array_equal(table["step"], [1, 2, 3, 4, 5])
    np.testing.assert_array_equal(table["loss"], [row["loss"] for row in ROWS])
    assert columns([]) == {}


@pytest.mark.parametrize(
    "line",
    [
        *(b"{half", b"[1]", b"\xff\xfe", b'{"step": 2, "loss": "much"}', b""),
        *(b'{"step": 2, "step": 2}', b'{"step": 2, "loss": NaN}'),  # What Python's reader takes.
    ],
)
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    append_rows(path, ROWS[:1])
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(WorkdirError, match="metrics.jsonl is damaged: line 2 is no row.* delete"):
        read_rows(path)


def test_a_row_without_its_step_is_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_rows(path, [{"loss": 1.0}, *ROWS[1:]])
    with pytest.raises(WorkdirError, match="one row for each step up to 2"):
        keep_rows(path, 2)


def test_metrics_on_a_full_disk_are_a_full_disk(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(WorkdirError, match=r"jsonl cannot be written \(No space left.* Free some"):
        append_rows(tmp_path / "metrics.jsonl", ROWS)
