"""One run as a process of this machine: started, watched, stopped; and a driver asked to stop."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from launch.layout import is_remote
from launch.outcomes import PREEMPTED, TIMED_OUT
from launch.task import Task

#: Tells a worker the process that it must not outlive.
PARENT = "LAUNCH_PARENT"
#: Seconds between SIGTERM and SIGKILL: enough to write a checkpoint.
GRACE = 30.0


class Attempt:
    """A started process. ``code()`` is None while it runs."""

    def __init__(
        self,
        task: Task,
        *,
        time_limit: float | None = None,
        environment: Mapping[str, str] | None = None,
        grace: float = GRACE,
    ) -> None:
        """Starts the process, its output in the run's log.

        Args:
          task: what to run.
          time_limit: seconds, after which it is asked to stop (SIGTERM: it saves what it has), and
            ``grace`` seconds later killed.
          environment: variables on top of this process's.
          grace: seconds between SIGTERM and SIGKILL.
        """
        self.task = task
        self._started = time.monotonic()
        self._time_limit = time_limit
        self._grace = grace
        self._asked: float | None = None  # When it was asked to stop.
        self._timed_out = False
        variables = {**os.environ, **(environment or {}), PARENT: str(os.getpid())}
        with contextlib.ExitStack() as stack:
            output: int | object = subprocess.DEVNULL  # A remote log is the worker's business.
            if not is_remote(task.workdir):
                path = Path(task.layout.log(task.id))
                path.parent.mkdir(parents=True, exist_ok=True)
                output = stack.enter_context(path.open("ab"))
            # A session of its own: Ctrl-C reaches the driver alone, which then asks nicely.
            self._process = subprocess.Popen(
                task.command(),
                stdin=subprocess.DEVNULL,
                stdout=output,  # type: ignore[arg-type]
                stderr=subprocess.STDOUT,
                env=variables,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def code(self) -> int | None:
        """The exit code, minus a signal, ``TIMED_OUT``; None while it runs."""
        code = self._process.poll()
        if code is None:
            self._hurry()
            return None
        return TIMED_OUT if self._timed_out else code

    def wait(self, poll: float = 0.05) -> int:
        """Waits for the end."""
        while (code := self.code()) is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(poll)
        return code

    def stop(self) -> None:
        """Asks the process to save what it has and end."""
        if self._asked is None:
            self._asked = time.monotonic()
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the process and its children at once."""
        self._signal(signal.SIGKILL)

    def _hurry(self) -> None:
        now = time.monotonic()
        if self._time_limit is not None and now - self._started > self._time_limit:
            self._timed_out = True
            self.stop()
        if self._asked is not None and now - self._asked > self._grace:
            self.kill()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


@contextlib.contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that gets the driver's exit code when SIGTERM (42) or Ctrl-C (130) comes.

    Nothing is interrupted: an executor looks at the list while it waits, asks its runs to save what
    they have and end, and when they have raises ``SystemExit`` of the code.
    """
    asked: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        asked.append(PREEMPTED if number == signal.SIGTERM else 130)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
