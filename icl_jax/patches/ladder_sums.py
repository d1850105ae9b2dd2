"""Static patches of a stack from sums: one pass over the queries, in the memory of the sums.

Each layer is fitted on the states of the run with everything, as if the layers below were exact.
The sums of batches are added up, over calls and over devices; given the patches so far, another
pass takes them on the states that those lead to.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, Params
from icl_jax.patches.calibration import (
    Queries,
    Rows,
    changes_input,
    check_queries,
    down_rows,
    flat,
    midpoints,
    wide,
)
from icl_jax.patches.fit import SIDES, Fit, Side
from icl_jax.patches.low_rank import LowRank
from icl_jax.patches.spectrum import from_matrix
from icl_jax.patches.static import (
    QuerySums,
    cheap_patch,
    covariance_patch,
    query_sums,
    reduced_rank,
    ridge_patch,
)
from icl_jax.patches.static_patch import StaticPatch, static_block, static_input
from icl_jax.patches.vectors import inner_product, vector_norm
from icl_jax.shown import short
from icl_jax.stack.block import ContextualBlock
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import Layers, PerLayer, side_by_side
from icl_jax.stack.settled import settled


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockSums:
    """What a block's fit needs of its rows; ``merge_sums`` adds those of batches up.

    Attributes:
      input: of ``z_K`` and ``z_S - z_K``; None where the input side stays.
      down: of the hidden activations and what the output lacks; None where the down kernel stays.
      spared_input_D: (D,), the anchor's ``z`` (times the number of batches); None without one.
      spared_hidden_H: (H,), its hidden activations likewise.

    Examples:
      >>> whole = jax.random.normal(jax.random.key(0), (3, 6, 8))  # three queries of one token each
      >>> queries = Queries(whole, whole[:, 5:], jnp.full((3, 1), 5), jnp.ones((3, 1), bool))
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> params = stack.init(jax.random.key(1), jnp.zeros((6, 3)))["params"]
      >>> sums = static_sums(functional(stack, params), queries)[0]
      >>> sums.input.gram_DD.shape, sums.down.gram_DD.shape, float(sums.input.count)
      ((8, 8), (16, 16), 3.0)
    """

    input: QuerySums | None
    down: QuerySums | None
    spared_input_D: Array | None = None
    spared_hidden_H: Array | None = None

    __repr__ = short


def static_sums(
    layers: Layers,
    queries: Queries,
    *,
    side: Side = "both",
    patches: PerLayer[StaticPatch] | None = None,
    chunk: int = 8,
) -> PerLayer[BlockSums]:
    """What all layers need of a batch of queries, in one pass and fixed memory.

    Those of batches add up, by ``merge_sums`` and by ``jax.lax.psum``.

    Args:
      layers: the stack.
      queries: a batch of them.
      side: whose sums.
      patches: the patches so far: their run's states are fitted. None for those of the run with
        everything, as if the layers below (and the input side) were exact.
      chunk: how many queries are run side by side.

    Raises:
      ValueError: as ``fit_static``.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> params = stack.init(jax.random.key(1), jnp.zeros((6, 3)))["params"]
      >>> layers, whole = functional(stack, params), jax.random.normal(jax.random.key(0), (4, 6, 8))
      >>> def sums(some):  # queries of one token, behind five of context
      ...     marks = jnp.ones((len(some), 1), bool)
      ...     return static_sums(layers, Queries(some, some[:, 5:], marks * 5, marks))
      >>> both = merge_sums(sums(whole[:2]), sums(whole[2:]))
      >>> bool(jnp.allclose(both[0].input.cross_DH, sums(whole)[0].input.cross_DH, atol=1e-5))
      True
    """
    checks.one_of("static_sums", "side", side, SIDES)
    check_queries("static_sums", layers, queries, side)
    return _static_sums(layers, queries, patches, side=side, chunk=chunk)


def solve_static(
    layers: Layers,
    sums: PerLayer[BlockSums],
    fit: Fit,
    *,
    weight: float | Array = 1e-2,
    ordinary: PerLayer[BlockSums] | None = None,
) -> PerLayer[StaticPatch]:
    """The patches of a stack from its sums; arguments as in ``fit_static``.

    Raises:
      ValueError: a rung that needs more than sums, or no ordinary text.

    Examples:
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> params = stack.init(jax.random.key(1), jnp.zeros((6, 3)))["params"]
      >>> layers, whole = functional(stack, params), jax.random.normal(jax.random.key(0), (1, 6, 8))
      >>> query = whole[:, 5:]  # one query of one token, behind five of context
      >>> queries = Queries(whole, query, jnp.array([[5]]), jnp.ones((1, 1), bool))
      >>> patches = solve_static(layers, static_sums(layers, queries), Fit("ridge"), weight=1e-4)
      >>> asked = forward(layers, whole[0])[5:]
      >>> float(relative_error(static_forward(layers, query[0], patches), asked)) < 0.01
      True
    """
    if fit.rung in ("exact", "thought"):
        raise ValueError(
            f"solve_static: rung={fit.rung!r} is fitted layer by layer, with fit_static. Sums give "
            "'cheap', 'ridge' and 'covariance'."
        )
    checks.positive_scalar("solve_static", "weight", weight)
    return _solve_static(layers, sums, jnp.asarray(weight), ordinary, fit=fit)


@functools.partial(jax.jit, static_argnames=("side", "chunk"))
def _static_sums(
    layers: Layers,
    queries: Queries,
    patches: PerLayer[StaticPatch] | None,
    *,
    side: Side,
    chunk: int,
) -> PerLayer[BlockSums]:
    def step(
        block: ContextualBlock, params: Params, state: tuple[Array, Array], patch: Any
    ) -> tuple[tuple[Array, Array], BlockSums]:
        full_BTD, full, kept = midpoints(block, params, state, queries, chunk)
        rows = Rows(flat(full), flat(kept), queries.fitted_BK.reshape(-1))
        inputs = downs = spared_D = spared_H = None
        if changes_input(block, side):
            wanted_ND = rows.full.mlp_input_TD - rows.kept.mlp_input_TD
            spared_D = wide(rows.kept.mlp_input_TD[0]) if queries.anchored else None
            inputs = row_sums(rows.kept.mlp_input_TD, wanted_ND, rows.fitted_N, spared_D)
        if side != "input":
            read_ND = rows.full.mlp_input_TD if changes_input(block, side) else None
            if patch is not None:
                read_ND = static_input(rows.kept.mlp_input_TD, patch)
            hidden_NH, missing_ND = down_rows(block, params, rows, read_ND)
            spared_H = wide(hidden_NH[0]) if queries.anchored else None
            downs = row_sums(hidden_NH, missing_ND, rows.fitted_N, spared_H)
        if patch is None:
            kept_BKD = jax.vmap(lambda rows_TD, at_K: rows_TD[at_K])(full_BTD, queries.rows_BK)
        else:
            kept_BKD = jax.lax.map(
                lambda midpoint: static_block(block, params, midpoint, patch),
                kept,
                batch_size=chunk,
            )
        return (full_BTD, kept_BKD), BlockSums(inputs, downs, spared_D, spared_H)

    return fold(layers, step, (queries.full_BTD, queries.kept_BKD), patches)[1]


@functools.partial(jax.jit, static_argnames="fit")
def _solve_static(
    layers: Layers,
    sums: PerLayer[BlockSums],
    weight: Array,
    ordinary: PerLayer[BlockSums] | None,
    *,
    fit: Fit,
) -> PerLayer[StaticPatch]:
    given = sums.map(lambda one: (one, None)) if ordinary is None else side_by_side(sums, ordinary)

    def step(block: Any, params: Any, state: None, pair: Any) -> tuple[None, StaticPatch]:
        del block, params
        found, usual = pair
        change = down = None
        if found.input is not None:
            metric = None if usual is None else usual.input
            change = solved_update(found.input, found.spared_input_D, fit, weight, metric)
        if found.down is not None:
            # One after the other: two decompositions side by side can wait for each other.
            change, found = settled((change, found))
            metric = None if usual is None else usual.down
            down = solved_update(found.down, found.spared_hidden_H, fit, weight, metric)
        return state, StaticPatch(change, down)

    return fold(layers, step, None, given)[1]


def solved_update(
    sums: QuerySums,
    spared_D: Array | None,
    fit: Fit,
    weight: Array,
    ordinary: QuerySums | None,
) -> LowRank:
    """An update from sums; it leaves a spared input as it is."""
    if fit.rung == "cheap":
        update = from_matrix(cheap_patch(sums), rank=fit.rank)
    elif fit.rung == "covariance":
        assert ordinary is not None  # fit_static has asked for it.
        metric_DD = ordinary.gram_DD / ordinary.count
        update = reduced_rank(sums, covariance_patch(sums, metric_DD, weight=weight), fit.rank)
    else:
        update = reduced_rank(sums, ridge_patch(sums, weight=weight), fit.rank)
    return LowRank(without(update.left_RD, spared_D), update.right_RH)


def row_sums(
    inputs_ND: Array, changes_NO: Array, fitted_N: Array, spared_D: Array | None
) -> QuerySums:
    """The sums of the fitted rows, without what an input to be spared has in them."""
    inputs_ND = without(wide(inputs_ND), spared_D)
    return query_sums(inputs_ND, wide(changes_NO), present_K=fitted_N)


def without(rows_ND: Array, spared_D: Array | None) -> Array:
    """Rows without their part along a direction."""
    if spared_D is None:
        return rows_ND
    unit_D = spared_D / vector_norm(spared_D)
    return jax.vmap(lambda row_D: row_D - inner_product(row_D, unit_D) * unit_D)(rows_ND)
