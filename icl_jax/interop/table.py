"""A key table: where each stored tensor of a checkpoint goes in the parameter tree.

A stored tensor has one or more pieces; a piece is a numpy *view* of the stored tensor that has the
axes of the parameter it stands for. Views are writable, so one table serves both directions:

    loading    parameter[index] = view(stored) + offset
    saving     view(stored)[...] = parameter[index] - offset

Orientation: ``torch.nn.Linear`` stores (out, in) and ``Conv1D`` (GPT-2) stores (in, out), while
our kernels are (in, out), (D, A, F) into the heads and (A, F, D) out of them. Fused tensors differ
in how heads are laid out along their one axis of outputs; the makers below name each layout.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import EllipsisType

import numpy as np

View = Callable[[np.ndarray], np.ndarray]

#: A basic numpy index into a parameter: an expert, or a range of heads.
Index = int | slice | tuple[int | slice | EllipsisType, ...]


@dataclass(frozen=True)
class Piece:
    """One parameter, or a part of one, inside a stored tensor.

    Attributes:
      path: of the parameter in the tree, ``("blocks_0", "mlp", "gate", "kernel")`` of layer 0 (see
        ``stacking``).
      view: stored tensor -> the parameter (or its part), as a numpy view; never a copy.
      index: the part of the parameter that this is, such as an expert's number; None for all.
      offset: what is added after the view (a family that stores a gain minus one has 1.0).
    """

    path: tuple[str, ...]
    view: View
    index: Index | None = None
    offset: float = 0.0

    def of(self, stored: np.ndarray) -> np.ndarray:
        """``view(stored)``, checked to share the memory of ``stored``.

        Raises:
          ValueError: the view copies, so that nothing could be saved through it.
        """
        view = self.view(stored)
        if stored.size and not np.may_share_memory(view, stored):
            raise ValueError(
                f"Piece {'/'.join(self.path)}: the view of a tensor of shape {stored.shape} is a "
                "copy. Give one piece per part that numpy can address with strides, with an index."
            )
        return view


@dataclass(frozen=True)
class Tensor:
    """A stored tensor.

    Attributes:
      name: in the safetensors file.
      shape: as stored.
      pieces: the parameters in it; together they cover the tensor.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]


def tensor(
    name: str,
    shape: tuple[int, ...],
    path: str,
    view: View | None = None,
    *,
    index: Index | None = None,
    offset: float = 0.0,
) -> Tensor:
    """A stored tensor of one piece; ``path`` is written with slashes, ``view`` is ``identity``."""
    return Tensor(name, shape, (piece(path, view, index=index, offset=offset),))


def piece(
    path: str, view: View | None = None, *, index: Index | None = None, offset: float = 0.0
) -> Piece:
    """A piece whose path is written with slashes: ``piece("blocks_0/mlp/up/kernel", linear)``."""
    return Piece(tuple(path.split("/")), view or identity, index, offset)


def identity(stored: np.ndarray) -> np.ndarray:
    """The stored tensor as it is: norms, embeddings, biases, Conv1D kernels."""
    return stored


def linear(stored_OI: np.ndarray) -> np.ndarray:
    """``nn.Linear`` (out, in) -> kernel (in, out); a router (E, D) -> (D, E)."""
    return stored_OI.swapaxes(-1, -2)


def heads_in(num_heads: int, features: int) -> View:
    """``nn.Linear`` (A*F, D) -> (D, A, F); a bias (A*F,) -> (A, F)."""
    return lambda stored: _heads_last(_split(stored, num_heads, features))


def head_bias(num_heads: int, features: int) -> View:
    """(A*F,) -> (A, F): biases, and gains of a norm over the features of all heads."""
    return lambda stored: _split(stored, num_heads, features)


def heads_out(num_heads: int, features: int) -> View:
    """``nn.Linear`` (D, A*F) -> (A, F, D)."""
    return lambda stored: stored.reshape(-1, num_heads, features).transpose(1, 2, 0)


