"""Runs configurations that share their shapes as one program, vectorised and over all devices.

For experiments that offer it (``experiments.tools.one_program``), and as far as the configurations
differ only in the numbers that it names: many learning rates and seeds cost one start and one
compilation. What a run leaves is what its process would leave: arrays, summary, result.

A driver that is asked to stop (SIGTERM, Ctrl-C) saves what the program finds that is at work, if it
ends soon enough, and starts no other; the same command does the rest.
"""

import concurrent.futures
import contextlib
import functools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from experiments.tools.arrays import rebuild
from experiments.tools.conduct import note_measurement, start
from experiments.tools.flags import UsageError, option
from experiments.tools.one_program import OneProgram
from icl_jax.compilations import count_compilations
from icl_jax.dims import Array
from icl_jax.records import plain
from icl_jax.sharding import shard_tasks, task_mesh
from launch import lifeline
from launch.configuration import experiment_module
from launch.layout import is_remote
from launch.processes import GRACE, asked_to_stop
from launch.task import Batch, Task, Watcher
from launch.worker import scalars

Found = TypeVar("Found")

#: Seconds before runs that another process has are looked at again.
_PAUSE = 1.0
#: Files that a process has open beside the locks of its runs.
_OTHER_FILES = 256


@dataclass(frozen=True)
class Options:
    """One program in this process."""

    at_once: int = option(1024, "runs in one program, to bound memory")
    grace: float = option(GRACE, "seconds that a program may still take when asked to stop")

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ValueError(f"inprocess: at_once must be at least 1, got {self.at_once}.")
        if self.grace < 0:
            raise ValueError(f"inprocess: grace must be at least 0, got {self.grace}.")


@dataclass(frozen=True)
class Group:
    """Runs that one program does.

    Attributes:
      program: what the experiment offers.
      tasks: the runs.
      configs: their complete configurations.
    """

    program: OneProgram
    tasks: Sequence[Task]
    configs: Sequence[Any]

    def values(self) -> dict[str, np.ndarray]:
        """What differs: flag -> (X,), a value per run."""
        found = {}
        for name in self.program.varies:
            column = [functools.reduce(getattr, name.split("."), config) for config in self.configs]
            dtype = np.int64 if all(isinstance(value, int) for value in column) else np.float64
            found[name] = np.asarray(column, dtype)
        return found

    def only(self, indices: Sequence[int]) -> "Group":
        """Some of the runs."""
        return Group(
            self.program, [self.tasks[i] for i in indices], [self.configs[i] for i in indices]
        )


@dataclass(frozen=True)
class InProcess:
    """Runs a batch in this process."""

    options: Options

    def describe(self, batch: Batch) -> str:
        """The programs, each with its runs."""
        lines = []
        for group in self._groups(batch):
            varies = ", ".join(group.program.varies)
            lines.append(f"# one program over {varies}; {len(group.tasks)} runs:")
            lines += [task.shell() for task in group.tasks]
        return "\n".join(lines)

    def execute(self, batch: Batch, watcher: Watcher) -> None:
        """Runs everything, program by program; what a program found is saved when it ends.

        A run that another process has is left to it: its result is waited for, and what that
        process gives up without one is done here.

        Raises:
          UsageError: an experiment offers no program, or the workdir is a bucket's.
          SystemExit: 42 or 130, when the driver was asked to stop; what was found is saved.
        """
        if is_remote(batch.workdir):
            raise UsageError(
                f"--executor=inprocess: --workdir={batch.workdir} must be a local folder."
            )
        jax.config.update("jax_enable_x64", True)  # As every experiment does.
        with asked_to_stop() as asked:
            groups, told = self._groups(batch), set[str]()
            while groups:
                taken = []
                for group in groups:
                    if asked:
                        raise SystemExit(asked[0])
                    if (left := self._run(group, watcher, asked)).tasks:
                        taken.append(left)
                groups = taken
                for task in (task for group in groups for task in group.tasks):
                    if task.id not in told:  # Once: it is asked every second.
                        told.add(task.id)
                        watcher.again(task, "run by another process")
                if groups:
                    _pause(asked)

    def _groups(self, batch: Batch) -> list[Group]:
        """Runs by program, in the order of their first, at most ``at_once`` in each."""
        found: dict[str, tuple[OneProgram, list[Task], list[Any]]] = {}
        for task in batch.tasks:
            experiment = task.run.configuration.experiment
            program = getattr(experiment_module(experiment), "ONE_PROGRAM", None)
            if program is None:
                raise UsageError(
                    f"--executor=inprocess: {experiment} offers no ONE_PROGRAM, so its runs need a "
                    "process each. Choose --executor=local."
                )
            config = task.run.configuration.resolve()
            key = json.dumps([experiment, _without(plain(config), program.varies)], sort_keys=True)
            _, tasks, configs = found.setdefault(key, (program, [], []))
            tasks.append(task)
            configs.append(config)
        most = min(self.options.at_once, _most_locks(self.options.at_once))
        return [
            Group(program, tasks[i : i + most], configs[i : i + most])
            for program, tasks, configs in found.values()
            for i in range(0, len(tasks), most)
        ]

    def _run(self, group: Group, watcher: Watcher, asked: Sequence[int]) -> Group:
        """Does what of a group is not done and is free; what another process has comes back."""
        taken: list[int] = []
        with contextlib.ExitStack() as held:
            ours: list[int] = []
            for index, task in enumerate(group.tasks):
                with contextlib.ExitStack() as stack:
                    if not stack.enter_context(lifeline.locked(_lock(task))):
                        taken.append(index)
                    # After the lock: whoever held it before may have finished.
                    elif task.layout.result(task.id).exists():
                        watcher.done(task)
                    else:
                        ours.append(index)
                        held.enter_context(stack.pop_all())
            if ours:
                self._run_locked(group.only(ours), watcher, asked)
        return group.only(taken)

    def _run_locked(self, group: Group, watcher: Watcher, asked: Sequence[int]) -> None:
        for task in group.tasks:
            watcher.started(task)
        work = functools.partial(measure, group.program, group.configs[0], group.values())
        with count_compilations() as compilations:
            arrays = _unless_asked(work, asked, self.options.grace)
        runs = f"{len(group.tasks)} run{'' if len(group.tasks) == 1 else 's'}"
        watcher.note(f"one program, {runs}: {compilations}")
        for index, (task, config) in enumerate(zip(group.tasks, group.configs, strict=True)):
            own = {name: array[index] for name, array in arrays.items()}
            why = _save(task, config, own)
            if why is None:
                watcher.done(task)
            else:
                watcher.failed(task, why)


