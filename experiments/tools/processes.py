"""One program of several processes: how they find each other, what each logs, and a lost one."""

import contextlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax
import jax.numpy as jnp

# The service between processes has no public name, and its values are wanted before devices are.
from jax._src import distributed
from jax.sharding import Mesh, PartitionSpec

from icl_jax.records import PROCESS_LOG


@dataclass(frozen=True)
class Distributed:
    """Which of several processes this is; what is None is found on TPU slices, GKE and SLURM.

    Attributes:
      coordinator: host and port of the first one.
      process: the number of this one.
      processes: how many there are.
      heartbeat: seconds after which a silent one counts as lost.
    """

    coordinator: str | None = None
    process: int | None = None
    processes: int | None = None
    heartbeat: int = 100


class MachineError(ValueError):
    """What is asked of the machine, it has not; the message says what to change."""


class LostPeerError(RuntimeError):
    """Another process of this program is gone."""


#: What the network of CPUs, and the service between processes, say of a peer that is gone.
_LOST = (
    "Gloo",
    "Connection closed by peer",
    "Connection reset by peer",
    "heartbeat",
    "UNAVAILABLE",
)


@contextlib.contextmanager
def joined(which: Distributed, workdir: Path | None) -> Iterator[None]:
    """In the block this process computes with the others, and writes its own log.

    Inside another such block it has met them already, and only the log is new.

    Raises:
      MachineError: they do not find each other.
      LostPeerError: one of them is gone.
    """
    with contextlib.ExitStack() as stack:
        if not jax.distributed.is_initialized():
            stack.enter_context(_met(which))
        if workdir is not None:
            stack.enter_context(_logged(workdir))
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            if any(word in str(error) for word in _LOST):
                raise LostPeerError(
                    f"another of the {_together().num_processes} processes is gone "
                    f"({' '.join(str(error).split())[:200]}). Start all of them again: they go on "
                    "from the last checkpoint."
                ) from error
            raise


@contextlib.contextmanager
def _met(which: Distributed) -> Iterator[None]:
    """In the block the processes know each other; they part when it ends well."""
    # On CPUs; elsewhere the devices have a network of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # SIGTERM is ours: a training saves, and ends with the code that is started again.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            which.coordinator,
            which.processes,
            which.process,
            heartbeat_timeout_seconds=which.heartbeat,
        )
    except (RuntimeError, ValueError) as error:
        raise MachineError(
            f"--distributed: {' '.join(str(error).split())[:300]} Where no slice, GKE or SLURM "
            "says who is who, give --coordinator=HOST:PORT --process=I --processes=N."
        ) from error
    yield
    jax.distributed.shutdown()


def _together() -> Any:
    """What JAX knows of the processes of this program, before it looks for any device."""
    return distributed.global_state


def is_first() -> bool:
    """Whether this is the only process, or the first of several; starts no device."""
    return not jax.distributed.is_initialized() or _together().process_id == 0


def of_the_first(what: str, answer: str) -> str:
    """The first process' answer, in all of them: each asks once for each ``what``.

    The service between the processes carries it. Devices need not be chosen yet, and one process
    may ask while another still computes, or fails.
    """
    if not jax.distributed.is_initialized():
        return answer
    client, key = _together().client, f"icl_jax/{what}"
    if is_first():
        client.key_value_set(key, answer)
        return answer
    while True:
        try:
            return str(client.blocking_key_value_get(key, 1000))
        except jax.errors.JaxRuntimeError as error:  # Now and then signals have to be heard.
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def part(code: int, seconds: float = 10.0) -> int:
    """Before a process ends: the exit code that it should have.

    One that ended well ends as the first one did, which writes what all have found. They wait for
    each other as long as ``seconds``, so that who asks the first one finds it.
    """
    if not jax.distributed.is_initialized():
        return code
    if is_first() or not code:
        code = int(of_the_first("exit code", str(code)))
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # Some compute on, or are gone.
        _together().client.wait_at_barrier("icl_jax/parting", round(1000 * seconds))
    return code


@contextlib.contextmanager
def _logged(workdir: Path) -> Iterator[None]:
    """What is printed goes into this process' log as well; of the first one also where it did."""
    index = jax.process_index()
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / f"{PROCESS_LOG}{index}.log").open("a", buffering=1) as file:
        print(
            f"process {index} of {jax.process_count()}, {jax.local_device_count()} devices",
            file=file,
        )
        output, errors = sys.stdout, sys.stderr
        sys.stdout = _Both(file, output if index == 0 else None)
        sys.stderr = _Both(file, errors)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = output, errors


class _Both:
    """A stream that writes into a file, and into another stream if there is one."""

    def __init__(self, file: IO[str], other: Any) -> None:
        self._file, self._other = file, other

    def write(self, text: str) -> int:
        """Writes to both."""
        if self._other is not None:
            self._other.write(text)
        return self._file.write(text)

    def flush(self) -> None:
        """Flushes both."""
        self._file.flush()
        if self._other is not None:
            self._other.flush()

    def isatty(self) -> bool:
        """Whether the other one is a terminal."""
        return self._other is not None and self._other.isatty()

    def fileno(self) -> int:
        """Of the other one, or of the file."""
        return (self._file if self._other is None else self._other).fileno()


def greet(mesh: Mesh) -> None:
    """Lets all groups of devices along the mesh's axes meet while nobody has anything to do.

    On CPUs a group opens its connections when it first has something to say, and gives up after
    half a minute: less than one process may take longer than another over a compilation.
    """
    for count in range(1, len(mesh.axis_names) + 1):
        for axes in itertools.combinations(mesh.axis_names, count):

            def share(axes: tuple[str, ...] = axes) -> jax.Array:
                return jax.lax.psum(jnp.ones((), jnp.float32), axes)

            met = jax.jit(jax.shard_map(share, mesh=mesh, in_specs=(), out_specs=PartitionSpec()))
            met().block_until_ready()
