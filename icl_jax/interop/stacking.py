"""From the layers of a key table to the stacked parameters that a model keeps.

A family's table says where layer l is stored, ``blocks_l/...``: the way a checkpoint counts. A
model keeps equal layers on top of each other, ``layers_S_B/...`` with a leading axis R, so a piece
of layer l is row r of one of these.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from icl_jax.blocks.functional import layer_places
from icl_jax.interop.table import Index, Piece, Tensor

_PREFIX = "blocks_"


def stacked_table(table: Iterable[Tensor], model: Any) -> tuple[Tensor, ...]:
    """The same stored tensors, their pieces in the stacked parameters of ``model``."""
    places = layer_places(model.blocks)

    def moved(piece: Piece) -> Piece:
        first, *rest = piece.path
        layer = first.removeprefix(_PREFIX)
        if layer == first or not layer.isdecimal() or int(layer) >= len(places):
            return piece
        name, repeat = places[int(layer)]
        return dataclasses.replace(
            piece, path=(name, *rest), index=(repeat, *_as_tuple(piece.index))
        )

    return tuple(
        dataclasses.replace(tensor, pieces=tuple(map(moved, tensor.pieces))) for tensor in table
    )


def _as_tuple(index: Index | None) -> tuple[Any, ...]:
    if index is None:
        return ()
    return index if isinstance(index, tuple) else (index,)
