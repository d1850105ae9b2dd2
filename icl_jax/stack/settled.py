"""Values as they are stored, and steps that a compiler keeps apart.

A patch is exact for the numbers that it was made with. A compiler may use others: values of
bfloat16 that it keeps wider until they are written, or a product that it joins with the sum behind
it, unrounded (a fused multiply-add). Which of them it does depends on what stands around.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from icl_jax.dims import Array

Tree = TypeVar("Tree")

#: Bytes of a floating point number -> the integers of as many.
_BITS = {2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint64}


def as_stored(tree: Tree) -> Tree:
    """A tree rounded to what its dtypes hold; leaves that are not floating point as they are.

    The values are read as bits, and a bit of NaN is set that is set already: a compiler cannot know
    that this is nothing, so here the numbers are those that the dtype holds, whatever is before and
    behind. (``jax.lax.reduce_precision`` does the same for bfloat16, and is no obstacle to a fused
    multiply-add in float32.)
    """

    def rounded(leaf: Any) -> Any:
        return _stored(leaf) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else leaf

    return jax.tree.map(rounded, tree)


@jax.custom_jvp
def _stored(array: Array) -> Array:
    kind = _BITS[array.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(array, kind) | (array != array).astype(kind)
    return jax.lax.bitcast_convert_type(bits, array.dtype)


@_stored.defjvp
def _unchanged(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _stored(*primals), tangents[0]


def settled(tree: Tree) -> Tree:
    """The same values, computed to the end and rounded before anything that reads them is.

    Left alone, XLA fuses the steps of a layer otherwise when they are patched than when the patches
    are made, and the two round differently: the patched run then starts every layer from a state
    that the patches were not made for, and deep models with massive activations make 1e-5 of 1e-7.
    The barrier keeps the steps apart, and the rounding where a compiler takes barriers away before
    it fuses (XLA's for CPUs). With both the patched run repeats the extraction bit for bit,
    whatever stands around it.
    """
    return jax.lax.optimization_barrier(as_stored(tree))


def settled_where_narrow(tree: Tree) -> Tree:
    """``settled`` for numbers of half precision; float32 and wider as they are.

    For a plain pass. Left alone, a compiler computes a layer wider than it stores its results and
    may not round between the steps, and then the pass of one program is not that of another: what
    patches reproduce to the bit differs from it by several roundings.
    """
    leaves = [jnp.result_type(leaf) for leaf in jax.tree.leaves(tree)]
    narrow = any(jnp.issubdtype(kind, jnp.floating) and kind.itemsize < 4 for kind in leaves)
    return settled(tree) if narrow else tree
