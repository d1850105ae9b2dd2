"""The folder of a sweep, local or remote (``gs://...``).

    sweep.json           what was swept, when it was last started
    results/ID.json      written in one step when run ID is done: settings and summary
    runs/ID/             the experiment's own folder: records, arrays, report, checkpoints
    logs/ID.log          what its processes printed, all attempts
    logs/ID.jsonl        a line when an attempt starts and one when it ends
    logs/ID.lock         held by the process that runs it
    jobs/                job descriptions, where an executor renders them

A run is done when ``results/ID.json`` exists. Nothing else is asked, so what is done is known from
one listing of one folder.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from etils import epath

from experiments.tools.flags import UsageError
from icl_jax.records import atomic_file, read_plain


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a bucket's, not a file system's."""
    return "://" in os.fspath(path)


def check_reachable(path: str | os.PathLike[str]) -> None:
    """UsageError where a bucket's files cannot be read, because what reads them is missing."""
    try:
        epath.Path(path).exists()
    except ImportError as error:
        raise UsageError(
            f"--workdir={os.fspath(path)}: {error}. For gs:// that is pip install 'icl_jax[gcs]'."
        ) from error


@dataclass(frozen=True)
class Layout:
    """Where the parts of a sweep are.

    Attributes:
      workdir: the sweep's folder, a path or an address such as ``gs://bucket/folder``.
    """

    workdir: str

    @property
    def root(self) -> epath.Path:
        """The folder itself; a local one is absolute, whatever the working directory becomes."""
        return epath.Path(
            self.workdir if is_remote(self.workdir) else os.path.abspath(self.workdir)
        )

    def run(self, name: str) -> epath.Path:
        """The experiment's folder."""
        return self.root / "runs" / name

    def log(self, name: str, ending: str = "log") -> epath.Path:
        """What is kept about the processes of a run: ``log``, ``jsonl`` or ``lock``."""
        return self.root / "logs" / f"{name}.{ending}"

    def result(self, name: str) -> epath.Path:
        """The file whose existence means that a run is done."""
        return self.root / "results" / f"{name}.json"

    @property
    def jobs(self) -> epath.Path:
        """Where rendered job descriptions go."""
        return self.root / "jobs"

    def done(self) -> set[str]:
        """The ids of the runs that are done."""
        folder = self.root / "results"
        if not folder.exists():
            return set()
        if is_remote(self.workdir):
            names = [path.name for path in folder.iterdir()]
        else:
            names = os.listdir(folder)
        return {
            name.removesuffix(".json")
            for name in names
            if name.endswith(".json") and not name.startswith(".")
        }

    def load_result(self, name: str) -> dict[str, Any]:
        """What ``save_result`` wrote."""
        path = self.result(name)
        result: dict[str, Any] = read_plain(path if is_remote(self.workdir) else Path(path))
        return result

    def save_result(self, name: str, value: dict[str, Any]) -> None:
        """Writes the result of a run in one step: it is there, whole, or not at all."""
        write_whole(self.result(name), json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_whole(path: epath.Path, text: str) -> None:
    """Writes a text file in one step, with its folders, locally or remotely.

    A local file is on the disk when this returns. An object of a bucket appears whole anyway.
    """
    if is_remote(path):
        path.write_text(text)
        return
    with atomic_file(Path(path)) as file:
        file.write(text.encode())