def conv1d_heads(num_heads: int, features: int, part: int = 0, parts: int = 1) -> View:
    """``Conv1D`` (D, parts*A*F) -> part of it, (D, A, F); a bias (parts*A*F,) -> (A, F).

    GPT-2's ``c_attn`` has three parts, one after the other: queries, keys, values.
    """

    def view(stored: np.ndarray) -> np.ndarray:
        heads = stored.reshape(*stored.shape[:-1], parts, num_heads, features)
        return heads[..., part, :, :]

    return view


def conv1d_out(num_heads: int, features: int) -> View:
    """``Conv1D`` (A*F, D) -> (A, F, D)."""
    return lambda stored: _split(stored, num_heads, features)


def packed_heads(counts: tuple[int, ...], features: int, part: int) -> View:
    """``nn.Linear`` (sum(counts)*F, D) -> (D, counts[part], F); a bias -> (counts[part], F).

    Parts one after the other: ``(A, G, G)`` for fused queries, keys and values, ``(A, 1, 1)`` for
    the multi-query layout.
    """
    start = sum(counts[:part])

    def view(stored: np.ndarray) -> np.ndarray:
        heads = _split(stored, sum(counts), features)
        return _heads_last(heads[start : start + counts[part]])

    return view


def interleaved_heads(num_heads: int, features: int, part: int, parts: int = 3) -> View:
    """``nn.Linear`` (A*parts*F, D) -> (D, A, F); a bias (A*parts*F,) -> (A, F).

    Each head's query, key and value follow one another (GPT-NeoX, Falcon without multi-query).
    """

    def view(stored: np.ndarray) -> np.ndarray:
        heads = stored.reshape(num_heads, parts, features, *stored.shape[1:])
        return _heads_last(heads[:, part])

    return view


def grouped_pieces(
    query: str, key: str, value: str, *, num_heads: int, num_groups: int, features: int
) -> tuple[Piece, ...]:
    """The pieces of a fused ``nn.Linear`` (G*(A/G + 2)*F, D), or of its bias.

    Per group: its A/G queries, then its key, then its value (Falcon's newer decoder). No strides
    reach the queries of all groups at once, so there is one piece per group.

    Args:
      query: path of the queries' kernel (D, A, F) or bias (A, F), written with slashes.
      key: path of the keys' (D, G, F) or (G, F).
      value: path of the values'.
      num_heads: A.
      num_groups: G.
      features: F.
    """
    per_group = num_heads // num_groups

    def groups(stored: np.ndarray) -> np.ndarray:
        return stored.reshape(num_groups, per_group + 2, features, *stored.shape[1:])

    def queries(group: int) -> Piece:
        heads = slice(group * per_group, (group + 1) * per_group)
        return piece(
            query,
            lambda stored: _heads_last(groups(stored)[group, :per_group]),
            index=(..., heads, slice(None)),
        )

    return (
        *(queries(group) for group in range(num_groups)),
        piece(key, lambda stored: _heads_last(groups(stored)[:, per_group])),
        piece(value, lambda stored: _heads_last(groups(stored)[:, per_group + 1])),
    )


def rows(start: int, stop: int, then: View = identity) -> View:
    """``then`` of the rows ``start`` to ``stop`` of a fused tensor (gate and up in one, say)."""
    return lambda stored: then(stored[start:stop])


def columns(start: int, stop: int, then: View = identity) -> View:
    """``then`` of the entries ``start`` to ``stop`` along the last axis of a fused tensor."""
    return lambda stored: then(stored[..., start:stop])


def _split(stored: np.ndarray, num_heads: int, features: int) -> np.ndarray:
    """(A*F, ...) -> (A, F, ...)."""
    return stored.reshape(num_heads, features, *stored.shape[1:])


def _heads_last(heads: np.ndarray) -> np.ndarray:
    """(A, F, D) -> (D, A, F); (A, F) stays."""
    return np.moveaxis(heads, (0, 1), (-2, -1))
