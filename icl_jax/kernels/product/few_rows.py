"""A product of very few rows as sums in pieces: what takes the time is reading the kernel once.

XLA turns a product of one row into one long sum per column, which too few of a GPU's cores work at;
for two rows it copies the layer's kernel out of the stack of layers first. Cut into pieces along D,
the sums have enough to do for all cores, read the stacked kernel where it lies, and are added up
afterwards. Rows share the reading, because XLA fuses sums over the same operand.

Without a barrier XLA makes one sum again of the sums and their sum.
"""

import jax
import jax.numpy as jnp

from icl_jax.dims import Array, accumulator
from icl_jax.kernels.product.special import special

#: Rows of a piece, which one thread adds up one after the other: of a kernel that is no wider than
#: long, and of a wider one (measured; 32 and 128 are slower than either).
PIECE, SHORT_PIECE = 256, 16

#: More rows are better off in the tensor cores.
FEW = 2

#: Entries of a kernel from which on it pays (measured: 2**20 wins nothing over it).
LARGE = 2**22


def can(rows: Array, kernel_DH: Array) -> bool:
    """Whether the shapes are such that it pays: few rows, a large kernel that divides."""
    count = rows.size // max(1, rows.shape[-1])
    return count <= FEW and kernel_DH.size >= LARGE and kernel_DH.shape[0] % PIECE == 0


def _product(rows: Array, kernel_DH: Array) -> Array:
    wide = accumulator(rows.dtype)
    length, width = kernel_DH.shape
    piece = SHORT_PIECE if width > length else PIECE
    pieces_CDH = kernel_DH.reshape(-1, piece, width)

    def in_pieces(row_D: Array) -> Array:
        row_CD1 = row_D.reshape(-1, piece, 1)
        return jnp.sum(row_CD1.astype(wide) * pieces_CDH.astype(wide), axis=1)

    flat = rows.reshape(-1, rows.shape[-1])
    sums = jax.lax.optimization_barrier([in_pieces(row_D) for row_D in flat])
    whole = [jnp.sum(sums_CH, axis=0).astype(rows.dtype) for sums_CH in sums]
    return jnp.stack(whole).reshape(*rows.shape[:-1], -1)


#: ``rows W``, (..., D) and (D, H) to (..., H).
product = special(_product, can)
