"""What a run does with the machine: devices, programs kept on disk, a trace, what was compiled."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from icl_jax.compilations import count_compilations
from icl_jax.sharding import make_mesh, mesh_axes

#: Programs that took less time are compiled again sooner than they are found.
_SECONDS = 0.5


@dataclass(frozen=True)
class Machine:
    """What the command line asks of the machine.

    Attributes:
      cache: the folder of compiled programs; None for none.
      profile: the folder that receives a trace; None for none.
      mesh: the devices that share the work, as ``data:4,model:2``; None for one of them.
    """

    cache: Path | None = None
    profile: Path | None = None
    mesh: str | None = None


class MachineError(ValueError):
    """What is asked of the machine, it has not; the message says what to change."""


def default_cache() -> Path:
    """Where compiled programs are kept: the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "icl_jax" / "compiled"


@contextlib.contextmanager
def prepared(machine: Machine) -> Iterator[None]:
    """Around a run: devices share its work; its programs are kept, traced and counted.

    A last line says how many programs there were.

    Raises:
      MachineError: a mesh of other axes or more devices than there are.
    """
    if machine.cache is not None:
        # A cache that cannot be written is slow, not wrong: JAX warns and goes on.
        jax.config.update("jax_compilation_cache_dir", str(machine.cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
    with contextlib.ExitStack() as stack:
        if machine.mesh is not None:
            stack.enter_context(_shared(machine.mesh))
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
        yield
