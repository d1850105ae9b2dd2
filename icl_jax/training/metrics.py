"""Metrics on disk: JSON lines, one object per step, cut back to the checkpoint on resume."""

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax
import numpy as np

from icl_jax.records import WorkdirError, atomic_file, parsed, unwritable

#: One line: the step and its numbers.
Row = dict[str, int | float]


def append_rows(path: Path, rows: Iterable[Mapping[str, int | float]]) -> None:
    """Appends rows, and returns when they are on disk.

    JSON has no word for what is not finite: that is written as ``"nan"``, ``"inf"`` or ``"-inf"``,
    which ``float`` reads, and so does ``read_rows``.

    Of the processes of one program only the first writes.

    Raises:
      WorkdirError: the file cannot be written.
    """
    if jax.distributed.is_initialized() and jax.process_index() != 0:
        return
    try:
        with path.open("ab") as file:
            file.write(_encode(rows))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:  # A row cut off by a full disk is dropped when the run goes on.
        raise unwritable(path, error) from error


def read_rows(path: Path) -> list[Row]:
    """Reads the rows up to the first that was not written to its end; no file, no rows.

    Raises:
      WorkdirError: a whole line that is no row.
    """
    rows = []
    if path.is_file():
        *whole, _ = path.read_bytes().split(b"\n")
        for number, line in enumerate(whole, start=1):
            try:
                row = parsed(line).items()
                rows.append({k: float(v) if isinstance(v, str) else v for k, v in row})
            except (ValueError, AttributeError) as error:
                raise WorkdirError(
                    f"{path} is damaged: line {number} is no row of metrics. Put the file back, or "
                    f"delete the folder {path.parent} to train again."
                ) from error
    return rows


def keep_rows(path: Path, last_step: int) -> list[Row]:
    """Drops the rows after ``last_step``, in one step, and returns the ones that stay.

    Raises:
      WorkdirError: one of the steps 1 to ``last_step`` has no row; the file stays as it is.
    """
    rows = read_rows(path)[:last_step]
    if [row.get("step") for row in rows] != list(range(1, last_step + 1)):
        raise WorkdirError(
            f"keep_rows: {path} does not hold one row for each step up to {last_step}, where the "
            "checkpoint is. Put the file back, or train in another folder."
        )
    with atomic_file(path) as file:
        file.write(_encode(rows))
    return rows


def columns(rows: Iterable[Mapping[str, int | float]]) -> dict[str, np.ndarray]:
    """Rows to columns: each metric as an array with one entry per row."""
    rows = list(rows)
    return {name: np.asarray([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def _encode(rows: Iterable[Mapping[str, int | float]]) -> bytes:
    lines = [json.dumps({k: _finite(v) for k, v in row.items()}, allow_nan=False) for row in rows]
    return "".join(line + "\n" for line in lines).encode()


def _finite(value: int | float) -> int | float | str:
    return value if math.isfinite(value) else str(value)
