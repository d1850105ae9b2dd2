"""A Pallas kernel for TPUs: softmax attention over blocks of columns, with its log-sum-exp.

The softmax is kept up while the columns pass by: the largest score so far, the sum of exponentials
and the sum of values, rescaled whenever a larger score comes (Milakov and Gimelshein, arXiv
1805.02867; Dao et al., arXiv 2205.14135). Blocks that nobody sees are passed over. Derivatives are
those of the row blocks.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from icl_jax.dims import Array
from icl_jax.kernels.attention.products import soft_capped
from icl_jax.kernels.attention.shapes import Sees, may_hide_itself

#: Rows and columns of a block: what is alive of it fits into a core's 16 MiB several times.
BLOCK = 512

#: Lanes of a vector register; sizes are padded to multiples.
LANES = 128

#: The index of a block where there is one. (A number of Python's is an int64 where those are on.)
ZERO = np.int32(0)

#: In the place of -inf, differences with which are not NaN.
LOWEST = -0.7 * float(np.finfo(np.float32).max)

#: The slot of columns that are padding: nobody's own, and later than all.
NOWHERE = np.iinfo(np.int32).max


def why_not(query_MAF: Array, *, slopes_A: Array | None = None) -> str | None:
    """What the kernel cannot compute; None if it can. (Where it can is asked in ``api``.)"""
    if query_MAF.dtype not in (jnp.bfloat16, jnp.float32):
        return f"computes in bfloat16 and float32, got {query_MAF.dtype}"
    if slopes_A is not None:
        return "has no scores that fall with the distance (ALiBi)"
    return None


def attend(
    query_MAF: Array,
    key_TGF: Array,
    value_TGF: Array,
    sees: Sees,
    *,
    cap: float | None = None,
    sinks_A: Array | None = None,
    interpret: bool = False,
) -> tuple[Array, Array]:
    """Softmax attention, see ``api.attend``; ``sees`` is filled. It has no derivative."""
    (num_rows, num_heads, features), (length, groups, width) = query_MAF.shape, value_TGF.shape
    row_block, rows = _blocks(num_rows)
    column_block, columns = _blocks(length)
    grid = (num_heads, rows // row_block, columns // column_block)

    present_T = jnp.ones(length, jnp.int32)
    if sees.present_T is not None:
        present_T = jnp.asarray(sees.present_T, jnp.int32)
    # Rows that are padding repeat the last one: they read what it reads, and are cut off.
    places_2M = [
        _padded(place_M, rows, "edge") for place_M in (sees.row_slots_M, sees.row_positions_M)
    ]
    places_3T = [
        _padded(sees.column_slots_T, columns, NOWHERE),
        _padded(sees.column_positions_T, columns, 0),
        _padded(present_T, columns, 0),
    ]
    scalars = {
        "live": _live(sees, places_2M, places_3T, row_block, column_block),
        "reach": None if sees.reach is None else jnp.asarray(sees.reach, jnp.int32)[None],
        "sinks": None if sinks_A is None else sinks_A.astype(jnp.float32),
    }
    given = {name: array for name, array in scalars.items() if array is not None}

    # Index maps see int32 numbers, and ``//`` on them is not compiled ahead of time.
    per_group = np.int32(num_heads // groups)
    of_row = pl.BlockSpec((row_block, 1), lambda a, i, j: (i, ZERO))
    of_column = pl.BlockSpec((1, column_block), lambda a, i, j: (ZERO, j))
    of_group = [
        pl.BlockSpec((None, column_block, size), lambda a, i, j: (lax.div(a, per_group), j, ZERO))
        for size in (features, width)
    ]
    mixed_AMF, log_sum_exp_A1M = pl.pallas_call(
        partial(_kernel, names=tuple(given), sees=_options(sees), cap=cap),
        grid=grid,
        in_specs=[
            *(_whole(array) for array in given.values()),
            *(of_row for _ in places_2M),
            *(of_column for _ in places_3T),
            pl.BlockSpec((None, row_block, features), lambda a, i, j: (a, i, ZERO)),
            *of_group,
        ],
        out_specs=[
            pl.BlockSpec((None, row_block, width), lambda a, i, j: (a, i, ZERO)),
            pl.BlockSpec((None, 1, row_block), lambda a, i, j: (a, ZERO, i)),
        ],
        out_shape=[
            jax.ShapeDtypeStruct((num_heads, rows, width), value_TGF.dtype),
            jax.ShapeDtypeStruct((num_heads, 1, rows), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((row_block, LANES), jnp.float32),
            pltpu.VMEM((row_block, LANES), jnp.float32),
            pltpu.VMEM((row_block, width), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary")
        ),
        # The compiler cannot look into a kernel; plans and its own schedule need to know.
        cost_estimate=_cost(sees, query_MAF, value_TGF),
        interpret=interpret,
        name="attend",
    )(
        *given.values(),
        *(place_M[:, None] for place_M in places_2M),
        *(place_T[None, :] for place_T in places_3T),
        _padded(query_MAF, rows, 0).transpose(1, 0, 2),
        _padded(key_TGF, columns, 0).transpose(1, 0, 2),
        _padded(value_TGF, columns, 0).transpose(1, 0, 2),
    )
    return mixed_AMF.transpose(1, 0, 2)[:num_rows], log_sum_exp_A1M[:, 0, :num_rows]


def _kernel(*refs: Any, names: tuple[str, ...], sees: Sees, cap: float | None) -> None:
    """One block of rows of one head meets one block of columns."""
    scalars = dict(zip(names, refs, strict=False))
    row_slots, row_places, slots, places, present, query, key, value, mixed, log_sum_exp = refs[
        len(names) : -3
    ]
    top, total, summed = refs[-3:]
    head, row, column = pl.program_id(0), pl.program_id(1), pl.program_id(2)

    @pl.when(column == 0)
    def start() -> None:
        # A sink is a column whose value is zero, and comes first.
        sink = scalars["sinks"][head] if "sinks" in scalars else LOWEST
        top[...] = jnp.full(top.shape, sink, jnp.float32)
        total[...] = jnp.full(total.shape, float("sinks" in scalars), jnp.float32)
        summed[...] = jnp.zeros(summed.shape, jnp.float32)

    @pl.when(scalars["live"][row, column] != 0)
    def meet() -> None:
        true_float32 = query.dtype == jnp.float32
        precision = lax.Precision.HIGHEST if true_float32 else lax.Precision.DEFAULT
        scores_RC = soft_capped(
            lax.dot_general(
                query[...],
                key[...],
                (((1,), (1,)), ((), ())),
                precision=precision,
                preferred_element_type=jnp.float32,
            ),
            cap,
        )
        shape = scores_RC.shape
        sees_RC = jnp.broadcast_to(present[...] != 0, shape)
        if sees.causal:
            sees_RC &= slots[...] <= row_slots[...]
        distance_RC = jnp.abs(row_places[...] - places[...])
        if sees.window is not None:
            sees_RC &= distance_RC < sees.window
        if "reach" in scalars:
            sees_RC &= distance_RC < scalars["reach"][0]
        if sees.itself:
            sees_RC |= slots[...] == row_slots[...]
        scores_RC = jnp.where(sees_RC, scores_RC, jnp.full(shape, LOWEST, jnp.float32))
        before_R1 = top[:, :1]
        top_R1 = jnp.maximum(before_R1, jnp.max(scores_RC, axis=1, keepdims=True))
        # Where nothing was seen yet, the largest is the lowest, and the exponential 1.
        weights_RC = jnp.where(sees_RC, jnp.exp(scores_RC - top_R1), jnp.zeros(shape, jnp.float32))
        shrink_R1 = jnp.exp(before_R1 - top_R1)
        total_R1 = shrink_R1 * total[:, :1] + jnp.sum(weights_RC, axis=1, keepdims=True)
        summed[...] = shrink_R1 * summed[...] + lax.dot_general(
            weights_RC.astype(value.dtype),
            value[...],
            (((1,), (0,)), ((), ())),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
        top[...] = jnp.broadcast_to(top_R1, top.shape)
        total[...] = jnp.broadcast_to(total_R1, total.shape)

    @pl.when(column == pl.num_programs(2) - 1)
    def finish() -> None:
        empty_RL = total[...] == 0.0
        safe_RL = jnp.where(empty_RL, jnp.ones(total.shape, jnp.float32), total[...])
        mixed[...] = (summed[...] / safe_RL[:, :1]).astype(mixed.dtype)
        infinite_RL = jnp.full(total.shape, -jnp.inf, jnp.float32)
        whole_RL = jnp.where(empty_RL, infinite_RL, top[...] + jnp.log(safe_RL))
        log_sum_exp[...] = whole_RL.T[:1]


def _options(sees: Sees) -> Sees:
    """What of it is static."""
    itself = sees.itself and may_hide_itself(sees)
    return Sees(causal=sees.causal, window=sees.window, itself=itself)


def _cost(sees: Sees, query_MAF: Array, value_TGF: Array) -> pl.CostEstimate:
    """What two products over the pairs that see each other take, so far as known when traced."""
    (num_rows, num_heads, features), (length, _, width) = query_MAF.shape, value_TGF.shape
    pairs = float(num_rows * length)
    rows_M, columns_T = sees.row_slots_M, sees.column_slots_T
    if sees.causal:
        pairs /= 2
        if isinstance(rows_M, np.ndarray) and isinstance(columns_T, np.ndarray):
            seen_M = np.searchsorted(np.sort(columns_T), rows_M, side="right")
            pairs = float(np.sum(np.minimum(seen_M, sees.window or length)))
        elif sees.window is not None:
            pairs = min(pairs, float(num_rows * sees.window))
    operands = (num_rows * num_heads + value_TGF.shape[1] * length) * (features + width)
    return pl.CostEstimate(
        flops=int(2 * num_heads * pairs * (features + width)),
        transcendentals=int(num_heads * pairs),
        bytes_accessed=operands * query_MAF.dtype.itemsize,
    )


def _whole(array: Array) -> pl.BlockSpec:
    """All of an array of numbers, at every step."""
    return pl.BlockSpec(array.shape, lambda *_: (ZERO,) * array.ndim, memory_space=pltpu.SMEM)


def _blocks(size: int) -> tuple[int, int]:
    """The size of a block, and the size of the axis padded to whole blocks."""
    block = min(BLOCK, LANES * math.ceil(size / LANES))
    return block, block * math.ceil(size / block)


def _padded(array: Any, size: int, fill: int | str) -> Array:
    """The array with its first axis continued, by its last entry or with a number."""
    array = jnp.asarray(array)
    pad = [(0, size - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    if fill == "edge":
        return jnp.pad(array, pad, mode="edge")
    return jnp.pad(array, pad, constant_values=jnp.asarray(fill, array.dtype))


def _live(
    sees: Sees, places_2M: list[Array], places_3T: list[Array], row_block: int, column_block: int
) -> Array:
    """Which blocks of rows may see something in which blocks of columns, int32."""
    low_rows, high_rows = _ends(places_2M[0], row_block)
    low_columns, high_columns = _ends(places_3T[0], column_block)
    present = jnp.max(places_3T[2].reshape(-1, column_block), axis=1)
    live = jnp.broadcast_to(present[None, :] > 0, (low_rows.shape[0], low_columns.shape[0]))
    if sees.causal:
        live &= low_columns[None, :] <= high_rows[:, None]
    low_here, high_here = _ends(places_2M[1], row_block)
    low_there, high_there = _ends(places_3T[1], column_block)
    gap = jnp.maximum(
        low_here[:, None] - high_there[None, :], low_there[None, :] - high_here[:, None]
    )
    if sees.window is not None:
        live &= gap < sees.window
    if sees.reach is not None:
        live &= gap < sees.reach
    if sees.itself:
        live |= (low_columns[None, :] <= high_rows[:, None]) & (
            high_columns[None, :] >= low_rows[:, None]
        )
    return live.astype(jnp.int32)


def _ends(places: Array, block: int) -> tuple[Array, Array]:
    """The lowest and the highest place of each block."""
    places = places.reshape(-1, block)
    return jnp.min(places, axis=1), jnp.max(places, axis=1)
