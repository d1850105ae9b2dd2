"""Standard output that may be a closed pipe or a full disk."""

import contextlib
import os
import sys
from collections.abc import Iterator

#: How a process ends that writes to a closed pipe.
CLOSED = 141


@contextlib.contextmanager
def told(name: str) -> Iterator[None]:
    """Around what prints: a closed pipe (``| head -1``) is no error, a full disk is one.

    Raises:
      SystemExit: 141 for a closed pipe; 1, with a line that says why, where standard output cannot
        be written.
    """
    try:
        try:
            yield
        finally:  # Also on the way out of ``sys.exit``: what is not written yet is tried here.
            sys.stdout.flush()
    except BrokenPipeError:
        _close_output()
        sys.exit(CLOSED)
    except SystemExit as ended:
        # Rich, whose code for this is that of any failure.
        if isinstance(ended.__context__, BrokenPipeError):
            sys.exit(CLOSED)
        raise
    except OSError as error:
        if error.filename is not None:  # A file of the run, not standard output.
            raise
        _close_output()
        reason = f"standard output cannot be written: {error.strerror}."
        print(f"{name}: error: {reason}", file=sys.stderr)
        sys.exit(1)


def _close_output() -> None:
    """Nothing more is written, nor tried at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
