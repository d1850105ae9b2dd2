"""Files that appear whole, or not at all."""

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from icl_jax.records.errors import unwritable
from icl_jax.records.processes import is_first

PARTIAL = ".partial"  # Suffix of a file that is still being written.


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens ``path`` for writing bytes; it appears, whole, when the block ends without an error.

    Of the processes of one program only the first writes; what the others write is dropped.

    Raises:
      WorkdirError: it cannot be written: no space left, no permission. What was there stays.
    """
    if not is_first():
        yield io.BytesIO()
        return
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
