"""What is wrong with a folder or a file of a run, and what to do."""

import errno
from pathlib import Path


class WorkdirError(ValueError):
    """A folder that cannot hold this run; the message says what to do."""


def damaged(path: Path, error: Exception) -> WorkdirError:
    """The error of a file that a run wrote and that does not hold that any more."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return WorkdirError(
        f"{path} is damaged ({reason[:200]}). Delete it: the same command makes it again."
    )


def unwritable(path: Path, error: OSError) -> WorkdirError:
    """The error of a file or folder that cannot be written, a full disk among the reasons."""
    advice = "Choose another --workdir."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "Free some space there: the same command goes on."
    return WorkdirError(f"{path} cannot be written ({error.strerror or error}). {advice}")
