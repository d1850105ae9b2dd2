"""Runs on a SLURM cluster, through submitit; ``cluster=local`` does the same without SLURM.

The runs that are left become job arrays; SLURM starts, queues and, when a job is preempted or at
its time limit, starts it again. The driver may end (``wait=false``) or watch; either way the same
command later submits what is not done by then. A driver that watches and is asked to stop (SIGTERM,
Ctrl-C) cancels its jobs, which save what they have. The workdir must be on a disk that all nodes
share.
Needs the extra ``slurm``.
"""

import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from experiments.tools.flags import UsageError, option
from launch.layout import is_remote
from launch.outcomes import NODE_LOST, TIMED_OUT, History, Verdict, settle
from launch.processes import GRACE, Attempt, asked_to_stop
from launch.task import Batch, Task, Watcher

#: Where submitit looks for the signal by which SLURM says that a job is preempted.
_PREEMPTION = "SUBMITIT_PREEMPT_SIGNAL"


@dataclass(frozen=True)
class Options:
    """A SLURM cluster."""

    cluster: Literal["slurm", "local"] = option("slurm", "local: processes here, to try it")
    partition: str = option("", "of the cluster")
    minutes: int = option(60, "time limit of an attempt")
    cpus: int = option(1, "cores per run")
    gpus: int = option(0, "GPUs per run")
    memory_gb: float = option(4.0, "memory per run")
    parallel: int = option(64, "runs at once")
    more: tuple[str, ...] = option((), "NAME=VALUE of sbatch, for example account=me,qos=high")
    retries: int = option(2, "further attempts at a run that was killed")
    wait: bool = option(True, "watch until all runs have ended; false: submit and go")

    def __post_init__(self) -> None:
        for name in ("minutes", "cpus", "parallel"):
            if getattr(self, name) < 1:
                raise ValueError(f"slurm: {name} must be at least 1, got {getattr(self, name)}.")
        for name in ("gpus", "retries"):
            if getattr(self, name) < 0:
                raise ValueError(f"slurm: {name} must be at least 0, got {getattr(self, name)}.")
        self.parameters()

    def parameters(self) -> dict[str, Any]:
        """The same for submitit."""
        pairs = [entry.partition("=") for entry in self.more]
        for name, equals, _ in pairs:
            if not (name and equals):
                raise ValueError(f"slurm: more must be NAME=VALUE,..., got {','.join(self.more)}.")
        found: dict[str, Any] = {
            "name": "icl_jax",
            "timeout_min": self.minutes,
            "cpus_per_task": self.cpus,
            "gpus_per_node": self.gpus,
            "mem_gb": self.memory_gb,
        }
        if self.cluster == "slurm":
            found["slurm_array_parallelism"] = self.parallel
            if self.partition:
                found["slurm_partition"] = self.partition
            if pairs:
                found["slurm_additional_parameters"] = {name: value for name, _, value in pairs}
        return found


class Job:
    """One run, as submitit pickles it."""

    def __init__(self, task: Task, watched: bool) -> None:
        """Of a task; ``watched`` where a driver submits again what ended before it was done."""
        self.task = task
        self.watched = watched
        self._attempt: Attempt | None = None

    def __call__(self) -> int:
        """One attempt, on the node that SLURM chose; the exit code."""
        self._attempt = attempt = Attempt(self.task)
        # As a job that is cancelled is told, which submitit ignores; unless SLURM is asked to tell
        # a job so that it is preempted, which submitit must hear. Unwatched, the job is SLURM's.
        if self.watched and os.environ.get(_PREEMPTION, "") not in ("TERM", "SIGTERM"):
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, lambda *_: attempt.stop())
        return attempt.wait()

    def checkpoint(self) -> Any:
        """Called on the node before it is taken away: saves, and asks to be started again."""
        import submitit

        if self._attempt is not None:
            self._attempt.stop()
            self._attempt.wait()
        return submitit.helpers.DelayedSubmission(Job(self.task, self.watched))

    def __getstate__(self) -> dict[str, Any]:
        return {"task": self.task, "watched": self.watched, "_attempt": None}


