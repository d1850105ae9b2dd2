"""Runs on a Ray cluster: one that is there, or one that Ray starts on this machine.

Every run is a process of its own on some node, as with ``local``; Ray decides where. The project,
its experiments and the workdir must be reachable from every node (a shared disk, or ``gs://``). A
run whose node is lost is started again on another. A driver that is asked to stop (SIGTERM, Ctrl-C)
cancels its tasks, whose runs save what they have. Needs the extra ``ray``.
"""

import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.tools.flags import UsageError, option
from launch.outcomes import ELSEWHERE, NODE_LOST, History, Verdict, settle
from launch.processes import GRACE, Attempt, asked_to_stop
from launch.task import Batch, Task, Watcher

#: Seconds before another attempt: time for the other process, or for the cluster to recover.
_PAUSES = {ELSEWHERE: 1.0, NODE_LOST: 5.0}


@dataclass(frozen=True)
class Options:
    """A Ray cluster."""

    address: str = option("local", "HOST:PORT, auto (found by Ray), or local: start one here")
    cpus: float = option(1.0, "cores that a run asks for")
    gpus: float = option(0.0, "GPUs that a run asks for")
    resource: str = option("", "NAME:AMOUNT of another resource, for example TPU:4")
    retries: int = option(2, "further attempts at a run that was killed")
    time_limit: float | None = option(None, "seconds per attempt, then it saves and ends")

    def __post_init__(self) -> None:
        self.resources()
        if self.retries < 0:
            raise ValueError(f"ray: retries must be at least 0, got {self.retries}.")

    def resources(self) -> dict[str, float]:
        """What a run asks for beside cores and GPUs."""
        if not self.resource:
            return {}
        name, _, amount = self.resource.partition(":")
        try:
            return {name: float(amount)}
        except ValueError:
            raise ValueError(
                f"ray: resource must be NAME:AMOUNT, for example TPU:4, got {self.resource!r}."
            ) from None


@dataclass(frozen=True)
class Ray:
    """Runs a batch on a Ray cluster."""

    options: Options

    def describe(self, batch: Batch) -> str:
        """The command of every run, and what it asks Ray for."""
        asked = {"num_cpus": self.options.cpus, "num_gpus": self.options.gpus}
        asked |= self.options.resources()
        wanted = ", ".join(f"{name}={amount:g}" for name, amount in asked.items() if amount)
        return "\n".join(f"[ray: {wanted}] {task.shell()}" for task in batch.tasks)

    def execute(self, batch: Batch, watcher: Watcher) -> None:
        """Runs everything; several drivers may use one cluster.

        Raises:
          UsageError: Ray is not installed, or there is no cluster at the address.
          SystemExit: 42 or 130, when the driver was asked to stop; the runs have ended, or
            ``2 * GRACE`` seconds have.
        """
        ray = _import()
        options = self.options
        where = None if options.address == "local" else options.address
        try:
            ray.init(
                address=where,
                log_to_driver=False,
                logging_level="ERROR",
                runtime_env={"env_vars": _environment()},
            )
        except ConnectionError as error:
            raise UsageError(f"--ray.address={options.address}: {error}") from error
        try:
            self._run(ray, batch, watcher)
        finally:
            ray.shutdown()  # Leaves a cluster that was there before.

    def _run(self, ray: Any, batch: Batch, watcher: Watcher) -> None:
        options = self.options
        remote = ray.remote(
            num_cpus=options.cpus,
            num_gpus=options.gpus,
            resources=options.resources(),
            max_retries=0,  # What an end means is our business: see launch.outcomes.
            scheduling_strategy="SPREAD",
        )(run_here)
        histories = {task.id: History() for task in batch.tasks}
        running: dict[Any, Task] = {}

        def start(task: Task, after: float = 0.0) -> None:
            running[remote.remote(task, options.time_limit, after)] = task
            watcher.started(task)

        # Inside ``ray.init``, which has its own idea of SIGTERM.
        with asked_to_stop() as asked:
            for task in batch.tasks:
                start(task)
            while running:
                if asked:
                    _stop(ray, list(running))
                    raise SystemExit(asked[0])
                ended, _ = ray.wait(list(running), num_returns=1, timeout=0.5)
                for reference in ended:
                    task = running.pop(reference)
                    try:
                        code = ray.get(reference)
                    except ray.exceptions.RayTaskError:
                        raise  # Our own function failed: a bug, or a node without the project.
                    except ray.exceptions.OutOfMemoryError:
                        code = -signal.SIGKILL  # Ray's own monitor, before the kernel's.
                    except ray.exceptions.RayError as error:
                        code = NODE_LOST
                        watcher.note(f"{task.id}: {type(error).__name__}")
                    verdict = settle(task, code, histories[task.id], options.retries, watcher)
                    if verdict is Verdict.AGAIN:
                        start(task, after=_PAUSES.get(code, 0.0))


def _stop(ray: Any, references: list[Any]) -> None:
    """Cancels tasks, and waits until their runs have saved what they have."""
    for reference in references:
        ray.cancel(reference)
    # A run has its grace on its node.
    ray.wait(references, num_returns=len(references), timeout=2 * GRACE)


def run_here(task: Task, time_limit: float | None, after: float) -> int:
    """One attempt, on the node that Ray chose; the exit code."""
    time.sleep(after)
    attempt = Attempt(task, time_limit=time_limit)
    try:
        return attempt.wait()
    except BaseException:  # Ray cancels by an exception.
        attempt.stop()
        attempt.wait()
        raise


def _environment() -> Mapping[str, str]:
    """Lets a node import what the driver imports: the folder that it was started in."""
    paths = [os.getcwd(), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths)))}


def _import() -> Any:
    try:
        import ray
    except ImportError as error:
        raise UsageError("--executor=ray needs Ray: pip install 'icl_jax[ray]'.") from error
    return ray


def make(options: Options) -> Ray:
    """The executor of these options."""
    return Ray(options)
