"""What a run does with the machine: devices, programs kept on disk, a trace, what was compiled."""

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from experiments.tools.processes import Distributed, MachineError, greet, joined
from icl_jax.compilations import count_compilations
from icl_jax.sharding import make_mesh, mesh_axes

PLATFORMS = ("auto", "cpu", "gpu", "tpu")

_LEVEL = "xla_backend_optimization_level"
#: Programs that took less time are compiled again sooner than they are found.
_SECONDS = 0.5


@dataclass(frozen=True)
class Machine:
    """What the command line asks of the machine.

    Attributes:
      cache: the folder of compiled programs; None for none.
      profile: the folder that receives a trace; None for none.
      mesh: the devices that share the work, as ``data:4,model:2``; None for one of them, or for
        all of several processes.
      distributed: which of several processes this is; None for the only one.
      platform: cpu, gpu or tpu; "auto" for the accelerator where there is one, but the CPU for what
        is small.
      small: whether a small job is asked for (``--quick``), whose programs take an accelerator's
        compiler several times as long as a CPU's, and then run for no time at all.
    """

    cache: Path | None = None
    profile: Path | None = None
    mesh: str | None = None
    distributed: Distributed | None = None
    platform: str = "auto"
    small: bool = False


def default_cache() -> Path:
    """Where compiled programs are kept: the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "icl_jax" / "compiled"


def forget_programs() -> None:
    """Frees what has been compiled in this process; between parts that compile much.

    Linux lets a process map 65,530 regions of memory, a program of XLA's for CPUs takes about a
    dozen, and where there are no more XLA ends the process.
    """
    jax.clear_caches()
    gc.collect()


@contextlib.contextmanager
def prepared(machine: Machine, workdir: Path | None = None) -> Iterator[None]:
    """Around a run: devices share its work; its programs are kept, traced and counted.

    A last line says how many programs there were.

    Args:
      machine: what is asked for.
      workdir: receives the log of every one of several processes.

    Raises:
      MachineError: a platform that is not there; a mesh of other axes or more devices than there
        are; processes that do not find each other.
      LostPeerError: one of several processes is gone.
    """
    if machine.cache is not None:
        # A cache that cannot be written is slow, not wrong: JAX warns and goes on.
        jax.config.update("jax_compilation_cache_dir", str(machine.cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
    before = _platforms()
    _choose_platform(machine)
    with contextlib.ExitStack() as stack:
        mesh = machine.mesh
        if machine.distributed is not None:
            stack.enter_context(joined(machine.distributed, workdir))
        # Not before the processes have met, which they cannot once JAX has its devices.
        _check_platform(machine, before)
        if machine.distributed is not None:
            mesh = mesh or f"data:{len(jax.devices())}"
        if mesh is not None:
            stack.enter_context(_shared(mesh))
        compilations = stack.enter_context(count_compilations())
        if machine.profile is not None:
            stack.enter_context(
                jax.profiler.trace(str(machine.profile), create_perfetto_trace=True)
            )
        yield
    if compilations.number:
        print(compilations, file=sys.stderr)
    if machine.profile is not None:
        print(f"Trace: {machine.profile} (TensorBoard, ui.perfetto.dev)", file=sys.stderr)


def _platforms() -> str | None:
    names: str | None = jax.config.jax_platforms  # type: ignore[attr-defined]
    return names


def _choose_platform(machine: Machine) -> None:
    """Says which devices JAX is to look for, before it looks for any."""
    if machine.platform == "auto":
        # Whoever names devices, here or in JAX_PLATFORMS, gets them.
        named = machine.mesh or machine.distributed or _platforms()
        if machine.small and not named:
            jax.config.update("jax_platforms", "cpu")
            _compile_in_a_hurry()
        return
    jax.config.update("jax_platforms", machine.platform)


def _check_platform(machine: Machine, before: str | None) -> None:
    """MachineError where the platform that was asked for is not there."""
    if machine.platform == "auto":
        return
    try:
        there = jax.default_backend()
    except RuntimeError:
        there = "none"
    if there != machine.platform:
        jax.config.update("jax_platforms", before)
        raise MachineError(
            f"--platform={machine.platform}: JAX finds no such device here (it finds {there}). "
            "Leave the flag out, or install JAX for it."
        )


def _compile_in_a_hurry() -> None:
    """A small job on a CPU compiles for longer than it runs: LLVM, most of that, does less."""
    given = os.environ.get("XLA_FLAGS", "")
    if _LEVEL not in given:  # Read once, when XLA looks for devices.
        os.environ["XLA_FLAGS"] = f"{given} --{_LEVEL}=1".strip()


@contextlib.contextmanager
def _shared(mesh: str) -> Iterator[None]:
    """In the block the library divides prompts, tasks and parameters over the devices."""
    try:
        made = make_mesh(mesh_axes(mesh))
    except ValueError as error:
        count = len(jax.devices())
        raise MachineError(
            f"--mesh={mesh}: {error} (There are {count} devices here; on a CPU "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8 makes eight.)"
        ) from None
    with jax.set_mesh(made):
        if jax.process_count() > 1 and jax.default_backend() == "cpu":
            greet(made)
        yield