@dataclass(frozen=True)
class Slurm:
    """Submits a batch to SLURM."""

    options: Options
    poll: float = 0.5

    def describe(self, batch: Batch) -> str:
        """What sbatch is asked for, and the command of every run."""
        asked = " ".join(f"{k}={v}" for k, v in self.options.parameters().items())
        return "\n".join([f"[slurm: {asked}]", *(task.shell() for task in batch.tasks)])

    def execute(self, batch: Batch, watcher: Watcher) -> None:
        """Submits everything and, unless told otherwise, watches it.

        Raises:
          UsageError: submitit is not installed, there is no SLURM here, or the workdir is a
            bucket's.
          SystemExit: 42 or 130, when a driver that watches was asked to stop; the jobs have
            ended, or ``2 * GRACE`` seconds have.
        """
        if is_remote(batch.workdir):
            raise UsageError(
                f"--executor=slurm: --workdir={batch.workdir} must be a folder that all nodes "
                "share."
            )
        submitit = _import()
        folder = batch.layout.jobs / "slurm"
        try:
            executor = submitit.AutoExecutor(folder=str(folder), cluster=self.options.cluster)
        except RuntimeError as error:
            raise UsageError(
                f"--executor=slurm: {error} Try --slurm.cluster=local, or --executor=local."
            ) from error
        executor.update_parameters(**self.options.parameters())
        if not self.options.wait:
            jobs = _submit(executor, batch.tasks, self.options.wait, watcher)
            watcher.note(f"{len(jobs)} jobs submitted; see {folder}. Later: the same command.")
            return
        # SLURM itself limits what runs at once; submitit's local stand-in would start everything.
        most = self.options.parallel if self.options.cluster == "local" else len(batch.tasks)
        waiting = deque(batch.tasks)
        histories = {task.id: History() for task in batch.tasks}
        running: list[tuple[Any, Task]] = []
        with asked_to_stop() as asked:
            while waiting or running:
                if asked:
                    self._stop([job for job, _ in running])
                    raise SystemExit(asked[0])
                chunk = [waiting.popleft() for _ in range(min(len(waiting), most - len(running)))]
                running += _submit(executor, chunk, self.options.wait, watcher)
                time.sleep(self.poll)
                still = []
                for job, task in running:
                    if not job.done():
                        still.append((job, task))
                        continue
                    code = _code(job, submitit)
                    verdict = settle(task, code, histories[task.id], self.options.retries, watcher)
                    if verdict is Verdict.AGAIN:
                        waiting.append(task)
                running = still

    def _stop(self, jobs: Sequence[Any]) -> None:
        """Cancels jobs, and waits until they have saved what they have."""
        for job in jobs:
            if self.options.cluster == "local":
                # Its ``cancel`` leaves no time; the number of a job is that of its process.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job.job_id), signal.SIGTERM)
            else:
                job.cancel(check=False)  # SLURM sends SIGTERM; SIGKILL after its own grace.
        # A run has its grace, and SLURM takes a while to say that a job is over.
        deadline = time.monotonic() + 2 * GRACE
        while not all(job.done() for job in jobs) and time.monotonic() < deadline:
            time.sleep(self.poll)


def _submit(
    executor: Any, tasks: Sequence[Task], watched: bool, watcher: Watcher
) -> list[tuple[Any, Task]]:
    if not tasks:
        return []
    jobs = executor.submit_array([Job(task, watched) for task in tasks])
    for task in tasks:
        watcher.started(task)
    return list(zip(jobs, tasks, strict=True))


def _code(job: Any, submitit: Any) -> int:
    """How a job that is over ended.

    Raises:
      RuntimeError: our own part of it failed: a node without the project, say.
    """
    error = job.exception()
    if error is None:
        return int(job.result())
    if isinstance(error, submitit.core.utils.FailedJobError):
        if "timed-out too many times" in str(error):
            return TIMED_OUT
        raise RuntimeError(f"the job {job.job_id} could not start its run: {error}") from error
    return TIMED_OUT if job.state.startswith("TIMEOUT") else NODE_LOST


def _import() -> Any:
    try:
        import submitit
    except ImportError as error:
        raise UsageError(
            "--executor=slurm needs submitit: pip install 'icl_jax[slurm]'."
        ) from error
    return submitit


def make(options: Options) -> Slurm:
    """The executor of these options."""
    return Slurm(options)
