"""Drivers of sweeps as processes, and what they leave, for the tests."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: However slow the machine is, nothing here takes so long unless it hangs.
PATIENCE = 600.0
#: Workdir -> id -> a result's file when it was first seen, and who looks.
_FIRST, _LOOKING, _LOCK = {}, {}, threading.Lock()


def start(workdir, sweep, *flags, address=None, environment=None):
    """Starts a driver; its output goes to a file beside the workdir.

    ``sweep`` is a function of ``tests.launch.trivial``, or MODULE:FUNCTION.
    ``address`` is how the sweep is told its workdir, where that is a bucket's.
    """
    function = sweep if ":" in sweep else f"tests.launch.trivial:{sweep}"
    command = [sys.executable, "-m", "launch.sweep", f"--sweep={function}"]
    with open(f"{workdir}.driver.log", "ab") as log:
        process = subprocess.Popen(
            [*command, f"--workdir={address or workdir}", *flags],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=log,
            stderr=log,
        )
    thread = threading.Thread(target=_look_while, args=(process, workdir), daemon=True)
    thread.start()
    _LOOKING.setdefault(str(workdir), []).append(thread)
    return process


def finish(workdir, sweep, *flags, code=0, **where):
    """Runs a driver to its end."""
    process = start(workdir, sweep, *flags, **where)
    assert process.wait(PATIENCE) == code, output(workdir)
    return output(workdir)


def output(workdir):
    """What the drivers printed."""
    return Path(f"{workdir}.driver.log").read_text()


def wait_until(condition, patience=PATIENCE):
    """Waits until ``condition()`` holds, and returns what it gave."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return found


def results(workdir):
    """Id -> result, of all that is done."""
    files = sorted((Path(workdir) / "results").glob("[!.]*.json"))
    return {path.stem: json.loads(path.read_text()) for path in files}


def events(workdir):
    """Id -> the events of its attempts."""
    found = {}
    for path in sorted((Path(workdir) / "logs").glob("*.jsonl")):
        lines = path.read_text().splitlines()
        found[path.stem] = [json.loads(line) for line in lines if line.endswith("}")]
    return found


def attempts(workdir):
    """Id -> how often it was started."""
    return {
        name: sum(event["event"] == "started" for event in log)
        for name, log in events(workdir).items()
    }


def look(workdir):
    """Remembers each result that is there as it was when it was first seen."""
    with _LOCK:
        first = _FIRST.setdefault(str(workdir), {})
        for name, stat in _stats(workdir).items():
            first.setdefault(name, stat)


def done_twice(workdir):
    """Runs that were started or whose result was written again although they were done.

    As far as was looked: ``start`` looks as long as its driver runs.
    """
    look(workdir)
    first, now = _FIRST[str(workdir)], _stats(workdir)
    written = {name for name in first if _version(now.get(name)) != _version(first[name])}
    started = {
        name
        for name, log in events(workdir).items()
        for event in log
        if event["event"] == "started" and name in first and event["time"] > first[name].st_mtime
    }
    return sorted(written | started)


def forget(workdir):
    """For a workdir that begins anew; its drivers have ended."""
    for thread in _LOOKING.pop(str(workdir), ()):
        thread.join(PATIENCE)
    _FIRST.pop(str(workdir), None)


def _stats(workdir):
    found = {}
    for path in (Path(workdir) / "results").glob("[!.]*.json"):
        found[path.stem] = path.stat()
    return found


def _version(stat):
    """What changes when a file is written again, even with the same bytes."""
    return stat and (stat.st_ino, stat.st_mtime_ns)


def _look_while(process, workdir):
    while process.poll() is None:
        look(workdir)
        time.sleep(0.05)


def workers(workdir):
    """The processes that run something for a sweep now: process -> the run's id."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"launch.worker" in words and os.fsencode(str(workdir)) in words:
            found[int(path.parent.name)] = words[words.index(b"launch.worker") + 2].decode()
    return found


def kill(pid):
    """SIGKILL, to a process that may have just ended."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
