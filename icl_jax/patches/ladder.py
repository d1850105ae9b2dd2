"""Static patches of a whole stack: the context's effect on some queries, for all queries.

Each layer asks ``static.py`` twice: for ``M`` with ``Z M = z_S - z_K`` over the rows ``Z = z_K`` of
the calibration queries (the input side), then for ``D`` with ``a D = `` what the block's output
still lacks, over its hidden activations ``a`` (the down kernel). ``Fit`` says which solution, which
sides, at which rank. Two orders, both a step of ``fold``:

    in order  a layer is fitted on the states of the run whose earlier layers are patched already,
              and so also repairs what these have left (``fit_static``)
    at once   every layer on the states of the run with everything: sums only, in one pass, in the
              memory of the sums whatever the number of queries (``static_sums``, ``merge_sums``,
              ``jax.lax.psum`` over devices, ``solve_static``); given the patches so far, another
              pass fits all of them again on the states that they lead to
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array, Params, accumulator
from icl_jax.patches.calibration import (
    Queries,
    Rows,
    changes_input,
    check_queries,
    down_rows,
    flat,
    midpoints,
    missing_output,
    wide,
)
from icl_jax.patches.dual_ridge import ridge_factors
from icl_jax.patches.fit import Fit
from icl_jax.patches.ladder_sums import (
    BlockSums,
    row_sums,
    solve_static,
    solved_update,
    static_sums,
    without,
)
from icl_jax.patches.low_rank import LowRank
from icl_jax.patches.spectrum import truncate
from icl_jax.patches.static import QuerySums, exact_patch
from icl_jax.patches.static_patch import StaticPatch, static_block, static_input
from icl_jax.stack.block import ContextualBlock, Midpoint
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import Layers, PerLayer
from icl_jax.stack.settled import settled

#: More fitted rows than this are padded to a multiple of it.
ROW_BUCKET = 32


def fit_static(
    layers: Layers,
    queries: Queries,
    fit: Fit | None = None,
    *,
    weight: float | Array = 1e-2,
    ordinary: PerLayer[BlockSums] | None = None,
) -> PerLayer[StaticPatch]:
    """One change of a stack's weights that does for many queries what their context does.

    One program. In order it holds the states of all queries, (B, T, D) and (B, K, D).

    Args:
      layers: the stack.
      queries: what to fit.
      fit: the solution, the sides, the rank and the order; ridge on both sides when left out.
      weight: of ``ridge`` and ``covariance`` (see there), a number or ().
      ordinary: of ``covariance``: the sums of ordinary text, ``static_sums`` of any queries.

    Returns:
      A ``StaticPatch`` per layer; ``static_forward`` applies them.

    Raises:
      ValueError: a side that a block cannot have (experts share no down kernel), no ordinary text,
        more rows than ``exact`` can serve, or shapes that do not fit.

    Examples:
      >>> from icl_jax.patches.calibration import Queries
      >>> stack = build_stack(StackConfig(width=8, num_heads=2, hidden_widths=(16,)))
      >>> params = stack.init(jax.random.key(1), jnp.zeros((6, 3)))["params"]
      >>> layers, whole = functional(stack, params), jax.random.normal(jax.random.key(0), (1, 6, 8))
      >>> query = whole[:, 5:]  # one query of one token, behind five of context
      >>> queries = Queries(whole, query, jnp.array([[5]]), jnp.ones((1, 1), bool))
      >>> patches = fit_static(layers, queries, Fit("exact"))
      >>> got = static_forward(layers, query[0], patches)
      >>> bool(jnp.allclose(got, forward(layers, whole[0])[5:], atol=1e-4))
      True

    Source: Dherin et al. (arXiv 2507.16003v4), section 3.4; PatchKV (2026) for ridge, layers in
      order; Mazzawi et al. (arXiv 2510.08734) for thought vectors and the cheap form.
    """
    fit = Fit() if fit is None else fit
    side = None if fit.rung == "thought" else fit.side
    check_queries("fit_static", layers, queries, side)
    checks.positive_scalar("fit_static", "weight", weight)
    if fit.rung == "covariance" and ordinary is None:
        raise ValueError(
            "fit_static: rung='covariance' needs ordinary, the sums of ordinary text: "
            "static_sums(layers, queries of such text, side=...)."
        )
    if fit.order == "at_once" and fit.rung in ("exact", "thought"):
        raise ValueError(
            f"fit_static: rung={fit.rung!r} is fitted in order: at once nobody knows what the "
            "other layers have left. Use order='in_order'."
        )
    weight = jnp.asarray(weight, accumulator(queries.full_BTD.dtype))
    if fit.order == "at_once":
        sums = static_sums(layers, queries, side=fit.side, chunk=fit.chunk)
        return solve_static(layers, sums, fit, weight=weight, ordinary=ordinary)
    chosen = _chosen(queries, fit) if fit.rung in ("exact", "ridge") else None
    return _in_order(layers, queries, chosen, weight, ordinary, fit=fit)


def _chosen(queries: Queries, fit: Fit) -> tuple[Array, Array] | None:
    """The fitted rows' numbers, and which of them count; None for all rows, by their mask.

    What is solved for in the rows' products grows with the cube of their number, padding included:
    where the mask can be read, padding is left out, but for what makes few programs serve all.
    """
    if not checks.is_concrete(queries.fitted_BK):
        if fit.rung != "exact":
            return None
        raise ValueError(
            "fit_static: rung='exact' has to count its rows, and inside jit nobody can. Call it "
            "outside, or use rung='ridge'."
        )
    rows_N = np.flatnonzero(np.asarray(queries.fitted_BK))
    count, width = len(rows_N), queries.full_BTD.shape[-1]
    if not count:
        raise ValueError(
            "fit_static: queries.fitted_BK is False everywhere: there is no row to fit."
        )
    if fit.rung == "exact" and count > width:
        raise ValueError(
            f"fit_static: rung='exact' serves up to D={width} rows, got {count} in fitted_BK. Fit "
            "fewer rows (the last of each query, say), or use rung='ridge'."
        )
    padded = -count % ROW_BUCKET if fit.rung == "ridge" and count > ROW_BUCKET else 0
    rows_N = np.pad(rows_N, (0, padded), mode="edge")
    return jnp.asarray(rows_N, jnp.int32), jnp.arange(len(rows_N)) < count


@functools.partial(jax.jit, static_argnames="fit")
def _in_order(
    layers: Layers,
    queries: Queries,
    chosen: tuple[Array, Array] | None,
    weight: Array,
    ordinary: PerLayer[BlockSums] | None,
    *,
    fit: Fit,
) -> PerLayer[StaticPatch]:
    def step(
        block: ContextualBlock, params: Params, state: tuple[Array, Array], given: Any
    ) -> tuple[tuple[Array, Array], StaticPatch]:
        full_BTD, full, kept = midpoints(block, params, state, queries, fit.chunk)
        rows = Rows(flat(full), flat(kept), queries.fitted_BK.reshape(-1))
        patch = settled(_fitted(block, params, rows, chosen, queries.anchored, fit, weight, given))

        def patched(midpoint: Midpoint) -> Array:
            return static_block(block, params, midpoint, patch)

        kept_BKD = jax.lax.map(patched, kept, batch_size=fit.chunk)
        return settled((full_BTD, kept_BKD)), patch

    return fold(layers, step, (queries.full_BTD, queries.kept_BKD), ordinary)[1]


def _fitted(
    block: ContextualBlock,
    params: Params,
    rows: Rows,
    chosen: tuple[Array, Array] | None,
    anchored: bool,
    fit: Fit,
    weight: Array,
    ordinary: BlockSums | None,
) -> StaticPatch:
    """The patch of one block, its input side first."""
    if fit.rung == "thought":
        _, missing_ND = missing_output(block, params, rows, rows.kept.mlp_input_TD)
        kept_ND = jnp.where(rows.fitted_N[:, None], wide(missing_ND), 0)
        count = jnp.sum(rows.fitted_N, dtype=kept_ND.dtype)
        return StaticPatch(bias_D=jnp.sum(kept_ND, axis=0) / count)
    patch = StaticPatch()

    def solved(inputs_ND: Array, changes_NO: Array, usual: QuerySums | None) -> LowRank:
        spared_D = wide(inputs_ND[0]) if anchored else None
        fitted_N = rows.fitted_N
        if chosen is not None:
            inputs_ND, changes_NO, fitted_N = inputs_ND[chosen[0]], changes_NO[chosen[0]], chosen[1]
        if fit.rung == "exact":
            exact = exact_patch(without(wide(inputs_ND), spared_D), wide(changes_NO))
            return exact if fit.rank is None else truncate(exact, fit.rank)
        if fit.rung == "ridge" and inputs_ND.shape[0] < inputs_ND.shape[1]:
            # Fewer rows than dimensions: the same solution, and no matrix of its size.
            return ridge_factors(
                without(wide(inputs_ND), spared_D),
                wide(changes_NO),
                weight=weight,
                rank=fit.rank,
                present_K=fitted_N,
            )
        sums = row_sums(inputs_ND, changes_NO, fitted_N, spared_D)
        return solved_update(sums, spared_D, fit, weight, usual)

    if changes_input(block, fit.side):
        inputs_ND = rows.kept.mlp_input_TD
        usual = None if ordinary is None else ordinary.input
        patch = StaticPatch(solved(inputs_ND, rows.full.mlp_input_TD - inputs_ND, usual))
    if fit.side != "input":
        read_ND = static_input(rows.kept.mlp_input_TD, patch)
        hidden_NH, missing_ND = down_rows(block, params, rows, read_ND)
        usual = None if ordinary is None else ordinary.down
        patch = StaticPatch(patch.input, solved(hidden_NH, missing_ND, usual))
    return patch
