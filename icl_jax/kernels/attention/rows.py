"""The portable implementation: a block of rows at a time, so memory is linear in the sequence.

A block of rows is the reference on those rows and on the columns that one of them can see. Blocks
are scanned and recomputed when differentiated (``jax.checkpoint``), so derivatives of any order and
mode, ``vmap``, ``shard_map``, every platform and dtype work, and all of it takes memory for one
block. What is known when a function is traced (slots that are left out or NumPy arrays) decides
which columns a block is given: half of them where rows are causal, a band where there is a window.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax.dims import Array, accumulator
from icl_jax.kernels.attention import reference
from icl_jax.kernels.attention.shapes import Sees

#: What the scores of one block of rows may take, by platform: on a CPU they should stay near the
#: cores (8 MiB are twice as quick as 64 from 2,048 positions on), elsewhere products should be
#: large.
BLOCK_BYTES = {"cpu": 8 * 2**20}
OTHER_BLOCK_BYTES = 128 * 2**20

#: Runs of blocks with columns of their own: four leave 5/8 of a causal matrix, at four times the
#: program of one; eight would leave 9/16.
RUNS = 4


@dataclass(frozen=True)
class Run:
    """Equal blocks of rows, one scan: blocks are given as many columns, from a start of their own.

    Attributes:
      start: the first row.
      stop: one past the last row.
      rows: of a block; the last one may stick out.
      columns: of a block.
      starts: the first column of each block.
    """

    start: int
    stop: int
    rows: int
    columns: int
    starts: tuple[int, ...]


def attend(
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None = None,
    sinks_A: Array | None = None,
    slopes_A: Array | None = None,
    platform: str = "cpu",
) -> tuple[Array, Array]:
    """Softmax attention, see ``api.attend``; ``sees`` is filled."""

    def block(*inputs: Any) -> tuple[Array, Array]:
        mixed_RAF, log_sum_exp_AR = reference.attend(
            *inputs, cap=cap, sinks_A=sinks_A, slopes_A=slopes_A
        )
        return mixed_RAF, log_sum_exp_AR.T

    mixed_MAF, log_sum_exp_MA = _by_blocks(block, query_MAF, key_TGF, value_TGF, sees, platform)
    return mixed_MAF, log_sum_exp_MA.T


def accumulate(
    query_MAF: Array, key_TGF: Array, value_TGF: Array, sees: Sees, *, platform: str = "cpu"
) -> Array:
    """Linear attention, see ``api.accumulate``; ``sees`` is filled."""
    return _by_blocks(reference.accumulate, query_MAF, key_TGF, value_TGF, sees, platform)


def runs(sees: Sees, num_rows: int, num_columns: int, rows: int) -> tuple[Run, ...]:
    """How the rows are cut into blocks of so many.

    At most ``RUNS`` runs, one where that is hardly more work. (Numbers known while tracing only.)
    """
    firsts = range(0, num_rows, rows)
    bounds = [_columns(sees, first, min(first + rows, num_rows), num_columns) for first in firsts]
    width = max(stop - start for start, stop in bounds)
    per_run = len(bounds)
    if 1.2 * np.mean([stop - start for start, stop in bounds]) < width:
        per_run = -(-len(bounds) // RUNS)
    cut = []
    for first in range(0, len(bounds), per_run):
        group = bounds[first : first + per_run]
        columns = max(stop - start for start, stop in group)
        starts = tuple(min(start, num_columns - columns) for start, _ in group)
        stop = min((first + per_run) * rows, num_rows)
        cut.append(Run(first * rows, stop, rows, columns, starts))
    return tuple(cut)


def _columns(sees: Sees, first: int, last: int, num_columns: int) -> tuple[int, int]:
    """The range of columns that rows ``first..last-1`` may see, so far as known; never empty."""
    rows_M, columns_T = sees.row_slots_M, sees.column_slots_T
    if not isinstance(rows_M, np.ndarray) or not isinstance(columns_T, np.ndarray):
        return 0, num_columns
    rows_R = rows_M[first:last]
    seen_T = np.ones(num_columns, bool)
    if sees.causal:
        seen_T &= columns_T <= rows_R.max()
    places_M, places_T = sees.row_positions_M, sees.column_positions_T
    if (
        sees.window is not None
        and isinstance(places_M, np.ndarray)
        and isinstance(places_T, np.ndarray)
    ):
        places_R = places_M[first:last]
        seen_T &= (places_T > places_R.min() - sees.window) & (
            places_T < places_R.max() + sees.window
        )
    if sees.itself:
        seen_T |= np.isin(columns_T, rows_R)
    (seen,) = np.nonzero(seen_T)
    return (int(seen[0]), int(seen[-1]) + 1) if seen.size else (0, 1)


def _rows_per_block(query_MAF: Array, num_columns: int, platform: str) -> int:
    num_rows, num_heads, _ = query_MAF.shape
    row_bytes = num_heads * num_columns * accumulator(query_MAF.dtype).itemsize
    rows = max(BLOCK_BYTES.get(platform, OTHER_BLOCK_BYTES) // row_bytes, 1)
    # In powers of two, as a product likes them; not so few that it is one of vectors, and not so
    # many that a causal sequence has fewer blocks than runs.
    rows = min(rows, max(num_rows // RUNS, 128))
    return min(max(2 ** int(math.log2(rows)), 16), num_rows)


def _by_blocks(
    block: Callable[..., Any],
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    platform: str,
) -> Any:
    rows = _rows_per_block(query_MAF, key_TGF.shape[0], platform)
    parts = [
        _run(block, run, query_MAF, key_TGF, value_TGF, sees)
        for run in runs(sees, query_MAF.shape[0], key_TGF.shape[0], rows)
    ]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)


def _run(
    block: Callable[..., Any],
    run: Run,
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
) -> Any:
    """The rows of one run, results with the rows in front."""
    num_rows, num_blocks = run.stop - run.start, len(run.starts)
    by_columns = {
        "key_TGF": key_TGF,
        "value_TGF": value_TGF,
        "column_slots_T": sees.column_slots_T,
        "column_positions_T": sees.column_positions_T,
        "present_T": sees.present_T,
    }
    by_rows = {
        "query_MAF": query_MAF,
        "row_slots_M": sees.row_slots_M,
        "row_positions_M": sees.row_positions_M,
    }
    # What all blocks share is cut once.
    offset, end = min(run.starts), max(run.starts) + run.columns
    by_columns = jax.tree.map(lambda array_T: array_T[offset:end], by_columns)
    by_rows = jax.tree.map(lambda array_M: array_M[run.start : run.stop], by_rows)

    def one(rows: dict[str, Any], start: Any) -> Any:
        columns = by_columns
        if start is not None:
            columns = jax.tree.map(
                lambda array_T: jax.lax.dynamic_slice_in_dim(
                    jnp.asarray(array_T), start, run.columns
                ),
                columns,
            )
        own = {**rows, **columns}
        inputs = (own.pop("query_MAF"), own.pop("key_TGF"), own.pop("value_TGF"))
        return block(*inputs, replace(sees, **own))

    if num_blocks == 1:
        return jax.checkpoint(one, static_argnums=1)(by_rows, None)

    def padded(array_M: Any) -> Array:
        spare = num_blocks * run.rows - num_rows
        array_M = jnp.asarray(array_M)
        array_M = jnp.pad(array_M, [(0, spare)] + [(0, 0)] * (array_M.ndim - 1))
        return array_M.reshape(num_blocks, run.rows, *array_M.shape[1:])

    by_rows = jax.tree.map(padded, by_rows)
    if end - offset == run.columns:
        body = jax.checkpoint(partial(one, start=None), prevent_cse=False)
        stacked = jax.lax.map(body, by_rows)
    else:
        starts = jnp.asarray(np.asarray(run.starts, np.int32) - offset)
        body = jax.checkpoint(lambda inputs: one(*inputs), prevent_cse=False)
        stacked = jax.lax.map(body, (by_rows, starts))
    return jax.tree.map(
        lambda array: array.reshape(num_blocks * run.rows, *array.shape[2:])[:num_rows], stacked
    )
