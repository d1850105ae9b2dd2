"""What a run does with the machine: programs kept on disk, a trace, and what was compiled."""

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax

from icl_jax.compilations import count_compilations

#: Programs that took less time are compiled again sooner than they are found.
_SECONDS = 0.5


@dataclass(frozen=True)
class Machine:
    """What the command line asks of the machine.

    Attributes:
      cache: the folder of compiled programs; None for none.
      profile: the folder that receives a trace; None for none.
    """

    cache: Path | None = None
    profile: Path | None = None


def default_cache() -> Path:
    """Where compiled programs are kept: the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "icl_jax" / "compiled"


@contextlib.contextmanager
def prepared(machine: Machine) -> Iterator[None]:
    """Around a run: its programs are kept, traced and counted; a last line says how many."""
    if machine.cache is not None:
        # A cache that cannot be written is slow, not wrong: JAX warns and goes on.
        jax.config.update("jax_compilation_cache_dir", str(machine.cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _SECONDS)
    with contextlib.ExitStack() as stack:
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
