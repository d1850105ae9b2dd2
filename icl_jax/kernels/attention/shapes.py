"""Who sees what: the record that says it, the mask that it means, and the checks of arguments."""

from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array

_STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sees:
    """Which of T columns (keys, values) each of M rows (queries) sees.

    A column is visible if it is present, not later than the row (``causal``), and within the
    window; and a row sees the column in its own slot anyway (``itself``). Slots are places in the
    order of the sequence, positions are what rotary embeddings and windows count in: they differ
    where a prompt is padded on its left.

    Slots given as NumPy arrays are known when a function is traced, and whatever nobody sees is
    then not computed; so are those left out. Slots that are JAX arrays are masked only.

    Attributes:
      row_slots_M: (M,) int32; ``0..M-1`` when left out. ``np.arange(M) - 1`` with ``itself=False``
        is a probe after each prefix, the empty one included: row i sees the columns before i.
      column_slots_T: (T,) int32; ``0..T-1`` when left out.
      row_positions_M: (M,) int32 position ids; the slots when left out.
      column_positions_T: (T,) int32; the slots when left out.
      present_T: (T,) bool, False for what contributes nothing (padding, free slots of a memory);
        everything is present when left out.
      reach: (), int32, a window that is data, for a scan over layers whose windows differ.
      causal: a column is visible if its slot is not above the row's.
      window: a column is visible if fewer than so many position ids away.
      itself: a row sees the column in its own slot, present and near or not. So the output of
        padding stays finite.
    """

    row_slots_M: Array | np.ndarray | None = None
    column_slots_T: Array | np.ndarray | None = None
    row_positions_M: Array | np.ndarray | None = None
    column_positions_T: Array | np.ndarray | None = None
    present_T: Array | np.ndarray | None = None
    reach: Array | None = None
    causal: bool = field(default=True, metadata=_STATIC)
    window: int | None = field(default=None, metadata=_STATIC)
    itself: bool = field(default=True, metadata=_STATIC)


def filled(sees: Sees, num_rows: int, num_columns: int) -> Sees:
    """The same, with slots and positions in the place of what was left out (NumPy arrays)."""
    rows_M = sees.row_slots_M
    columns_T = sees.column_slots_T
    rows_M = np.arange(num_rows, dtype=np.int32) if rows_M is None else rows_M
    columns_T = np.arange(num_columns, dtype=np.int32) if columns_T is None else columns_T
    return replace(
        sees,
        row_slots_M=rows_M,
        column_slots_T=columns_T,
        row_positions_M=rows_M if sees.row_positions_M is None else sees.row_positions_M,
        column_positions_T=(
            columns_T if sees.column_positions_T is None else sees.column_positions_T
        ),
    )


def visible(sees: Sees) -> Array:
    """The mask (M, T) of a ``filled`` record."""
    rows_M1 = jnp.asarray(sees.row_slots_M)[:, None]
    columns_1T = jnp.asarray(sees.column_slots_T)[None, :]
    sees_MT = jnp.ones((rows_M1.shape[0], columns_1T.shape[1]), bool)
    if sees.causal:
        sees_MT &= columns_1T <= rows_M1
    if sees.window is not None or sees.reach is not None:
        distance_MT = distances(sees)
        if sees.window is not None:
            sees_MT &= distance_MT < sees.window
        if sees.reach is not None:
            sees_MT &= distance_MT < sees.reach
    if sees.present_T is not None:
        sees_MT &= jnp.asarray(sees.present_T)[None, :]
    if sees.itself and may_hide_itself(sees):
        sees_MT |= columns_1T == rows_M1
    return sees_MT


def distances(sees: Sees) -> Array:
    """How many position ids lie between each row and column of a ``filled`` record, (M, T)."""
    rows_M1 = jnp.asarray(sees.row_positions_M)[:, None]
    return jnp.abs(rows_M1 - jnp.asarray(sees.column_positions_T)[None, :])


def may_hide_itself(sees: Sees) -> bool:
    """Whether a row might not see the column in its own slot if it were not for ``itself``.

    (Order alone hides none, and a comparison per entry of the matrix is a fifth of its softmax.)
    """
    return any(item is not None for item in (sees.present_T, sees.window, sees.reach))


def check(
    where: str,
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None = None,
    sinks_A: Array | None = None,
    slopes_A: Array | None = None,
) -> None:
    """Raises ValueError or TypeError where shapes, dtypes or options do not belong together."""
    checks.rank(where, "query_MAF", query_MAF, 3, "(M, A, F)")
    checks.rank(where, "key_TGF", key_TGF, 3, "(T, G, F)")
    checks.rank(where, "value_TGF", value_TGF, 3, "(T, G, F)")
    checks.floating(where, "query_MAF", query_MAF)
    checks.same_dtype(where, query_MAF=query_MAF, key_TGF=key_TGF, value_TGF=value_TGF)
    num_rows, num_heads, features = query_MAF.shape
    length, groups = key_TGF.shape[:2]
    checks.axis_size(where, "key_TGF", key_TGF, 2, features, "F, as the queries")
    checks.axis_size(where, "value_TGF", value_TGF, 0, length, "T, as the keys")
    checks.axis_size(where, "value_TGF", value_TGF, 1, groups, "G, as the keys")
    if not length or not num_rows:
        raise ValueError(
            f"{where}: there must be a row and a column, got M={num_rows}, T={length}."
        )
    if not groups or num_heads % groups:
        raise ValueError(
            f"{where}: {groups} heads of keys and values do not divide {num_heads} query heads; "
            "repeat or regroup them."
        )
    for name, expected in (
        ("row_slots_M", num_rows),
        ("row_positions_M", num_rows),
        ("column_slots_T", length),
        ("column_positions_T", length),
        ("present_T", length),
    ):
        array: Any = getattr(sees, name)
        if array is None:
            continue
        checks.rank(where, f"sees.{name}", array, 1, f"({name[-1]},)")
        checks.axis_size(where, f"sees.{name}", array, 0, expected, name[-1])
        kind = jnp.bool_ if name == "present_T" else jnp.integer
        if not jnp.issubdtype(array.dtype, kind):
            raise TypeError(
                f"{where}: sees.{name} must hold {'booleans' if kind is jnp.bool_ else 'integers'}"
                f", got {array.dtype}."
            )
    if sees.window is not None:
        checks.positive_int(where, "sees.window", sees.window)
    if sees.reach is not None:
        checks.rank(where, "sees.reach", sees.reach, 0, "()")
    if cap is not None:
        checks.positive(where, "cap", cap)
    for name, array in (("sinks_A", sinks_A), ("slopes_A", slopes_A)):
        if array is not None:
            checks.rank(where, name, array, 1, "(A,)")
            checks.axis_size(where, name, array, 0, num_heads, "A")
            checks.floating(where, name, array)


def of_rows(sees: Sees, rows_M: Array | np.ndarray | None) -> Sees:
    """The record of some rows of a whole sequence, by their places in it; of all with None."""
    if rows_M is None:
        return sees
    positions_T = sees.row_positions_M
    positions_M = None if positions_T is None else jnp.asarray(positions_T)[rows_M]
    return replace(sees, row_slots_M=rows_M, row_positions_M=positions_M)


def gaps(sees: Sees, num_rows: int, num_columns: int) -> Array:
    """The ``distances`` (M, T) of a record with so many rows and columns."""
    return distances(filled(sees, num_rows, num_columns))


def mask(sees: Sees, num_rows: int, num_columns: int) -> Array:
    """The mask (M, T) that a record means for so many rows and columns."""
    return visible(filled(sees, num_rows, num_columns))
