"""Standard output that may be a closed pipe or a full disk."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator

#: How a process ends that writes to a closed pipe.
CLOSED = 141
#: What keeps a stream from being written. Libraries raise OSError for much else: a connection that
#: was refused, a file that is no checkpoint; those say so themselves.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


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
        # A file of the run, or no stream at all.
        if error.filename is not None or error.errno not in UNWRITABLE:
            raise
        _close_output()
        reason = f"standard output cannot be written: {error.strerror}."
        print(f"{name}: error: {reason}", file=sys.stderr)
        sys.exit(1)


def _close_output() -> None:
    """Nothing more is written, nor tried at the end of the process."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
