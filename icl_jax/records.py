"""One folder per run: what was asked for, with which versions, and what came out.

    config.json      the experiment's name and its complete configuration
    provenance.json  versions, device, and what the caller adds (a commit, say)
    *.json           summaries: plain JSON, finite numbers only
    *.npz            arrays: what goes in comes out, dtype included

Metrics are the business of ``training.metrics``. Every file is replaced in one step, so a killed
run leaves whole files only, and a stage whose file is there (``run.has("convergence.npz")``) is a
stage that is done.
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import math
import os
import platform
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np

CONFIG = "config.json"
PROVENANCE = "provenance.json"
_PARTIAL = ".partial"  # Suffix of a file that is still being written.
_DTYPES = "__dtypes__"  # Entry of an .npz file: the dtypes that numpy itself cannot store.
_MOST_CHANGES = 3  # Differences of a configuration that an error lists.
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "icl_jax")


class WorkdirError(ValueError):
    """A folder that cannot hold this run; the message says what to do."""


@dataclass(frozen=True)
class Run:
    """The folder of one run. Names are paths inside it, such as ``"descent/losses.npz"``.

    Attributes:
      workdir: the folder.
    """

    workdir: Path

    def path(self, name: str) -> Path:
        """The path of ``name``; ValueError where it would lie outside the folder."""
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise ValueError(f"Run.path: {name!r} is not a path inside the run folder.")
        return self.workdir / relative

    def has(self, name: str) -> bool:
        """Whether ``name`` was written to the end: a finished stage can be skipped."""
        return self.path(name).is_file()

    def save_json(self, name: str, value: Any) -> None:
        """Writes ``value`` as ``plain`` sees it. Raises as ``plain`` does."""
        text = json.dumps(plain(value), indent=2) + "\n"
        with atomic_file(self.path(name)) as file:
            file.write(text.encode())

    def load_json(self, name: str) -> Any:
        """Reads what ``save_json`` wrote; tuples and arrays come back as lists."""
        return json.loads(self.path(name).read_text())

    def save_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes named arrays (numpy, jax, bfloat16 and float8 too) as one .npz file.

        Raises:
          TypeError: an entry is no array of numbers, truth values or text; a PRNG key, say.
        """
        with atomic_file(self.path(name)) as file:
            _write_npz(file, arrays)

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Reads what ``save_arrays`` wrote: the same names, shapes, dtypes and bits."""
        with np.load(self.path(name), allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
        dtypes = json.loads(str(arrays.pop(_DTYPES)))
        return {
            key: array.view(jnp.dtype(dtypes[key])) if key in dtypes else array
            for key, array in arrays.items()
        }


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
        file, cannot be written, or holds something that is no run.
    """
    run = Run(Path(workdir))
    asked = {"experiment": experiment, "config": plain(config)}
    try:
        _make_folder(run)
        if run.has(CONFIG):
            _check_same_run(run, asked, {f"config.{name}" for name in free})
        environment = {**_environment(), **plain(dict(provenance or {}))}
        run.save_json(PROVENANCE, _with_earlier(run, environment))
        if not run.has(CONFIG) or free:
            run.save_json(CONFIG, asked)  # Last: it is what makes the folder a run folder.
    except OSError as error:
        raise WorkdirError(
            f"workdir {run.workdir} cannot be written ({error.strerror}). Choose another --workdir."
        ) from error
    return run


def plain(value: Any, name: str = "") -> Any:
    """``value`` as what JSON knows: dataclasses and mappings to dicts, arrays to nested lists.

    Args:
      value: dataclasses, mappings with text keys, sequences, numpy and jax scalars and arrays,
        paths, text, numbers, truth values, None.
      name: where the value stands, for the messages.

    Raises:
      ValueError: a number is not finite; the message names it, as in ``descent.losses[3]``.
      TypeError: a value or a key that JSON has no word for.
    """
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        value = np.asarray(value).tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(
                f"{name or 'the value'} is {value}, which JSON cannot hold: leave it out, write "
                "None, or save it with save_arrays."
            )
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{name or 'the value'} has the key {key!r}; JSON keys are text.")
        return {key: plain(entry, f"{name}.{key}" if name else key) for key, entry in value.items()}
    if isinstance(value, Sequence):
        return [plain(entry, f"{name}[{index}]") for index, entry in enumerate(value)]
    raise TypeError(f"{name or 'the value'} is a {type(value).__name__}, which JSON cannot hold.")


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens ``path`` for writing bytes; it appears, whole, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write_npz(file: BinaryIO, arrays: Mapping[str, Any]) -> None:
    # Not np.savez: it cannot store bfloat16, nor an array called "file".
    dtypes = {}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:

        def add(name: str, array: np.ndarray) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)

        for name, value in arrays.items():
            if name == _DTYPES:
                raise ValueError(f"save_arrays: {_DTYPES!r} is taken; choose another name.")
            array = _numpy(name, value)
            if array.dtype.isbuiltin == 2:  # Registered by ml_dtypes: stored as its bits.
                dtypes[name] = array.dtype.name
                array = array.view(f"u{array.dtype.itemsize}")
            add(name, array)
        add(_DTYPES, np.asarray(json.dumps(dtypes)))
    file.write(buffer.getbuffer())


def _numpy(name: str, value: Any) -> np.ndarray:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        raise TypeError(f"save_arrays: {name} is a PRNG key; save jax.random.key_data({name}).")
    array = np.asarray(value)
    if array.dtype == object:
        raise TypeError(f"save_arrays: {name} is no array ({type(value).__name__}).")
    return array


def _make_folder(run: Run) -> None:
    if run.workdir.exists() and not run.workdir.is_dir():
        raise WorkdirError(f"workdir {run.workdir} is a file. Choose another --workdir.")
    run.workdir.mkdir(parents=True, exist_ok=True)
    ours = {CONFIG, PROVENANCE}  # A run killed while it opened leaves no more than these.
    ours |= {f".{name}{_PARTIAL}" for name in ours}
    strangers = sorted(path.name for path in run.workdir.iterdir() if path.name not in ours)
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


def _environment() -> dict[str, Any]:
    devices = jax.devices()
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    device = {"kind": devices[0].device_kind, "platform": devices[0].platform}
    return {"versions": versions, "device": {**device, "count": len(devices)}}


def _with_earlier(run: Run, environment: dict[str, Any]) -> dict[str, Any]:
    """The environment, and under ``earlier`` the other ones in which the run was opened before."""
    if not run.has(PROVENANCE):
        return {**environment, "earlier": []}
    last = run.load_json(PROVENANCE)
    earlier = last.pop("earlier")
    return {**environment, "earlier": earlier if last == environment else [*earlier, last]}
