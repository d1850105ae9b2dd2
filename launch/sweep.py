"""Runs what is not done yet of a list of configurations, here or on other machines.

    python -m launch.sweep --sweep=MODULE:FUNCTION --workdir=DIR
    python -m launch.sweep --sweep=MODULE:FUNCTION --workdir=gs://BUCKET/DIR --executor=gke

The function takes nothing and returns a list of launch.configuration.Configuration. A run is done
when its result is there; the same command again does what is left, wherever the last one stopped.
Exit code 0: all done (or handed over); 1: some runs failed; 42: asked to end, everything is saved.
"""

import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import rich.console

from experiments.tools.conduct import provenance
from experiments.tools.flags import UsageError, arguments, describe, option, parse
from experiments.tools.output import told
from icl_jax.sharding import mesh_axes
from icl_jax.training.preemption import exit_on_sigterm
from launch.configuration import Run, identify, load_sweep, shard_of
from launch.executors.gke import Options as GkeOptions
from launch.executors.inprocess import Options as InProcessOptions
from launch.executors.local import Options as LocalOptions
from launch.executors.ray import Options as RayOptions
from launch.executors.skypilot import Options as SkypilotOptions
from launch.executors.slurm import Options as SlurmOptions
from launch.executors.tpu_vm import Options as TpuVmOptions
from launch.layout import Layout, check_reachable, write_whole
from launch.progress import Progress
from launch.task import Batch, Executor, Task
from launch.trackers import TrackerName, check_installed

ExecutorName = Literal["local", "inprocess", "ray", "slurm", "gke", "tpu-vm", "skypilot"]


@dataclass(frozen=True)
class Config:
    """What is run, and by whom."""

    sweep: str = option("", "MODULE:FUNCTION, which returns the configurations")
    executor: ExecutorName = option("local", "who runs them")
    shard: str | None = option(None, "i/n: only every n-th configuration from the i-th on")
    track: tuple[TrackerName, ...] = option((), "where metrics go besides their files")
    dry_run: bool = option(False, "print exactly what would run, and run nothing")
    local: LocalOptions = field(default_factory=LocalOptions)
    inprocess: InProcessOptions = field(default_factory=InProcessOptions)
    ray: RayOptions = field(default_factory=RayOptions)
    slurm: SlurmOptions = field(default_factory=SlurmOptions)
    gke: GkeOptions = field(default_factory=GkeOptions)
    tpu_vm: TpuVmOptions = field(default_factory=TpuVmOptions)
    skypilot: SkypilotOptions = field(default_factory=SkypilotOptions)

    def __post_init__(self) -> None:
        if self.shard is not None:
            shard_of([], self.shard)
        check_installed(self.track)

    def make_executor(self) -> Executor:
        """The executor, with its options."""
        name = self.executor.replace("-", "_")
        module: Any = importlib.import_module(f"launch.executors.{name}")
        executor: Executor = module.make(getattr(self, name))
        return executor


def main(argv: Sequence[str] | None = None, console: rich.console.Console | None = None) -> int:
    """The command; returns the exit code."""
    argv = list(sys.argv if argv is None else argv)
    console = console or rich.console.Console(stderr=True)
    try:
        parsed = parse(Config, argv)
        if parsed.help:
            print(describe(Config, __doc__, "sweep", package="launch"))
            return 0
        config = parsed.config
        if not config.sweep:
            raise UsageError("--sweep=MODULE:FUNCTION is missing.")
        if parsed.workdir is None:
            raise UsageError("--workdir=DIR is missing: the folder of the sweep.")
        if config.executor != "inprocess":
            # Devices are for the runs: a driver that holds one would take it from them.
            jax.config.update("jax_platforms", "cpu")
        machine = parsed.machine
        if machine.distributed is not None:
            raise UsageError(
                "--distributed: a run of a sweep is one process here. Leave it out; on several "
                "hosts it runs with --executor=gke and a --gke.topology that has them."
            )
        if machine.mesh is not None:
            _check_mesh(machine.mesh, config.executor)
        return _sweep(config, str(parsed.workdir), machine.mesh, console)
    except UsageError as error:
        print(f"sweep: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _check_mesh(mesh: str, executor: str) -> None:
    if executor == "inprocess":
        raise UsageError(
            f"--mesh={mesh}: with --executor=inprocess the devices share the runs, not each run. "
            "Leave it out, or choose another executor."
        )
    try:
        mesh_axes(mesh)
    except ValueError as error:
        raise UsageError(f"--mesh={mesh}: {error}") from None


def _sweep(config: Config, workdir: str, mesh: str | None, console: rich.console.Console) -> int:
    check_reachable(workdir)
    runs = shard_of(identify(load_sweep(config.sweep)), config.shard)
    layout = Layout(workdir)
    done = layout.done()
    left = [run for run in runs if run.id not in done]
    tasks = [Task(run, workdir, config.track, mesh) for run in left]
    batch = Batch(config.sweep, config.shard, workdir, tasks, config.track, mesh)
    executor = config.make_executor()
    counts = f"{len(runs)} runs, {len(runs) - len(left)} done, {len(left)} to do"
    if config.dry_run:
        if left:
            print(executor.describe(batch))
        console.print(f"{counts}; nothing was run.", highlight=False)
        return 0
    console.print(f"{counts}, in {layout.root}", highlight=False, soft_wrap=True)
    _record(config, layout, runs)
    if not left:
        return 0
    progress = Progress(len(left), console)
    with progress.shown():
        executor.execute(batch, progress)
    for name, why in progress.failures.items():
        console.print(f"failed: {name}: {why}", highlight=False, soft_wrap=True)
    return 1 if progress.failures else 0


def _record(config: Config, layout: Layout, runs: Sequence[Run]) -> None:
    """Writes what was swept, for ``collect`` and for people."""
    name = "sweep" if config.shard is None else f"sweep-{config.shard.replace('/', '-of-')}"
    value = {
        "sweep": config.sweep,
        **provenance(),
        "runs": {
            run.id: [run.configuration.experiment, *arguments(run.configuration.settings)]
            for run in runs
        },
    }
    write_whole(layout.root / f"{name}.json", json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    with told("sweep"), exit_on_sigterm():  # Also while there is no executor that is asked to stop.
        sys.exit(main())
