"""Two real processes with four devices each that compute as one program, and who starts them."""

import importlib
import os
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

from experiments.tools.processes import Distributed, joined

ROOT = Path(__file__).parents[1]
#: On a busy machine one process compiles a minute longer than the other; CPUs wait half of that.
PATIENT = (
    "--xla_cpu_collective_timeout_seconds=600 "
    "--xla_cpu_collective_call_terminate_timeout_seconds=600"
)


def start(devices, *command, variables=(), **options):
    """A process that runs a module (its name, and its arguments) on as many devices.

    ``variables`` are of its environment; ``options`` are those of ``Popen``.
    """
    # Of two flags of one name XLA takes the second.
    flags = f"--xla_force_host_platform_device_count={devices} {PATIENT}"
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}",
        **dict(variables),
    }
    return subprocess.Popen(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, text=True, **options
    )


def free_port(number=0):
    """A port of this machine that nobody listens to; OSError where that is not true of a number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", number))
        return free.getsockname()[1]


class Pair:
    """Two processes that do together what they are asked for, one thing after the other.

    So a test of each thing waits for the start, of Python, JAX and the network, once for all.
    """

    def __init__(self, module, folder):
        """``module`` calls ``serve``; ``folder`` receives what the processes say."""
        self._module, self._folder = module, folder
        self._processes, self._asked = [], 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._end()

    def _start(self):
        self._asked, port = 0, str(free_port())
        self._folder.mkdir(parents=True, exist_ok=True)
        for index in range(2):
            with (self._folder / f"output-{index}.txt").open("a") as output:
                self._processes.append(
                    start(
                        4, self._module, str(self._folder), port, str(index),
                        stdin=subprocess.PIPE, stdout=output, stderr=output,
                    )
                )  # fmt: skip

    def _end(self):
        for process in self._processes:
            process.kill()
            process.communicate()
        self._processes = []

    def ask(self, *words, seconds=900):
        """Returns when both have done it; one that cannot ends both, and the next begins anew."""
        if not self._processes:
            self._start()
        answers = [_answer(self._folder, self._asked, index) for index in range(2)]
        self._asked += 1
        for answer in answers:
            answer.unlink(missing_ok=True)
        for process in self._processes:
            print(*words, file=process.stdin, flush=True)
        until = time.monotonic() + seconds
        while not all(answer.exists() for answer in answers):
            told = "".join(answer.read_text() for answer in answers if answer.exists())
            late = time.monotonic() > until
            if told or late or any(process.poll() is not None for process in self._processes):
                self._end()
                lines = (self._folder / "output-0.txt").read_text().splitlines()[-30:]
                raise AssertionError("\n".join([told or f"no answer to {words}", *lines]))
            time.sleep(0.05)
        told = "".join(answer.read_text() for answer in answers)
        assert not told, told


def _answer(folder, number, index):
    """The file that says that one of the processes is done, and what went wrong."""
    return folder / f"answer-{number}-{index}.txt"


def serve(do):
    """In each of the two processes: joins the other, and calls ``do`` with the words of each line.

    Arguments of the command line: the folder, the port and which of the two this is.
    """
    importlib.import_module("tests.conftest")  # As strict as the tests are.
    folder, port, index = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    with joined(Distributed(f"127.0.0.1:{port}", index, 2), None):
        for number, line in enumerate(sys.stdin):
            told = ""
            try:
                do(*line.split())
            except Exception:
                told = traceback.format_exc()
            answer = _answer(folder, number, index)
            answer.with_suffix(".part").write_text(told)
            answer.with_suffix(".part").rename(answer)
