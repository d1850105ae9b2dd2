"""safetensors files as numpy views of a memory map, and written one tensor at a time.

A file is eight bytes (the length of its header), the header (JSON: name -> dtype, shape, offsets),
and the tensors. The safetensors library validates a file; the tensors are then views of the map,
so bfloat16 and float8 need no other framework and nothing is read before it is asked for. The
pages of a tensor that is done with are handed back (``release``): peak memory stays near what the
caller makes of the tensors. Nothing is ever unpickled.
"""

import json
import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from icl_jax.interop.json_files import read_json
from icl_jax.interop.options import Stored

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

#: The names of dtypes in a header. A tensor is little-endian whatever the machine is.
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

_UNSAFE = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies.

    Attributes:
      file: the safetensors file.
      dtype: of the tensor; None for one that numpy has no dtype for.
      shape: of the tensor.
      start: the byte of the file where it begins.
      stop: the byte after its last.
    """

    file: Path
    dtype: np.dtype[Any] | None
    shape: tuple[int, ...]
    start: int
    stop: int


class MappedTensors(Mapping[str, np.ndarray]):
    """The tensors of a checkpoint: name -> read-only numpy view of a memory map.

    All headers are read and validated at once; the tensors when they are used.

    Attributes:
      folder: of the checkpoint.
      entries: name -> where the tensor lies, its dtype and its shape.
      sizes: how many there are, and how large.
    """

    def __init__(self, folder: str | Path) -> None:
        """Maps ``model.safetensors``, or the shards that ``model.safetensors.index.json`` lists.

        Args:
          folder: of the checkpoint.

        Raises:
          FileNotFoundError: no safetensors file, or a shard is missing.
          ValueError: a file is truncated or damaged, a tensor is in two shards, or a tensor of the
            index is in none.
          ImportError: safetensors is not installed.
        """
        self.folder = Path(folder)
        self.entries: dict[str, Entry] = {}
        for file in _files(self.folder):
            entries = read_header(file)
            twice = sorted(entries.keys() & self.entries.keys())
            if twice:
                raise ValueError(
                    f"{file}: these tensors are in {self.entries[twice[0]].file.name} too: "
                    f"{listed(twice)}. Keep the shards of one checkpoint in a folder."
                )
            self.entries.update(entries)
        if not (self.folder / SINGLE).is_file():
            absent = sorted(_weight_map(self.folder).keys() - self.entries.keys())
            if absent:
                raise ValueError(
                    f"{self.folder / INDEX} lists tensors that no shard has: {listed(absent)}. "
                    "Fetch the shards and the index of one version again."
                )
        shapes = [entry.shape for entry in self.entries.values()]
        self.sizes = Stored(
            tensors=len(shapes),
            longest=max((max(shape, default=1) for shape in shapes), default=1),
            numbers=sum(math.prod(shape) for shape in shapes),
        )
        self._maps = {file: _map(file) for file in {e.file for e in self.entries.values()}}

    def __getitem__(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        if entry.dtype is None:
            raise ValueError(
                f"{entry.file}: tensor {name} has a dtype that is not supported; supported: "
                f"{', '.join(DTYPES)}."
            )
        if entry.start == entry.stop:
            return np.empty(entry.shape, entry.dtype)
        array = np.frombuffer(
            self._maps[entry.file], entry.dtype, math.prod(entry.shape), entry.start
        )
        return array.reshape(entry.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def release(self, name: str) -> None:
        """Tells the kernel that the pages of a tensor are not needed now; reading maps them again.

        Views of the tensor stay valid. A hint: does nothing where the platform has no madvise.
        """
        entry = self.entries[name]
        if hasattr(mmap, "MADV_DONTNEED") and entry.start < entry.stop:
            start = entry.start - entry.start % mmap.PAGESIZE
            self._maps[entry.file].madvise(mmap.MADV_DONTNEED, start, entry.stop - start)


def read_header(file: Path) -> dict[str, Entry]:
    """Validates a safetensors file and reads where its tensors lie.

    Raises:
      ValueError: truncated, damaged, or with a tensor that is named twice.
      ImportError: safetensors is not installed.
    """
    try:
        import safetensors
    except ImportError as error:
        raise missing_package("safetensors") from error
    try:
        with safetensors.safe_open(file, framework="numpy"):
            pass
    except (safetensors.SafetensorError, ValueError) as error:
        raise ValueError(
            f"{file}: truncated or damaged ({error}); it has {file.stat().st_size} bytes. Fetch it "
            "again, and where it is a pointer of git LFS, run git lfs pull."
        ) from error
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length), object_pairs_hook=_without_repeats(file))
    entries = {}
    for name, fields in header.items():
        if name != "__metadata__":
            start, stop = (8 + length + offset for offset in fields["data_offsets"])
            dtype = DTYPES.get(fields["dtype"])
            entries[name] = Entry(file, dtype, tuple(fields["shape"]), start, stop)
    return entries


def write_tensors(
    file: Path,
    specs: Mapping[str, tuple[Any, tuple[int, ...]]],
    make: Callable[[str], np.ndarray],
    *,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes a safetensors file, one tensor at a time.

    Args:
      file: to write; one that is there is replaced.
      specs: name -> (dtype, shape) of the tensors.
      make: name -> the tensor. Called once each, when it is that tensor's turn.
      metadata: of the header; ``{"format": "pt"}``, which transformers asks for, by default.

    Raises:
      ValueError: a dtype that the format does not know, or ``make`` returns another shape or dtype.
    """
    # As the safetensors library does it: the widest dtypes first, so that all are aligned.
    names = sorted(specs, key=lambda name: (-np.dtype(specs[name][0]).itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    start = 0
    for name in names:
        dtype, shape = np.dtype(specs[name][0]), tuple(specs[name][1])
        if dtype not in _NAMES:
            raise ValueError(
                f"write_tensors: tensor {name} has dtype {dtype}, which safetensors cannot hold; "
                f"supported: {', '.join(str(known) for known in _NAMES)}."
            )
        stop = start + dtype.itemsize * math.prod(shape)
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            dtype, shape = np.dtype(specs[name][0]), tuple(specs[name][1])
            array = make(name)
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"write_tensors: tensor {name} must be {dtype} {shape}, got {array.dtype} "
                    f"{array.shape}."
                )
            # reshape: numpy makes a scalar one entry long only this way; view: the buffer
            # protocol does not know the small floats.
            stream.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def missing_package(name: str) -> ImportError:
    """The error for an optional package that is not installed."""
    return ImportError(
        f"{name} is not installed. Hugging Face checkpoints need the extra: "
        'pip install "icl_jax[huggingface]".'
    )


def listed(names: Any, most: int = 20) -> str:
    """The first names, one after another, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(name) for name in names[:most]) + more


CONVERT = (
    "Such files can run code when they are opened, so nothing is unpickled here. Convert once, "
    "where you trust the file: "
    "transformers.AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)."
)


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a checkpoint, all of them there."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder.")
    if (folder / SINGLE).is_file():
        return [folder / SINGLE]
    if not (folder / INDEX).is_file():
        unsafe = sorted(path.name for pattern in _UNSAFE for path in folder.glob(pattern))
        if unsafe:
            raise FileNotFoundError(f"{folder} has {listed(unsafe)} but no {SINGLE}. {CONVERT}")
        others = sorted(path.name for path in folder.glob("*.safetensors"))
        found = f" It has {listed(others)}." if others else ""
        raise FileNotFoundError(
            f"{folder} has neither {SINGLE} nor {INDEX}.{found} If all there is are files such as "
            f"pytorch_model.bin (not fetched from the hub): {CONVERT}"
        )
    files = [folder / shard for shard in dict.fromkeys(_weight_map(folder).values())]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise FileNotFoundError(
            f"{folder}: {len(missing)} of {len(files)} shards that {INDEX} lists are missing: "
            f"{listed(missing)}. Fetch them again."
        )
    return files


def _weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> shard, as the index has it; shards are files of the folder itself."""
    index = folder / INDEX
    found = read_json(index).get("weight_map")
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{index}: has no weight_map (tensor name -> file). Fetch it again.")
    for shard in found.values():
        if not isinstance(shard, str) or shard != Path(shard).name:
            raise ValueError(f"{index}: shard {shard!r} is not the name of a file in the folder.")
    return found


def _map(file: Path) -> mmap.mmap:
    with file.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)


def _without_repeats(file: Path) -> Callable[[list[tuple[str, Any]]], dict[str, Any]]:
    """A hook for JSON objects that refuses a key that comes twice."""

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = sorted({name for name in names if names.count(name) > 1})
            raise ValueError(f"{file}: the header names these twice: {listed(twice)}.")
        return found

    return hook
