"""How far a sweep is: a bar where somebody watches, a line per run where nobody does."""

import contextlib
import time
from collections.abc import Iterator

import rich.console
import rich.progress

from launch.task import Task


class Progress:
    """Counts what happens to the runs and shows it; a ``launch.task.Watcher``.

    Attributes:
      failures: id -> why, of the runs that failed.
      done_now: runs that this sweep did.
    """

    def __init__(self, total: int, console: rich.console.Console) -> None:
        """For ``total`` runs that are to be done."""
        self.failures: dict[str, str] = {}
        self.done_now = 0
        self._total = total
        self._running: set[str] = set()
        self._console = console
        self._start = time.monotonic()
        self._bar: rich.progress.Progress | None = None

    def started(self, task: Task) -> None:
        """An attempt begins."""
        self._running.add(task.id)
        self._show(None)

    def again(self, task: Task, why: str) -> None:
        """An attempt ended, and another will follow."""
        self._running.discard(task.id)
        self._show(f"again    {task.id}  {why}")

    def done(self, task: Task) -> None:
        """The run's result is there."""
        self._running.discard(task.id)
        self.done_now += 1
        self._show(f"done     {task.id}")

    def failed(self, task: Task, why: str) -> None:
        """The run ended without a result, and is not tried again."""
        self._running.discard(task.id)
        self.failures[task.id] = why
        self._show(f"failed   {task.id}  {why}; see {task.layout.log(task.id)}")

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def seconds_left(self) -> float | None:
        """How long it will take if runs go on ending as they did; None before the first."""
        ended = self.done_now + len(self.failures)
        if not ended:
            return None
        return (time.monotonic() - self._start) / ended * (self._total - ended)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the bar in the block, on a terminal."""
        if not self._console.is_terminal:
            yield
            return
        columns = (
            rich.progress.TextColumn("sweep"),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[text]}"),
        )
        with rich.progress.Progress(*columns, console=self._console) as bar:
            self._bar, self._task = bar, bar.add_task("sweep", total=self._total, text="")
            yield
            self._bar = None

    def _show(self, line: str | None) -> None:
        ended = self.done_now + len(self.failures)
        left = self.seconds_left()
        state = f"{ended}/{self._total}, {len(self._running)} running"
        state += f", {len(self.failures)} failed" if self.failures else ""
        state += f", {duration(left)} left" if left and ended < self._total else ""
        if self._bar is not None:
            self._bar.update(self._task, completed=ended, text=state)
            if line and not line.startswith("done"):
                self.note(line)
        elif line:
            self.note(f"{line}  [{state}]")


def duration(seconds: float) -> str:
    """Seconds as a person says it.

    >>> [duration(s) for s in (4.2, 75, 4000, 200000)]
    ['4s', '1m 15s', '1h 06m', '2d 07h']
    """
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02d}h"
