"""What chance would give: the comparisons that stand beside every result.

That a patch reproduces an output is algebra and holds for random weights; that an update resembles
another means little until a random one does not. So the nulls are part of the measure.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from icl_jax.dims import Array, Params
from icl_jax.patches.low_rank import LowRank, accumulator, frobenius_norm

Tree = TypeVar("Tree")


def random_update(key: Array, like: LowRank) -> LowRank:
    """A random rank-1 update of the same kernel with the same Frobenius norm."""
    left_key, right_key = jax.random.split(key)
    dtype = like.left_RD.dtype
    left_1D = _direction(left_key, like.left_RD.shape[-1], dtype)[None]
    right_1H = _direction(right_key, like.right_RH.shape[-1], dtype)[None]
    return LowRank(left_1D, right_1H * frobenius_norm(like).astype(dtype))


def random_vector(key: Array, like_D: Array) -> Array:
    """A vector of random direction and the same length."""
    dtype = accumulator(like_D.dtype)
    length = jnp.linalg.norm(like_D.astype(dtype))
    return (_direction(key, like_D.shape[-1], dtype) * length).astype(like_D.dtype)


def another_prompts(batch: Tree) -> Tree:
    """A batched tree with every prompt given what belongs to the one before it."""
    return jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), batch)


def shuffled_labels(key: Array, targets_N: Array) -> Array:
    """The labels of a context in random order: the inputs stay, what they teach goes."""
    return jax.random.permutation(key, targets_N)


def _direction(key: Array, size: int, dtype: jnp.dtype) -> Array:
    vector_D = jax.random.normal(key, (size,), dtype)
    return vector_D / jnp.linalg.norm(vector_D)


def random_points(key: Array, points: Params) -> Params:
    """A walk whose every point is as far from the start as that of ``points``, leaf by leaf.

    Kernels move by a random outer product of the same norm, as a rank-1 update does; what is no
    matrix moves in a random direction.
    """
    leaves, tree = jax.tree.flatten(points)

    def moved(leaf_key: Array, leaf: Array) -> Array:
        start, distances = leaf[0], leaf - leaf[:1]
        rows = distances.reshape(len(leaf), start.shape[0] if start.ndim > 1 else 1, -1)

        def one(point_key: Array, row: Array) -> Array:
            left_key, right_key = jax.random.split(point_key)
            length = jnp.linalg.norm(row)
            right = random_vector(right_key, jnp.full_like(row[0], 1.0))
            left = random_vector(left_key, jnp.full_like(row[:, 0], 1.0))
            product = left[:, None] * right[None, :]
            return (product * (length / jnp.linalg.norm(product))).reshape(start.shape)

        return start[None] + jax.vmap(one)(jax.random.split(leaf_key, len(leaf)), rows)

    keys = jax.random.split(key, len(leaves))
    moves: list[Any] = [moved(k, leaf) for k, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, moves)