def measure(
    program: OneProgram, config: Any, values: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Runs a program for all values at once, over all devices.

    Args:
      program: what the experiment offers.
      config: the configuration of one of the runs.
      values: flag -> (X,).

    Returns:
      name -> (X, ...), the arrays of every run.
    """
    count = len(next(iter(values.values())))
    mesh = task_mesh(min(count, len(jax.devices())))
    # Devices have equal shares: the last run is repeated to fill them up.
    padded = -(-count // mesh.size) * mesh.size
    filled = {n: np.concatenate([v, np.repeat(v[-1:], padded - count)]) for n, v in values.items()}

    def one(own: Mapping[str, Array]) -> Any:
        # Leaves that do not depend on the values are the same for all runs.
        return {name: jnp.asarray(leaf) for name, leaf in program.measure(config, own).items()}

    found = jax.jit(jax.vmap(one))(shard_tasks(filled, mesh))
    return {name: np.asarray(leaf)[:count] for name, leaf in found.items()}


def _lock(task: Task) -> Path:
    return Path(task.layout.log(task.id, "lock"))


def _most_locks(wanted: int) -> int:
    """How many runs can be locked at once: each is an open file, and a system limits those.

    A process may raise its limit, up to one that it may not.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    if soft != infinite and soft < wanted + _OTHER_FILES:
        more = wanted + _OTHER_FILES if hard == infinite else min(wanted + _OTHER_FILES, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
            soft = more
    return wanted if soft == infinite else max(1, soft - _OTHER_FILES)


def _pause(asked: Sequence[int]) -> None:
    """Lets another process work, unless this one is asked to stop."""
    until = time.monotonic() + _PAUSE
    while not asked and time.monotonic() < until:
        time.sleep(0.05)


def _unless_asked(work: Callable[[], Found], asked: Sequence[int], grace: float) -> Found:
    """``work()``, in another thread, since Python gets no signal while the main one is in XLA.

    Where ``asked`` has an exit code and the work goes on for more than ``grace`` seconds, the
    process ends with that code.
    """
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        since: float | None = None
        while not concurrent.futures.wait([future], timeout=0.1).done:
            if asked and since is None:
                since = time.monotonic()
            if since is not None and time.monotonic() - since > grace:
                sys.stdout.flush()
                os._exit(asked[0])  # Any other way out waits for the thread.
        return future.result()


def _save(task: Task, config: Any, arrays: Mapping[str, np.ndarray]) -> str | None:
    """Writes what a run found as its process would; why not, where it is not finite."""
    experiment = task.run.configuration.experiment
    short = experiment.rpartition(".")[2]
    module = experiment_module(experiment)
    summary = module.summarise(config, rebuild(module.Arrays, arrays, module.names(config)))
    try:
        text = plain(summary)
    except ValueError as error:
        return f"diverged: {error}"
    record = start(task.layout.run(task.id), short, config)
    record.save_arrays("arrays.npz", arrays)
    note_measurement(record)
    record.save_json("summary.json", summary)
    result = {"id": task.id, "experiment": experiment, "config": plain(config)}
    task.layout.save_result(task.id, {**result, "summary": scalars(text)})
    return None


def _without(tree: Mapping[str, Any], names: Sequence[str], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary without the leaves of these dotted names."""
    return {
        name: _without(value, names, f"{prefix}{name}.") if isinstance(value, dict) else value
        for name, value in tree.items()
        if prefix + name not in names
    }


def make(options: Options) -> InProcess:
    """The executor of these options."""
    return InProcess(options)
