"""Metrics to where people watch them: TensorBoard, Weights & Biases, Trackio.

The files of a run are the record; a tracker gets a copy while the run goes on. Since a run that is
resumed cuts its metrics back to the checkpoint and then writes the same again, a copy never holds
anything that the record does not. A tracker is any object with ``log`` and ``close``.
"""

import importlib.util
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from experiments.tools.flags import UsageError
from icl_jax.training.loop import METRICS
from icl_jax.training.metrics import read_rows
from launch.harmless import Harmless

TrackerName = Literal["tensorboard", "wandb", "trackio"]
#: Of trackers that group runs, the group.
PROJECT = "icl_jax"
#: What it means that a tracker misses something.
_SO = "the run's own files have all"
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "trackio": "trackio"}


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Takes the numbers of a step; steps come in order."""

    def close(self) -> None:
        """No more will come."""


class TensorBoard:
    """Event files in ``FOLDER/tensorboard``; show them with ``tensorboard --logdir DIR/runs``."""

    def __init__(self, folder: Path) -> None:
        """Of the run in ``folder``; what an earlier attempt wrote there is written anew."""
        import tensorboardX

        self._folder = folder / "tensorboard"
        for path in self._folder.glob("events.*"):
            path.unlink()
        self._writer = tensorboardX.SummaryWriter(str(self._folder))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """A scalar per number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is not written yet."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, with the run's id: an attempt goes on where the last one was."""

    def __init__(self, name: str, config: Mapping[str, Any], folder: Path) -> None:
        """Of run ``name``."""
        import wandb

        self._run: Any = wandb.init(
            project=PROJECT, id=name, name=name, config=dict(config), resume="allow", dir=folder
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One call per step; wandb itself ignores steps that it has."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Ends the run there."""
        self._run.finish()


class Trackio:
    """A run of Trackio."""

    def __init__(self, name: str, config: Mapping[str, Any]) -> None:
        """Of run ``name``."""
        import trackio

        self._trackio: Any = trackio
        trackio.init(project=PROJECT, name=name, config=dict(config), resume="allow")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """One call per step."""
        self._trackio.log(dict(values), step=step)

    def close(self) -> None:
        """Ends the run there."""
        self._trackio.finish()


def check_installed(names: Sequence[str]) -> None:
    """UsageError where a tracker's package is missing."""
    for name in names:
        if importlib.util.find_spec(_PACKAGES[name]) is None:
            extra = " (pip install 'icl_jax[tensorboard]')" if name == "tensorboard" else ""
            raise UsageError(f"--track={name} needs the package {_PACKAGES[name]}{extra}.")


def make(name: str, run: str, config: Mapping[str, Any], folder: Path) -> Tracker:
    """The tracker of this name, for a run."""
    if name == "tensorboard":
        return TensorBoard(folder)
    return Wandb(run, config, folder) if name == "wandb" else Trackio(run, config)


class Mirror:
    """Copies the metrics of all trainings in a folder to trackers, while they grow.

    A context manager; what was written until the end of the block arrives. A training in a
    subfolder has its name before its metrics'. Trackers speak to other people's servers: what one
    raises is printed, and costs the run nothing. While the run goes on the next look tries again.
    """

    def __init__(
        self, folder: Path, trackers: Callable[[], Sequence[Tracker]], *, every: float = 10.0
    ) -> None:
        """Copies from ``folder``.

        Args:
          folder: the run's.
          trackers: makes them; called when there is something to copy, since a folder belongs to
            its experiment until that has begun.
          every: seconds between two looks.
        """
        self._folder = folder
        self._make = trackers
        self._trackers: Sequence[Tracker] | None = None
        self._every = every
        self._sent: dict[tuple[Path, int], int] = {}  # Of a file, to which tracker: steps.
        self._harmless = Harmless("launch.trackers")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Mirror":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        with self._harmless("the last metrics were not copied", _SO):
            self.copy()
        for tracker in self._trackers or ():
            with self._harmless(f"{type(tracker).__name__} was not closed", _SO):
                tracker.close()

    def copy(self) -> None:
        """Sends what is new, to each tracker what it does not have."""
        for path in sorted(self._folder.rglob(METRICS)):
            rows = read_rows(path)
            if not rows:
                continue
            if self._trackers is None:
                self._trackers = self._make()
            where = path.parent.relative_to(self._folder)
            prefix = "" if where == Path() else f"{where.as_posix()}/"
            for index, tracker in enumerate(self._trackers):
                with self._harmless(f"{type(tracker).__name__} did not take all metrics", _SO):
                    for row in rows:
                        step = int(row["step"])
                        if step <= self._sent.get((path, index), 0):
                            continue
                        values = {f"{prefix}{n}": float(v) for n, v in row.items() if n != "step"}
                        tracker.log(step, values)
                        self._sent[path, index] = step

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            with self._harmless("metrics were not copied", _SO):
                self.copy()
