"""One folder per run: what was asked for, with which versions, and what came out.

    config.json      the experiment's name and its complete configuration
    provenance.json  versions, device, and what the caller adds (a commit, say)
    *.json           summaries: plain JSON, finite numbers only
    *.npz            arrays: what goes in comes out, dtype included

Metrics are the business of ``training.metrics``. Every file is replaced in one step, so a killed
run leaves whole files only, and a stage whose file is there (``run.has("convergence.npz")``) is a
stage that is done. While a process has a run open, a ``.lock`` keeps other processes out.
"""

import contextlib
import dataclasses
import errno
import fcntl
import importlib.metadata
import io
import json
import math
import os
import platform
import weakref
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

CONFIG = "config.json"
PROVENANCE = "provenance.json"
LOCK = ".lock"
#: How the logs of several processes begin, which are there before the run is.
PROCESS_LOG = "process-"
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
      lock: what keeps other processes out as long as it exists; None in a run that only reads.
    """

    workdir: Path
    lock: "FolderLock | None" = field(default=None, compare=False, repr=False)

    def path(self, name: str) -> Path:
        """The path of ``name``; ValueError where it would lie outside the folder."""
        relative = Path(name)
        if relative.is_absolute() or ".." in relative.parts or not relative.parts:
            raise ValueError(f"Run.path: {name!r} is not a path inside the run folder.")
        return self.workdir / relative

    def has(self, name: str) -> bool:
        """Whether ``name`` was written to the end: a finished stage can be skipped.

        Processes of one program agree: what the first one sees, all see.
        """
        return bool(_of_the_first(self.path(name).is_file()))

    def save_json(self, name: str, value: Any) -> None:
        """Writes ``value`` as ``plain`` sees it. Raises as ``plain`` does."""
        text = json.dumps(plain(value), indent=2) + "\n"
        with atomic_file(self.path(name)) as file:
            file.write(text.encode())
        _meet()

    def load_json(self, name: str) -> Any:
        """Reads what ``save_json`` wrote; tuples and arrays come back as lists.

        Raises:
          WorkdirError: the file holds no JSON.
        """
        path = self.path(name)
        try:
            return json.loads(path.read_text())
        except (ValueError, RecursionError) as error:  # No JSON, or no text at all.
            raise damaged(path, error) from error

    def save_arrays(self, name: str, arrays: Mapping[str, Any]) -> None:
        """Writes named arrays (numpy, jax, bfloat16 and float8 too) as one .npz file.

        Arrays that lie on several processes are gathered from all of them, so all have to ask.

        Raises:
          TypeError: an entry is no array of numbers, truth values or text; a PRNG key, say.
        """
        whole = {key: _gathered(value) for key, value in arrays.items()}
        with atomic_file(self.path(name)) as file:
            _write_npz(file, whole)
        _meet()

    def load_arrays(self, name: str) -> dict[str, np.ndarray]:
        """Reads what ``save_arrays`` wrote: the same names, shapes, dtypes and bits.

        Raises:
          WorkdirError: the file is not what was written: cut off, or a bit of it flipped (every
            array has a checksum).
        """
        path = self.path(name)
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
            dtypes = json.loads(str(arrays.pop(_DTYPES)))
            return {
                key: array.view(jnp.dtype(dtypes[key])) if key in dtypes else array
                for key, array in arrays.items()
            }
        except (FileNotFoundError, PermissionError):
            raise
        except Exception as error:  # zipfile, zlib and numpy have a dozen words for it.
            raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> WorkdirError:
    """The error of a file that a run wrote and that does not hold that any more."""
    reason = " ".join(str(error).split()) or type(error).__name__
    return WorkdirError(
        f"{path} is damaged ({reason[:200]}). Delete it: the same command makes it again."
    )


def unwritable(path: Path, error: OSError) -> WorkdirError:
    """The error of a file or folder that cannot be written, a full disk among the reasons."""
    advice = "Choose another --workdir."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "Free some space there: the same command goes on."
    return WorkdirError(f"{path} cannot be written ({error.strerror or error}). {advice}")


class FolderLock:
    """Keeps other processes out of a folder until it is released or its process ends.

    The kernel holds it, so a killed process leaves no lock: only the file, which the next one takes
    over. (On a file system without locks, the file's process is asked for instead, and believed to
    be alive on another host.)
    """

    def __init__(self, folder: Path) -> None:
        """Locks ``folder``.

        Raises:
          WorkdirError: another process has it; the message names process and host.
          OSError: the folder cannot be written.
        """
        self._path = folder / LOCK
        self._file = self._acquire()
        self._release = weakref.finalize(self, _unlock, self._path, self._file)

    def release(self) -> None:
        """Gives the folder free; what runs out of scope does by itself."""
        self._release()

    def _acquire(self) -> int:
        while True:
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _owner(file)
                os.close(file)
                raise self._in_use(owner) from None
            except OSError:  # No locks here.
                owner = _owner(file)
                if owner is not None and _is_alive(*owner):
                    os.close(file)
                    raise self._in_use(owner) from None
            # Whoever had it before may have deleted the file that was opened here.
            try:
                current = os.stat(self._path)
            except FileNotFoundError:
                os.close(file)
                continue
            if current.st_ino != os.fstat(file).st_ino:
                os.close(file)
                continue
            os.ftruncate(file, 0)
            os.pwrite(file, f"{os.getpid()} {platform.node()}\n".encode(), 0)
            return file

    def _in_use(self, owner: tuple[int, str] | None) -> WorkdirError:
        who = f"process {owner[0]} on {owner[1]}" if owner else "another process"
        return WorkdirError(
            f"workdir {self._path.parent} is in use by {who}. Wait until it has ended, or choose "
            f"another --workdir. (If there is no such process, delete {self._path}.)"
        )


#: The locks of this process by folder: it may open a run as often as it likes.
_LOCKS: weakref.WeakValueDictionary[Path, FolderLock] = weakref.WeakValueDictionary()


def lock_folder(folder: Path) -> FolderLock | None:
    """The lock of ``folder``, the same one each time in one process.

    Of the processes of one distributed program, the first holds it for all; the others get None.

    Raises:
      WorkdirError: another process has it, or the folder cannot be written.
    """
    if jax.process_index() != 0:
        return None
    where = folder.resolve()
    lock = _LOCKS.get(where)
    if lock is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FolderLock(where)
        except OSError as error:
            raise unwritable(folder, error) from error
        _LOCKS[where] = lock
    return lock


def _unlock(path: Path, file: int) -> None:
    with contextlib.suppress(OSError):
        # A forked child that ends must not give free what its parent holds.
        if (owner := _owner(file)) is not None and owner[0] == os.getpid():
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        os.close(file)


def _owner(file: int) -> tuple[int, str] | None:
    """Process and host that a lock file names; None where it names none."""
    process, _, host = os.pread(file, 1000, 0).decode(errors="replace").strip().partition(" ")
    return (int(process), host) if process.isdecimal() and host else None


def _is_alive(process: int, host: str) -> bool:
    if host != platform.node():
        return True  # Nobody to ask.
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


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
        file, cannot be written, is in use by another process, or holds something that is no run.
    """
    run = Run(Path(workdir))
    asked = {"experiment": experiment, "config": plain(config)}
    try:
        _make_folder(run)
        if run.has(CONFIG):
            _check_same_run(run, asked, {f"config.{name}" for name in free})
        run = dataclasses.replace(run, lock=lock_folder(run.workdir))
        if run.has(CONFIG):  # Another process may have come in between.
            _check_same_run(run, asked, {f"config.{name}" for name in free})
        environment = {**_environment(), **plain(dict(provenance or {}))}
        run.save_json(PROVENANCE, _with_earlier(run, environment))
        if not run.has(CONFIG) or free:
            run.save_json(CONFIG, asked)  # Last: it is what makes the folder a run folder.
    except OSError as error:
        raise unwritable(run.workdir, error) from error
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
        value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
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
    """Opens ``path`` for writing bytes; it appears, whole, when the block ends without an error.

    Of the processes of one program only the first writes; what the others write is dropped.

    Raises:
      WorkdirError: it cannot be written: no space left, no permission. What was there stays.
    """
    # Asked in this order, a program of one process is not made to look for devices.
    if jax.distributed.is_initialized() and jax.process_index() != 0:
        yield io.BytesIO()
        return
    partial = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise unwritable(path, error) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _gathered(value: Any) -> Any:
    """An array with all of its parts, which may lie on other processes."""
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        if not value.is_fully_replicated:
            return multihost_utils.process_allgather(value, tiled=True)
    return value


def _meet() -> None:
    """Returns when every process of this program is here: what one has written, all can read."""
    _of_the_first(True)


def _of_the_first(answer: bool) -> bool:
    """The first process' answer, in all of them."""
    if not jax.distributed.is_initialized():
        return answer
    said = answer and jax.process_index() == 0
    # On a mesh of its own, whatever mesh is set: one number of every device.
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("all",))
    with jax.set_mesh(mesh):
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("all"))
        told = jax.make_array_from_callback(
            (mesh.size,), sharding, lambda _: np.full(1, said, np.int32)
        )
        return bool(np.asarray(jax.jit(jnp.max)(told).addressable_data(0)) > 0)


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
    ours |= {LOCK, *(f".{name}{_PARTIAL}" for name in ours)}
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
    if not isinstance(last, dict) or not isinstance(last.get("earlier"), list):
        raise damaged(run.path(PROVENANCE), ValueError("it is no provenance"))
    earlier = last.pop("earlier")
    return {**environment, "earlier": earlier if last == environment else [*earlier, last]}
