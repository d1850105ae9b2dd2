"""A pool of processes on this machine: the embedded default, which needs nothing.

A run that a signal kills is tried again, a preempted one as often as it takes; one that ends by
itself with an error is not: it would end the same way. When the driver is asked to stop (SIGTERM,
Ctrl-C) it asks its workers, waits until they have saved what they have, and goes; when it is killed
the workers end with it. Either way the same command goes on.
"""

import contextlib
import os
import time
from collections import deque
from dataclasses import dataclass

from experiments.tools.flags import option
from launch.outcomes import ELSEWHERE, History, Verdict, settle
from launch.processes import GRACE, Attempt, asked_to_stop
from launch.task import Batch, Task, Watcher


@dataclass(frozen=True)
class Options:
    """A pool of processes on this machine."""

    workers: int | None = option(None, "processes at once; none: one per device, or per core")
    retries: int = option(2, "further attempts at a run that was killed")
    time_limit: float | None = option(None, "seconds per attempt, then it saves and ends")
    devices: tuple[str, ...] = option((), "one process on each, for example 0,1,2,3")
    device_variable: str = option("CUDA_VISIBLE_DEVICES", "how a process is told its device")

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"local: workers must be at least 1, got {self.workers}.")
        if self.retries < 0:
            raise ValueError(f"local: retries must be at least 0, got {self.retries}.")
        if self.time_limit is not None and self.time_limit <= 0:
            raise ValueError(f"local: time_limit must be above 0, got {self.time_limit}.")
        if self.devices and self.workers not in (None, len(self.devices)):
            raise ValueError(
                f"local: workers={self.workers} and {len(self.devices)} devices: leave workers out."
            )


@dataclass(frozen=True)
class Local:
    """Runs a batch in a pool of processes.

    Attributes:
      options: how many, how often, how long.
      grace: seconds that a process has to save what it has.
      poll: seconds between two looks at the processes.
    """

    options: Options
    grace: float = GRACE
    poll: float = 0.02

    def describe(self, batch: Batch) -> str:
        """The command of every run."""
        return "\n".join(task.shell() for task in batch.tasks)

    def execute(self, batch: Batch, watcher: Watcher) -> None:
        """Runs everything.

        Raises:
          SystemExit: 42 or 130, when the driver was asked to stop; the workers have ended.
        """
        options = self.options
        slots: deque[int | str] = deque(options.devices or range(options.workers or _cores()))
        waiting: deque[Task] = deque(batch.tasks)
        not_before: dict[str, float] = {}  # Of runs that another process has.
        histories = {task.id: History() for task in batch.tasks}
        running: dict[str, tuple[Attempt, int | str]] = {}
        with asked_to_stop() as asked:
            while waiting or running:
                if asked:
                    _stop(running, self.poll)
                    raise SystemExit(asked[0])
                now = time.monotonic()
                for _ in range(len(waiting)):
                    if not slots:
                        break
                    task = waiting.popleft()
                    if not_before.get(task.id, 0.0) > now:
                        waiting.append(task)
                        continue
                    slot = slots.popleft()
                    device = {options.device_variable: str(slot)} if options.devices else {}
                    running[task.id] = (
                        Attempt(
                            task,
                            time_limit=options.time_limit,
                            environment=device,
                            grace=self.grace,
                        ),
                        slot,
                    )
                    watcher.started(task)
                for name, (attempt, slot) in list(running.items()):
                    code = attempt.code()
                    if code is None:
                        continue
                    del running[name]
                    slots.append(slot)
                    verdict = settle(attempt.task, code, histories[name], options.retries, watcher)
                    if verdict is Verdict.AGAIN:
                        waiting.append(attempt.task)
                        if code == ELSEWHERE:
                            not_before[name] = time.monotonic() + 1.0
                time.sleep(self.poll)


def _cores() -> int:
    with contextlib.suppress(AttributeError):  # Not on macOS.
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _stop(running: dict[str, tuple[Attempt, int | str]], poll: float) -> None:
    for attempt, _ in running.values():
        attempt.stop()
    while any(attempt.code() is None for attempt, _ in running.values()):
        time.sleep(poll)


def make(options: Options) -> Local:
    """The executor of these options."""
    return Local(options)
