"""Parameters out of stored tensors, and stored tensors out of parameters, one at a time.

``plan`` checks a key table against the shapes of a parameter tree; ``region`` copies a rectangle
of a parameter (a device's shard, or all of it) out of the memory map, some rows of a stored tensor
at a time, and hands the pages back. So what a load needs besides its result is one such chunk.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import ml_dtypes
import numpy as np

from icl_jax.interop.safetensors import MappedTensors, listed
from icl_jax.interop.table import Index, Piece, Tensor

Path = tuple[str, ...]
Slices = tuple[slice, ...]

# Bytes of a stored tensor that are copied at a time: transposing is fastest inside the cache.
_CHUNK = 2**20
# XLA uses a host array where it is, rather than a copy of it, when it is aligned like this.
_ALIGNMENT = 64


@dataclass(frozen=True)
class Part:
    """A piece of a stored tensor, and where in its parameter it lies.

    Attributes:
      tensor: the stored tensor.
      piece: the piece of it.
      slices: the rectangle of the parameter that it fills, one slice with start and stop per axis.
      dropped: the axes of the parameter that the piece lacks (an expert's number).
    """

    tensor: Tensor
    piece: Piece
    slices: Slices
    dropped: tuple[int, ...]

    def view(self, stored: np.ndarray) -> np.ndarray:
        """The piece of ``stored``, with the rank of the parameter."""
        return np.expand_dims(self.piece.of(stored), self.dropped)


Plan = dict[Path, tuple[Part, ...]]


def plan(where: str, table: Iterable[Tensor], shapes: Mapping[Path, tuple[int, ...]]) -> Plan:
    """The parts of each parameter, checked: the table and the tree cover each other exactly.

    Args:
      where: whose table it is, for the message.
      table: the stored tensors.
      shapes: path -> shape of the parameters.

    Returns:
      path -> its parts, for every path of ``shapes``.

    Raises:
      ValueError: listing the pieces of no parameter or of another shape, the tensors and the
        parameters that are not covered.
    """
    parts: dict[Path, list[Part]] = {path: [] for path in shapes}
    wrong = []
    for tensor in table:
        covered = 0
        # Never written to: only shapes are looked at, so no memory is used.
        stored = np.empty(tensor.shape, np.bool_)
        for piece in tensor.pieces:
            name = f"{tensor.name} -> {'/'.join(piece.path)}"
            if piece.path not in shapes:
                wrong.append(f"{name}: the model has no such parameter")
                continue
            part = Part(tensor, piece, *_rectangle(piece.index, shapes[piece.path]))
            got, expected = part.view(stored).shape, _sizes(part.slices)
            if got != expected:
                wrong.append(f"{name}: the piece has shape {got}, its place {expected}")
            parts[piece.path].append(part)
            covered += math.prod(got)
        if covered != math.prod(tensor.shape):
            wrong.append(f"{tensor.name}: {covered} of {math.prod(tensor.shape)} entries are used")
    for path, shape in shapes.items():
        filled = sum(math.prod(_sizes(part.slices)) for part in parts[path])
        if filled != math.prod(shape):
            wrong.append(f"{'/'.join(path)}: {filled} of {math.prod(shape)} entries are filled")
    if wrong:
        raise ValueError(
            f"{where}: the key table and the model's parameters do not match: "
            f"{listed(wrong)}. Use the configuration that the parameters were made with."
        )
    return {path: tuple(found) for path, found in parts.items()}


def region(
    parts: tuple[Part, ...],
    names: Mapping[str, str],
    tensors: MappedTensors,
    slices: Slices,
    dtype: np.dtype[Any],
) -> np.ndarray:
    """A rectangle of a parameter, in new memory; nothing else of the parameter is read.

    Args:
      parts: of the parameter.
      names: name in the table -> name in the files.
      tensors: the files.
      slices: the rectangle; one slice with start and stop per axis.
      dtype: of the result.
    """
    out = _aligned(_sizes(slices), dtype)
    for part in parts:
        name = names[part.tensor.name]
        starts = [max(a.start, b.start) for a, b in zip(slices, part.slices, strict=True)]
        stops = [min(a.stop, b.stop) for a, b in zip(slices, part.slices, strict=True)]
        if all(start < stop for start, stop in zip(starts, stops, strict=True)):
            source = part.view(tensors[name])[_moved(starts, stops, part.slices)]
            target = out[_moved(starts, stops, slices)]
            offset = np.asarray(part.piece.offset, dtype)
            for chunk in _chunks(source):
                # Converted in the order of the file, and only then transposed: twice as fast.
                values = source[chunk].astype(dtype, order="K", copy=False)
                target[chunk] = values + offset if part.piece.offset else values
                tensors.release(name)
    return out


def stored(tensor: Tensor, params: Mapping[Path, Any], dtype: np.dtype[Any]) -> np.ndarray:
    """A stored tensor out of the parameters that it is made of.

    Args:
      tensor: of the table.
      params: path -> parameter.
      dtype: of the result; the arithmetic of an offset is in the dtype of the parameter.
    """
    out = np.empty(tensor.shape, dtype)
    for piece in tensor.pieces:
        values = np.asarray(params[piece.path])
        values = values if piece.index is None else values[piece.index]
        if piece.offset:
            values = values - np.asarray(piece.offset, values.dtype)
        piece.of(out)[...] = values
    return out


def is_floating(dtype: Any) -> bool:
    """Whether numbers of a dtype have a fraction; bfloat16 and float8 do."""
    if dtype is None:
        return False
    try:
        return ml_dtypes.finfo(dtype).bits > 0
    except ValueError:
        return False


def flatten(tree: Mapping[str, Any], path: Path = ()) -> dict[Path, Any]:
    """Path -> leaf of nested mappings."""
    leaves: dict[Path, Any] = {}
    for key, value in tree.items():
        inner = flatten(value, (*path, key)) if isinstance(value, Mapping) else None
        leaves.update({(*path, key): value} if inner is None else inner)
    return leaves


def unflatten(leaves: Mapping[Path, Any]) -> dict[str, Any]:
    """The nested dicts that ``flatten`` took apart."""
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = leaf
    return tree


def _rectangle(index: Index | None, shape: tuple[int, ...]) -> tuple[Slices, tuple[int, ...]]:
    """A basic index as one slice per axis, and the axes that it drops."""
    given: tuple[int | slice | EllipsisType, ...]
    given = () if index is None else index if isinstance(index, tuple) else (index,)
    place = given.index(...) if ... in given else len(given)
    rest = len(shape) - sum(part is not ... for part in given)
    given = (*given[:place], *[slice(None)] * rest, *given[place + 1 :])
    slices, dropped = [], []
    for axis, (part, size) in enumerate(zip(given, shape, strict=True)):
        if isinstance(part, slice):
            start, stop, _ = part.indices(size)
            slices.append(slice(start, stop))
        else:
            number = int(part)  # type: ignore[arg-type]  # No Ellipsis is left.
            slices.append(slice(number, number + 1))
            dropped.append(axis)
    return tuple(slices), tuple(dropped)


def _sizes(slices: Slices) -> tuple[int, ...]:
    return tuple(part.stop - part.start for part in slices)


def _moved(starts: list[int], stops: list[int], origin: Slices) -> Slices:
    """The rectangle from ``starts`` to ``stops``, counted from the corner of ``origin``."""
    return tuple(
        slice(start - place.start, stop - place.start)
        for start, stop, place in zip(starts, stops, origin, strict=True)
    )


def _chunks(view: np.ndarray) -> Iterator[Slices]:
    """Parts of a view that are near one another in the file."""
    if not view.ndim:
        yield ()
        return
    axis = int(np.argmax(np.abs(view.strides)))
    size = max(1, _CHUNK // max(1, view.nbytes // view.shape[axis]))
    for start in range(0, view.shape[axis], size):
        stop = min(start + size, view.shape[axis])
        yield (*[slice(None)] * axis, slice(start, stop))


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Uninitialised memory that a device of the host can use without copying it."""
    size = math.prod(shape) * dtype.itemsize
    buffer = np.empty(size + _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)
