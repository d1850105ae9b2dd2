"""The folder that an experiment writes into: the sweep's own, or a copy of one in a bucket.

Experiments write ordinary files. Where the sweep is in a bucket, a run works in a folder of this
machine; what it has is kept in one object, ``runs/ID.tar``, written now and then, and when it ends
well its files are uploaded and the object is deleted. One object, because it is there as a whole or
not at all: a machine that is lost in the middle of an upload leaves the one before.

A bucket has troubles that pass. Copies meanwhile, and what is tidied up behind a finished run, may
fail; what an attempt found, or leaves for the next, must arrive, or the attempt fails.
"""

import contextlib
import io
import os
import sys
import tarfile
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from launch.harmless import Harmless
from launch.layout import Layout, is_remote

#: Seconds between two copies of a run's folder.
COPY_EVERY = 300.0
#: What a finished run does not need any more.
_DISPENSABLE = "checkpoints"
#: Marks a folder whose files are uploaded.
_PUBLISHED = ".published"


@contextlib.contextmanager
def folder(layout: Layout, name: str, *, copy_every: float = COPY_EVERY) -> Iterator[Path]:
    """The local folder of a run; what an earlier attempt left is in it."""
    if not is_remote(layout.workdir):
        yield Path(layout.run(name))
        return
    with tempfile.TemporaryDirectory(prefix="launch-") as scratch:
        local, remote = Path(scratch) / name, layout.run(name)
        _unpack(_archive(remote), local)
        ended = threading.Event()
        copier = threading.Thread(target=_copy, args=(local, remote, ended, copy_every))
        copier.start()
        try:
            yield local
        finally:
            ended.set()
            copier.join()
            if (local / _PUBLISHED).exists():
                with Harmless("launch.staging")(
                    f"{_archive(remote)} was not deleted", "nothing needs it any more"
                ):
                    _archive(remote).unlink(missing_ok=True)
            else:
                _pack(local, _archive(remote))


@contextlib.contextmanager
def log(layout: Layout, name: str) -> Iterator[None]:
    """In a bucket's sweep, what this process prints goes to the run's log when the block ends.

    In a local one whoever started the process has seen to it.
    """
    if not is_remote(layout.workdir):
        yield
        return
    with tempfile.TemporaryFile() as file:
        sys.stdout.flush()
        sys.stderr.flush()
        before = os.dup(1), os.dup(2)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, saved in enumerate(before, start=1):
                os.dup2(saved, number)
                os.close(saved)
            file.seek(0)
            printed, arrived, path = file.read(), False, layout.log(name)
            with Harmless("launch.staging")(f"{path} was not written", "it is printed here"):
                path.write_bytes((path.read_bytes() if path.exists() else b"") + printed)
                arrived = True
            if not arrived:
                print(printed.decode(errors="replace"), end="", file=sys.stderr)


def publish(local: Path, layout: Layout, name: str) -> None:
    """Uploads the files of a finished run, checkpoints left out; a local one is there already."""
    if not is_remote(layout.workdir):
        return
    for path in sorted(local.rglob("*")):
        relative = path.relative_to(local)
        if path.is_file() and _DISPENSABLE not in relative.parts:
            layout.run(name).joinpath(*relative.parts).write_bytes(path.read_bytes())
    (local / _PUBLISHED).touch()


def _archive(remote: epath.Path) -> epath.Path:
    return remote.parent / f"{remote.name}.tar"


def _unpack(archive: epath.Path, local: Path) -> None:
    if archive.exists():
        with tarfile.open(fileobj=io.BytesIO(archive.read_bytes())) as tar:
            tar.extractall(local, filter="data")


def _pack(local: Path, archive: epath.Path) -> None:
    if local.is_dir():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            tar.add(local, ".")
        archive.write_bytes(buffer.getvalue())


def _copy(local: Path, remote: epath.Path, ended: threading.Event, every: float) -> None:
    harmless = Harmless("launch.staging")
    while not ended.wait(every):
        with harmless("the run's folder was not copied", "the copy before this one stays"):
            with contextlib.suppress(FileNotFoundError):  # A file may vanish while it is read.
                _pack(local, _archive(remote))
