"""What the end of a process means for its run: the table of ``launch/README.md``, as code."""

import enum
import signal
from dataclasses import dataclass

from launch.task import Task, Watcher

#: Stopped from outside with everything saved: start it again. xpk and GKE retry this code.
PREEMPTED = 42
#: The disk is full. (EX_IOERR)
DISK_FULL = 74
#: Another process has this run. (EX_TEMPFAIL)
ELSEWHERE = 75
#: Ended by its time limit; never a process's own code, which is 0 to 255 or minus a signal.
TIMED_OUT = 1000
#: The machine that it ran on is gone.
NODE_LOST = 1001

#: A run may be preempted, or wait for another process, so often; then something is wrong.
MOST_RESTARTS = 1000
#: A run may lose its machine so often; then it is the run, or there is no machine any more.
MOST_LOSSES = 20


class Verdict(enum.Enum):
    """What to do with a run."""

    DONE = "done"
    AGAIN = "again"
    FAILED = "failed"


@dataclass
class History:
    """How often a run was tried, and what it came to.

    Attributes:
      kills: attempts that a signal ended; these count against ``retries``.
      losses: attempts whose machine was lost, which is not the run's fault.
      restarts: attempts that were preempted or found the run taken; these do not.
    """

    kills: int = 0
    losses: int = 0
    restarts: int = 0

    def judge(self, code: int, *, has_result: bool, retries: int) -> tuple[Verdict, str]:
        """What to do after an attempt that ended with ``code``, and why, in words.

        Args:
          code: the exit code, minus the number of the signal, or one of this module's.
          has_result: whether the run's result is there.
          retries: how many attempts may be killed and still be followed by another.
        """
        if has_result:
            return Verdict.DONE, "done"
        if code in (PREEMPTED, ELSEWHERE):
            self.restarts += 1
            reason = "preempted" if code == PREEMPTED else "run by another process"
            again = self.restarts <= MOST_RESTARTS
            return (Verdict.AGAIN if again else Verdict.FAILED), reason
        if code == NODE_LOST:
            self.losses += 1
            again = self.losses <= MOST_LOSSES
            return (Verdict.AGAIN if again else Verdict.FAILED), "its machine was lost"
        if code < 0 or 128 < code < 256:
            self.kills += 1
            reason = f"killed by {_signal(code)}"
            if self.kills <= retries:
                return Verdict.AGAIN, reason
            return Verdict.FAILED, f"{reason}, {self.kills} times"
        return Verdict.FAILED, _REASONS.get(code, f"ended with exit code {code}")


def settle(task: Task, code: int, history: History, retries: int, watcher: Watcher) -> Verdict:
    """Judges an attempt that ended, and tells the watcher."""
    has_result = task.layout.result(task.id).exists()
    verdict, why = history.judge(code, has_result=has_result, retries=retries)
    if verdict is Verdict.DONE:
        watcher.done(task)
    elif verdict is Verdict.AGAIN:
        watcher.again(task, why)
    else:
        watcher.failed(task, why)
    return verdict


_REASONS = {
    0: "ended well and left no result",
    2: "cannot be run as it is configured (exit code 2)",
    DISK_FULL: "the disk is full",
    TIMED_OUT: "stopped by its time limit",
}


def _signal(code: int) -> str:
    number = -code if code < 0 else code - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
