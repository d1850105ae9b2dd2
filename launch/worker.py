"""Runs one configuration of a sweep in this process; executors start it.

    python -m launch.worker [--track=NAME,...] WORKDIR ID EXPERIMENT [--flag=value ...]

It runs the experiment as ``python -m EXPERIMENT --workdir=WORKDIR/runs/ID --flag=value`` would, and
around it: takes the run's lock, notes when it starts and ends, watches memory, steps and
compilations meanwhile, and writes the run's result when the experiment ended well.

With --distributed among the flags this is one of several processes, which all run this command and
share the folder: the first one takes the lock, watches and writes for all, and all end alike.

Exit codes: the experiment's own, and 42 (preempted, run it again), 74 (the disk is full), 75
(another process has this run).
"""

import contextlib
import dataclasses
import errno
import functools
import json
import os
import runpy
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.tools.flags import UsageError, parse
from experiments.tools.processes import (
    LostPeerError,
    MachineError,
    is_first,
    joined,
    of_the_first,
    part,
)
from icl_jax.records import plain
from icl_jax.training.preemption import exit_on_sigterm
from launch import lifeline, staging
from launch.configuration import experiment_module
from launch.layout import Layout, is_remote
from launch.observe import Observer
from launch.outcomes import DISK_FULL, ELSEWHERE
from launch.processes import PARENT
from launch.trackers import Mirror, Tracker
from launch.trackers import make as make_tracker


def main(argv: Sequence[str]) -> int:
    """Runs what the command line names, and returns the exit code."""
    words = list(argv[1:])
    track = words.pop(0).partition("=")[2].split(",") if words[:1] and _is_track(words[0]) else []
    if len(words) < 3:
        print(__doc__)
        return 2
    workdir, name, experiment, *flags = words
    if PARENT in os.environ:
        lifeline.die_with(int(os.environ.pop(PARENT)))
    layout = Layout(workdir)
    try:
        with exit_on_sigterm():
            if any(_is_distributed(flag) for flag in flags):
                return _together(layout, name, experiment, flags, track)
            return _guarded(layout, name, experiment, flags, track)
    except OSError as error:
        if not _is_disk_full(error):
            raise
        print(f"launch.worker: error: {_DISK_FULL}", file=sys.stderr)
        return DISK_FULL


_DISK_FULL = "the disk is full. What was saved before is whole: make room and run it again."


def _is_track(word: str) -> bool:
    return word.startswith("--track=")


def _is_distributed(word: str) -> bool:
    return word.lstrip("-").partition("=")[0] == "distributed"


def _together(
    layout: Layout, name: str, experiment: str, flags: list[str], track: Sequence[str]
) -> int:
    """As ``_guarded``, in each of several processes."""
    which = parse(experiment_module(experiment).Config, [experiment, *flags]).machine.distributed
    if which is None:
        return _guarded(layout, name, experiment, flags, track)
    if is_remote(layout.workdir):
        raise UsageError(
            f"--distributed: the processes of a run write into one folder, which {layout.workdir} "
            "is not. Take a workdir on a disk that all of them mount."
        )
    try:
        with joined(which, None):
            try:
                code = _guarded(layout, name, experiment, flags, track)
            except jax.errors.JaxRuntimeError:
                raise
            except Exception as error:  # The others are told before this one is gone.
                traceback.print_exc()
                code = DISK_FULL if _is_disk_full(error) else 1
            if code := part(code):
                raise SystemExit(code)  # Past the farewell, to which others may not come.
        return 0
    except MachineError as error:
        print(f"launch.worker: error: {error}", file=sys.stderr, flush=True)
        if isinstance(error.__cause__, ValueError):
            return 2
        os.abort()  # The others did not come in time, which is no mistake: as when one is lost.
    except LostPeerError as error:
        print(f"launch.worker: error: {error}", file=sys.stderr, flush=True)
        os.abort()


def _guarded(
    layout: Layout, name: str, experiment: str, flags: list[str], track: Sequence[str]
) -> int:
    with contextlib.ExitStack() as stack:
        first, has_it = is_first(), True
        if first and not is_remote(layout.workdir):
            has_it = stack.enter_context(lifeline.locked(Path(layout.log(name, "lock"))))
        # After the lock: whoever held it before may have finished.
        state = "taken" if not has_it else "done" if layout.result(name).exists() else "to do"
        state = of_the_first("state", state)
        if state != "to do":
            return 0 if state == "done" else ELSEWHERE
        stack.enter_context(staging.log(layout, name))
        folder = stack.enter_context(staging.folder(layout, name))
        if not first:
            return _run(experiment, folder, flags)
        config = parse(experiment_module(experiment).Config, [experiment, *flags]).config
        observer = stack.enter_context(
            Observer(layout, name, folder, tokens_per_step=tokens_per_step(config))
        )
        with contextlib.ExitStack() as watched:
            if track:
                trackers = functools.partial(_trackers, track, name, config, folder)
                watched.enter_context(Mirror(folder, trackers))
            code = _run(experiment, folder, flags)
        observer.ended(code)
        if code == 0:
            result = _result(name, experiment, config, folder)
            staging.publish(folder, layout, name)
            layout.save_result(name, result)
        return code


def _run(experiment: str, folder: Path, flags: list[str]) -> int:
    """Runs the experiment as the main program, and returns its exit code."""
    # It was imported for its Config; as the main program it is found anew, as by python -m.
    sys.modules.pop(experiment, None)
    arguments = sys.argv
    sys.argv = [experiment, f"--workdir={folder}", *flags]
    try:
        runpy.run_module(experiment, run_name="__main__", alter_sys=True)
        return 0
    except SystemExit as stop:
        if _is_disk_full(stop):
            return DISK_FULL
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        traceback.print_exc()
        if _is_disk_full(error):
            print(f"launch.worker: error: {_DISK_FULL}", file=sys.stderr)
            return DISK_FULL
        return 1
    finally:
        sys.argv = arguments
        sys.stdout.flush()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_disk_full(error: BaseException) -> bool:
    """Whether an error, or what it came from, says so: Python's own, or a library's in words."""
    full = os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT)
    return any(
        (isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT))
        or any(text in str(cause) for text in full)
        for cause in _causes(error)
    )


def _trackers(track: Sequence[str], name: str, config: Any, folder: Path) -> list[Tracker]:
    return [make_tracker(tracker, name, plain(config), folder) for tracker in track]


def tokens_per_step(config: Any) -> int | None:
    """What a configuration, or one nested in it, says about itself; None where none does."""
    found = getattr(config, "tokens_per_step", None)
    if found is not None:
        return int(found)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value) and (found := tokens_per_step(value)) is not None:
            return found
    return None


def _result(name: str, experiment: str, config: Any, folder: Path) -> dict[str, Any]:
    """What ``collect`` reads: the complete configuration, and the summary's single values."""
    summary: dict[str, Any] = {}
    if (folder / "summary.json").is_file():
        summary = scalars(json.loads((folder / "summary.json").read_text()))
    return {"id": name, "experiment": experiment, "config": plain(config), "summary": summary}


def scalars(tree: Any, name: str = "") -> dict[str, Any]:
    """Dotted name -> value of what is a number, a word or a truth value; lists are left out."""
    if isinstance(tree, dict):
        prefix = f"{name}." if name else ""
        return {
            k: v for key, entry in tree.items() for k, v in scalars(entry, prefix + key).items()
        }
    return {} if isinstance(tree, list) or tree is None else {name: tree}


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv))
    except UsageError as error:
        print(f"launch.worker: error: {error}", file=sys.stderr)
        sys.exit(2)
