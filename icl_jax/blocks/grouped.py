"""Every row times the kernel of its own group, at the cost of the rows, not of rows times groups.

Rows are sorted by group and cut into blocks of one group each, the last block of a group padded: a
number of blocks that does not depend on how the rows fall, so it compiles, batches and
differentiates (Gale et al. 2022, "MegaBlocks", arXiv 2211.15841, without their kernels).
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from icl_jax.blocks.affine import rows_of
from icl_jax.dims import Array


class Blocks(NamedTuple):
    """Rows in blocks of one group.

    Attributes:
      rows_PB: (P, B), the row at every place; 0 at places that are padding.
      groups_P: (P,), the group of every block; 0 for blocks that nobody needs.
      places_N: (N,), where each row stands among all P * B places.
    """

    rows_PB: Array
    groups_P: Array
    places_N: Array


def group_rows(groups_N: Array, num_groups: int) -> Blocks:
    """Sorts rows into blocks.

    Args:
      groups_N: (N,), int32, the group of each row, from 0 to ``num_groups - 1``.
      num_groups: G.

    Returns:
      ``P = (N + min(G, N) (B - 1)) // B`` blocks of ``B = ceil(N / G)``: at most 2 N places.
    """
    count = groups_N.shape[0]
    size = math.ceil(count / num_groups)
    num_blocks = (count + min(num_groups, count) * (size - 1)) // size
    steps_N = jnp.arange(count, dtype=jnp.int32)
    sizes_G = jnp.zeros(num_groups, jnp.int32).at[groups_N].add(1)
    blocks_G = (sizes_G + (size - 1)) // size
    first_row_G = jnp.cumsum(sizes_G, dtype=jnp.int32) - sizes_G
    first_block_G = jnp.cumsum(blocks_G, dtype=jnp.int32) - blocks_G

    order_N = jnp.argsort(groups_N, stable=True).astype(jnp.int32)
    sorted_N = groups_N[order_N]
    rank_N = steps_N - first_row_G[sorted_N]
    block_N = first_block_G[sorted_N] + rank_N // size
    place_N = block_N * size + rank_N % size
    return Blocks(
        jnp.zeros(num_blocks * size, jnp.int32).at[place_N].set(order_N).reshape(-1, size),
        jnp.zeros(num_blocks, jnp.int32).at[block_N].set(sorted_N),
        jnp.zeros(count, jnp.int32).at[order_N].set(place_N),
    )


def grouped_map(
    function: Callable[[Array, Any], Array], rows_ND: Array, kernels: Any, blocks: Blocks
) -> Array:
    """``function(rows, kernels of their group)`` for every row: (N, F).

    Args:
      function: of a block of rows (B, D) and one group's kernels; row by row.
      rows_ND: (N, D).
      kernels: a tree of arrays with a leading axis G.
      blocks: what ``group_rows`` made of the rows' groups.
    """

    def one(_: None, block: tuple[Array, Array]) -> tuple[None, Array]:
        rows_B, group = block
        mine = jax.tree.map(lambda leaf: rows_of(leaf, group), kernels)
        return None, function(rows_ND[rows_B], mine)

    _, results_PBF = jax.lax.scan(one, None, (blocks.rows_PB, blocks.groups_P))
    return results_PBF.reshape(-1, results_PBF.shape[-1])[blocks.places_N]
