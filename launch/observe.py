"""What a run's process did and used: one line per event in ``logs/ID.jsonl``.

{"event": "started", "attempt": 1, "time": ..., "host": ..., "pid": ...}
{"event": "observed", "seconds": ..., "step": ..., "tokens_per_second": ...,
 "share_of_roofline": ..., ...}
{"event": "ended", "code": 0, "seconds": ..., "compilations": ..., "compile_seconds": ...}
"""

import contextlib
import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import jax
from etils import epath

from icl_jax.compilations import Compilations, count_compilations
from icl_jax.training.loop import METRICS
from launch.chips import chip_of_kind
from launch.harmless import Harmless
from launch.layout import Layout, is_remote
from launch.roofline import least_seconds, training_step

#: Seconds between observations.
EVERY = 10.0
#: What it means that a line of them is missing.
_SO = "its result does not need that"


class Observer:
    """A context manager around one attempt at a run."""

    def __init__(
        self,
        layout: Layout,
        name: str,
        folder: Path,
        *,
        tokens_per_step: int | None = None,
        every: float = EVERY,
    ) -> None:
        """Watches the process that it is made in.

        Args:
          layout: the sweep's folder.
          name: the run's id.
          folder: the experiment's, where trainings keep their metrics.
          tokens_per_step: of its training, where it is known.
          every: seconds between observations.
        """
        self._tokens_per_step = tokens_per_step
        self._path = layout.log(name, "jsonl")
        self._folder = folder
        self._every = every
        self._start = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._harmless = Harmless("launch.observe")
        self._stack = contextlib.ExitStack()
        self._steps = 0, self._start  # At the last observation.
        # Programs that were compiled when a step was read last, and its least seconds.
        self._least: tuple[int, float | None] = 0, None

    def __enter__(self) -> "Observer":
        attempt = 1 + sum(event["event"] == "started" for event in read_events(self._path))
        about = {"attempt": attempt, "host": socket.gethostname(), "pid": os.getpid()}
        self._append({"event": "started", "time": time.time(), **about})
        self._compilations: Compilations = self._stack.enter_context(count_compilations())
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()
        self._stack.close()

    def ended(self, code: int) -> None:
        """Notes the end, before the result is written."""
        # A full disk, or a bucket in trouble, must not hide how the run ended.
        with self._harmless("the end of the attempt was not noted", _SO):
            self._append({"event": "ended", "code": code, **self._state()})

    def _watch(self) -> None:
        while not self._stop.wait(self._every):
            with self._harmless("the run was not observed", _SO):
                self._append({"event": "observed", **self._state()})

    def _state(self) -> dict[str, Any]:
        now = time.monotonic()
        state: dict[str, Any] = {
            "seconds": round(now - self._start, 3),
            "compilations": self._compilations.number,
            "compile_seconds": round(self._compilations.seconds, 3),
            "resident_bytes": _resident_bytes(),
        }
        # Asking for devices starts the backend, which is the experiment's business: once it has
        # compiled something it is there.
        if self._compilations.number:
            state["device_bytes"] = device_bytes()
        step = newest_step(self._folder)
        if step is not None:
            before, when = self._steps
            if step >= before > 0 and now > when:
                speed = (step - before) / (now - when)
                state["steps_per_second"] = round(speed, 3)
                if self._tokens_per_step is not None:
                    state["tokens_per_second"] = round(speed * self._tokens_per_step)
                if (least := self._least_seconds()) is not None:
                    state["share_of_roofline"] = float(f"{speed * least:.3g}")
            self._steps = step, now
            state["step"] = step
        return state

    def _least_seconds(self) -> float | None:
        """Of a step, on this chip; None where the chip or the step's program is not known."""
        number = self._compilations.number
        if number != self._least[0]:
            self._least = number, None
            # A program's text is XLA's, of any version: what cannot be read must not end a run.
            with contextlib.suppress(Exception):
                chip = chip_of_kind(jax.local_devices()[0].device_kind)
                step = None if chip is None else training_step()
                if chip is not None and step is not None:
                    self._least = number, least_seconds(step, chip)
        return self._least[1]

    def _append(self, event: dict[str, Any]) -> None:
        line = json.dumps(event) + "\n"
        if is_remote(self._path):  # Objects cannot be appended to; they are small.
            earlier = self._path.read_text() if self._path.exists() else ""
            self._path.write_text(earlier + line)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with Path(self._path).open("ab+") as file:
            if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n":
                line = "\n" + line  # A kill cut the line before short.
            file.write(line.encode())


def read_events(path: epath.Path) -> list[dict[str, Any]]:
    """The events of a run; a line that a kill cut short is left out."""
    events = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            events.append(json.loads(line))
    return events


def device_bytes() -> list[dict[str, int]]:
    """For each device of this process, the memory in use, its peak and its limit, where told.

    A CPU tells nothing: an empty dictionary.
    """
    wanted = {"bytes_in_use": "now", "peak_bytes_in_use": "peak", "bytes_limit": "limit"}
    found = [device.memory_stats() or {} for device in jax.local_devices()]
    return [{name: stats[key] for key, name in wanted.items() if key in stats} for stats in found]


def newest_step(folder: Path) -> int | None:
    """The last step of the training that wrote last; None where nothing trains."""
    files = [(path.stat().st_mtime, path) for path in folder.rglob(METRICS) if path.is_file()]
    if not files:
        return None
    with max(files)[1].open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().splitlines(keepends=True)
    for line in reversed(lines):
        if line.endswith(b"\n"):
            with contextlib.suppress(ValueError, KeyError):
                return int(json.loads(line)["step"])
    return None


def _resident_bytes() -> int | None:
    """The memory of this process, None where the system does not tell it so."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
