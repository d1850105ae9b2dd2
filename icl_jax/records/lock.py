"""A folder for one process at a time."""

import contextlib
import fcntl
import os
import platform
import weakref
from pathlib import Path

import jax

from icl_jax.records.errors import WorkdirError, unwritable

LOCK = ".lock"


class FolderLock:
    """Keeps other processes out of a folder until it is released or its process ends.

    The kernel holds it, so a killed process leaves no lock: only the file, which the next one takes
    over. (On a file system without locks, the file's process is asked for instead, and believed to
    be alive on another host.)
    """

    def __init__(self, folder: Path) -> None:
        """Locks ``folder``.

        Raises:
          WorkdirError: another process has it; the message names process and host.
          OSError: the folder cannot be written.
        """
        self._path = folder / LOCK
        self._file = self._acquire()
        self._release = weakref.finalize(self, _unlock, self._path, self._file)

    def release(self) -> None:
        """Gives the folder free; what runs out of scope does by itself."""
        self._release()

    def _acquire(self) -> int:
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _owner(file)
                os.close(file)
                raise self._in_use(owner) from None
            except OSError:  # No locks here.
                owner = _owner(file)
                if owner is not None and _is_alive(*owner):
                    os.close(file)
                    raise self._in_use(owner) from None
            # Whoever had it before may have deleted the file that was opened here.
            try:
                current = os.stat(self._path)
            except FileNotFoundError:
                os.close(file)
                continue
            if current.st_ino != os.fstat(file).st_ino:
                os.close(file)
                continue
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} {platform.node()}\n".encode(), 0)
            return file

    def _in_use(self, owner: tuple[int, str] | None) -> WorkdirError:
        who = f"process {owner[0]} on {owner[1]}" if owner else "another process"
        return WorkdirError(
            f"workdir {self._path.parent} is in use by {who}. Wait until it has ended, or choose "
            f"another --workdir. (If there is no such process, delete {self._path}.)"
        )


#: The locks of this process by folder: it may open a run as often as it likes.
_LOCKS: weakref.WeakValueDictionary[Path, FolderLock] = weakref.WeakValueDictionary()


def lock_folder(folder: Path) -> FolderLock | None:
    """The lock of ``folder``, the same one each time in one process.

    Of the processes of one distributed program, the first holds it for all; the others get None.

    Raises:
      WorkdirError: another process has it, or the folder cannot be written.
    """
    if jax.process_index() != 0:
        return None
    where = folder.resolve()
    lock = _LOCKS.get(where)
    if lock is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(where)
        except OSError as error:
            raise unwritable(folder, error) from error
        _LOCKS[where] = lock
    return lock


def _unlock(path: Path, file: int) -> None:
    with contextlib.suppress(OSError):
        # A forked child that ends must not give free what its parent holds.
        if (owner := _owner(file)) is not None and owner[0] == os.getpid():
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.close(file)


def _owner(file: int) -> tuple[int, str] | None:
    """Process and host that a lock file names; None where it names none."""
    process, _, host = os.pread(file, 1000, 0).decode(errors="replace").strip().partition(" ")
    return (int(process), host) if process.isdecimal() and host else None


def _is_alive(process: int, host: str) -> bool:
    if host != platform.node():
        return True  # Nobody to ask.
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()
