"""Drivers of sweeps as processes, and what they leave, for the tests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: However slow the machine is, nothing here takes so long unless it hangs.
PATIENCE = 600.0


def start(workdir, sweep, *flags, address=None, environment=None):
    """Starts a driver; its output goes to a file beside the workdir.

    ``sweep`` is a function of ``tests.launch.trivial``, or MODULE:FUNCTION.
    ``address`` is how the sweep is told its workdir, where that is a bucket's.
    """
    function = sweep if ":" in sweep else f"tests.launch.trivial:{sweep}"
    command = [sys.executable, "-m", "launch.sweep", f"--sweep={function}"]
    with open(f"{workdir}.driver.log", "ab") as log:
        return subprocess.Popen(
            [*command, f"--workdir={address or workdir}", *flags],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
            stdout=log,
            stderr=log,
        )


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


def started_after_the_result(workdir):
    """Runs that were started although they were done."""
    times = {p.stem: p.stat().st_mtime for p in (Path(workdir) / "results").glob("[!.]*.json")}
    return [
        name
        for name, log in events(workdir).items()
        for event in log
        if event["event"] == "started" and event["time"] > times.get(name, float("inf"))
    ]


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
