"""Opening the folder of a run: a new one, or one that was made for the very same."""

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from icl_jax.records.errors import WorkdirError, unwritable
from icl_jax.records.files import PARTIAL
from icl_jax.records.lock import LOCK, lock_folder
from icl_jax.records.plain import plain
from icl_jax.records.provenance import PROVENANCE, environment, with_earlier
from icl_jax.records.run import Run

CONFIG = "config.json"
#: How the logs of several processes begin, which are there before the run is.
PROCESS_LOG = "process-"
_MOST_CHANGES = 3  # Differences of a configuration that an error lists.


def open_run(
    workdir: str | os.PathLike[str],
    config: Any,
    *,
    experiment: str,
    provenance: Mapping[str, Any] | None = None,
    free: Collection[str] = (),
) -> Run:
    """Opens the folder of a run, new or killed halfway, and records what is run.

    Args:
      workdir: the folder; made where there is none.
      config: a dataclass, the complete configuration.
      experiment: its name.
      provenance: what to write beside the versions, such as ``{"commit": "1a2b3c"}``.
      free: names of the configuration's own fields that may be other than at the last time: what
        they ask for is done in addition. The folder then records the new ones.

    Returns:
      The run; with the same experiment and configuration, everything that it already wrote.

    Raises:
      WorkdirError (a ValueError): the folder belongs to another experiment or configuration, is a
        file or in a bucket, cannot be written, is in use by another process, or holds something
        that is no run.
      TypeError: ``workdir`` is no path.
    """
    run = Run(_folder(workdir))
    asked = {"experiment": experiment, "config": plain(config)}
    try:
        _make_folder(run)
        if run.has(CONFIG):
            _check_same_run(run, asked, {f"config.{name}" for name in free})
        run = dataclasses.replace(run, lock=lock_folder(run.workdir))
        if run.has(CONFIG):  # Another process may have come in between.
            _check_same_run(run, asked, {f"config.{name}" for name in free})
        now = {**environment(), **plain(dict(provenance or {}))}
        run.save_json(PROVENANCE, with_earlier(run, now))
        if not run.has(CONFIG) or free:
            run.save_json(CONFIG, asked)  # Last: it is what makes the folder a run folder.
    except OSError as error:
        raise unwritable(run.workdir, error) from error
    return run


def _folder(workdir: Any) -> Path:
    if not isinstance(workdir, str | os.PathLike):
        raise TypeError(
            f"open_run: workdir must be the path of a folder, got {workdir!r}. Choose a --workdir."
        )
    if "://" in os.fspath(workdir):  # As a ``Path`` it would be a local folder named gs:.
        raise WorkdirError(
            f"workdir {os.fspath(workdir)!r} is a bucket's, and records are local files. Choose a "
            "local --workdir; launch.sweep copies what runs leave to a bucket."
        )
    folder = Path(workdir)
    if "\0" in str(folder):
        raise WorkdirError(f"workdir {str(folder)!r} has a NUL in it. Choose another --workdir.")
    return folder


def _make_folder(run: Run) -> None:
    if run.workdir.exists() and not run.workdir.is_dir():
        raise WorkdirError(f"workdir {run.workdir} is a file. Choose another --workdir.")
    run.workdir.mkdir(parents=True, exist_ok=True)
    ours = {CONFIG, PROVENANCE}  # A run killed while it opened leaves no more than these.
    ours |= {LOCK, *(f".{name}{PARTIAL}" for name in ours)}
    strangers = sorted(
        path.name
        for path in run.workdir.iterdir()
        if path.name not in ours and not path.name.startswith(PROCESS_LOG)
    )
    if strangers and not run.has(CONFIG):
        raise WorkdirError(
            f"workdir {run.workdir} is not empty and no run folder (it holds {strangers[0]!r} but "
            f"no {CONFIG}). Choose another --workdir, or an empty folder."
        )


def _check_same_run(run: Run, asked: Mapping[str, Any], free: Collection[str]) -> None:
    try:
        found = run.load_json(CONFIG)
    except ValueError:  # No JSON, or no text at all.
        found = None
    if not isinstance(found, dict) or found.keys() != asked.keys():
        raise WorkdirError(
            f"workdir {run.workdir} holds a {CONFIG} that no run wrote. Choose another --workdir."
        )
    if found["experiment"] != asked["experiment"]:
        raise WorkdirError(
            f"workdir {run.workdir} belongs to experiment {found['experiment']!r}. Choose another "
            "--workdir."
        )
    old, new = _flat(found), _flat(asked)
    names = [
        name
        for name in {**old, **new}
        if old.get(name, "absent") != new.get(name, "absent") and name not in free
    ]
    if names:
        changes = "; ".join(
            f"{name.removeprefix('config.')}: {old.get(name, 'absent')} -> "
            f"{new.get(name, 'absent')}"
            for name in names[:_MOST_CHANGES]
        )
        if len(names) > _MOST_CHANGES:
            changes += f"; and {len(names) - _MOST_CHANGES} more"
        raise WorkdirError(
            f"workdir {run.workdir} belongs to another configuration ({changes}). Choose another "
            "--workdir, or delete this one."
        )


def _flat(tree: Any, name: str = "") -> dict[str, Any]:
    """Dotted name -> value; lists and empty dicts are values."""
    if not isinstance(tree, dict) or not tree:
        return {name: tree}
    prefix = f"{name}." if name else ""
    return {k: v for key, entry in tree.items() for k, v in _flat(entry, prefix + key).items()}
