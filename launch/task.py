"""What an executor is handed, and what it has to do."""

import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from launch.configuration import Run
from launch.layout import Layout


@dataclass(frozen=True)
class Task:
    """One run as a command.

    Attributes:
      run: the configuration and its id.
      workdir: the sweep's folder.
      track: where metrics go besides, see ``launch.trackers``.
      mesh: the devices that share the run, as ``data:4,model:2``; None for one.
    """

    run: Run
    workdir: str
    track: tuple[str, ...] = ()
    mesh: str | None = None

    @property
    def id(self) -> str:
        """The run's id."""
        return self.run.id

    @property
    def layout(self) -> Layout:
        """The paths in the sweep's folder."""
        return Layout(self.workdir)

    def command(self, python: str = sys.executable) -> list[str]:
        """The process that does it, from the project's folder or where the package is installed."""
        configuration = self.run.configuration
        where = [str(self.layout.root), self.id, configuration.experiment]
        track = [f"--track={','.join(self.track)}"] if self.track else []
        mesh = [f"--mesh={self.mesh}"] if self.mesh else []
        flags = [*configuration.arguments(), *mesh]
        return [python, "-m", "launch.worker", *track, *where, *flags]

    def shell(self, python: str = "python") -> str:
        """The same as one line for a shell."""
        return shlex.join(self.command(python))


@dataclass(frozen=True)
class Batch:
    """The runs of a sweep that are not done.

    Attributes:
      sweep: ``MODULE:FUNCTION``.
      shard: ``i/n``, or None.
      workdir: the sweep's folder.
      tasks: one per run, in the sweep's order.
      track: where metrics go besides.
      mesh: the devices that share each run.
    """

    sweep: str
    shard: str | None
    workdir: str
    tasks: Sequence[Task]
    track: tuple[str, ...] = ()
    mesh: str | None = None

    @property
    def layout(self) -> Layout:
        """The paths in the sweep's folder."""
        return Layout(self.workdir)


class Watcher(Protocol):
    """Is told what happens; ``launch.progress`` shows it."""

    def started(self, task: Task) -> None:
        """An attempt begins."""

    def again(self, task: Task, why: str) -> None:
        """An attempt ended, and another will follow."""

    def done(self, task: Task) -> None:
        """The run's result is there."""

    def failed(self, task: Task, why: str) -> None:
        """The run ended without a result, and is not tried again."""

    def note(self, text: str) -> None:
        """Something worth a line."""


class Executor(Protocol):
    """A way to run a batch. Each has a file in ``launch/executors``."""

    def describe(self, batch: Batch) -> str:
        """Exactly what ``execute`` would run: commands, or the text of job descriptions."""

    def execute(self, batch: Batch, watcher: Watcher) -> None:
        """Runs the batch and returns when no run is left, or, where somebody else runs the jobs,
        when they are handed over (``submits`` in its options' docstring).
        """


#: Makes an executor from its options.
Make = Callable[..., Executor]
