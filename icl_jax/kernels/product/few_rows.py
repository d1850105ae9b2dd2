"""A product of very few rows as sums in pieces: what takes the time is reading the kernel once.

XLA turns a product of one row into one long sum per column, which too few of a GPU's cores work at;
for two rows it copies the layer's kernel out of the stack of layers first. Cut into pieces along D,
the sums have enough to do for all cores, read the stacked kernel where it lies, and are added up
afterwards. Rows share the reading, because XLA fuses sums over the same operand.
"""

import jax
import jax.numpy as jnp

from icl_jax.dims import Array, accumulator
from icl_jax.kernels.product.special import special

#: Rows of the kernel in a piece: what one thread adds up, one after the other.
PIECE = 128

#: More rows are better off in the tensor cores.
FEW = 2

#: Entries of a kernel from which on it pays (measured: sums over smaller kernels lose).
LARGE = 2**23


def can(rows: Array, kernel_DH: Array) -> bool:
    """Whether the shapes are such that it pays: few rows, a large kernel that divides."""
    count = rows.size // max(1, rows.shape[-1])
    return count <= FEW and kernel_DH.size >= LARGE and kernel_DH.shape[0] % PIECE == 0


def _product(rows: Array, kernel_DH: Array) -> Array:
    wide = accumulator(rows.dtype)
    pieces_CDH = kernel_DH.reshape(-1, PIECE, kernel_DH.shape[1])

    def one(row_D: Array) -> Array:
        row_CD1 = row_D.reshape(-1, PIECE, 1)
        sums_CH = jnp.sum(row_CD1.astype(wide) * pieces_CDH.astype(wide), axis=1)
        return jnp.sum(sums_CH, axis=0).astype(row_D.dtype)

    flat = rows.reshape(-1, rows.shape[-1])
    # Apart from the stacking, so that the sums stay sums that share their reading.
    sums = jax.lax.optimization_barrier([one(row_D) for row_D in flat])
    return jnp.stack(sums).reshape(*rows.shape[:-1], -1)


#: ``rows W``, (..., D) and (D, H) to (..., H).
product = special(_product, can)
