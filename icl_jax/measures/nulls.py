"""What chance would give: the comparisons that stand beside every result.

That a patch reproduces an output is algebra and holds for random weights; that an update resembles
another means little until a random one does not. So the nulls are part of the measure.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from icl_jax import checks
from icl_jax.dims import Array, Params, accumulator
from icl_jax.patches.low_rank import LowRank, check_update, frobenius_norm
from icl_jax.patches.vectors import vector_norm

Tree = TypeVar("Tree")


def random_update(key: Array, like: LowRank) -> LowRank:
    """A random rank-1 update of the same kernel with the same Frobenius norm.

    Raises:
      ValueError: not the factors of one update, or sides that do not fit.
      TypeError: not floating point, dtypes that differ, or no PRNG key.

    Examples:
      >>> update = outer(jnp.array([3.0, 4.0]), jnp.array([0.0, 2.0]))
      >>> round(float(frobenius_norm(random_update(jax.random.key(0), update))), 4)
      10.0
    """
    checks.prng_key("random_update", "key", key)
    check_update("random_update", like)
    left_key, right_key = jax.random.split(key)
    dtype = accumulator(like.left_RD.dtype)
    left_1D = _direction(left_key, like.left_RD.shape[-1], dtype)[None]
    right_1H = _direction(right_key, like.right_RH.shape[-1], dtype)[None] * frobenius_norm(like)
    return LowRank(left_1D.astype(like.left_RD.dtype), right_1H.astype(like.right_RH.dtype))


def random_vector(key: Array, like_D: Array) -> Array:
    """A vector of random direction and the same length.

    Raises:
      TypeError: no PRNG key.

    Examples:
      >>> round(float(jnp.linalg.norm(random_vector(jax.random.key(0), jnp.array([3.0, 4.0])))), 4)
      5.0
    """
    checks.prng_key("random_vector", "key", key)
    direction_D = _direction(key, like_D.shape[-1], accumulator(like_D.dtype))
    return (direction_D * vector_norm(like_D)).astype(like_D.dtype)


def another_prompts(batch: Tree) -> Tree:
    """A batched tree with every prompt given what belongs to the one before it.

    Raises:
      ValueError: leaves without one leading axis of at least two prompts: a lone prompt has no
        other, and its own would pass for chance.

    Examples:
      >>> another_prompts(jnp.array([1.0, 2.0, 3.0])).tolist()
      [3.0, 1.0, 2.0]
    """
    counts = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(counts) != 1 or counts <= {(), (0,), (1,)}:
        raise ValueError(
            "another_prompts: the leaves of batch must share a leading axis of at least two "
            f"prompts, got leading axes {sorted(counts)}. Draw more prompts: in a batch of one, "
            "another prompt's is its own."
        )
    return jax.tree.map(lambda leaf: jnp.roll(leaf, 1, axis=0), batch)


def shuffled_labels(key: Array, targets_N: Array) -> Array:
    """The labels of a context in random order: the inputs stay, what they teach goes.

    Raises:
      TypeError: no PRNG key.

    Examples:
      >>> sorted(shuffled_labels(jax.random.key(0), jnp.array([1.0, 2.0, 3.0])).tolist())
      [1.0, 2.0, 3.0]
    """
    checks.prng_key("shuffled_labels", "key", key)
    return jax.random.permutation(key, targets_N)


def _direction(key: Array, size: int, dtype: jnp.dtype) -> Array:
    vector_D = jax.random.normal(key, (size,), dtype)
    return vector_D / jnp.linalg.norm(vector_D)


def random_points(key: Array, points: Params) -> Params:
    """A walk whose every point is as far from the start as that of ``points``, leaf by leaf.

    Kernels move by a random outer product of the same norm, as a rank-1 update does; what is no
    matrix moves in a random direction. The parameters of equal layers, which lie on top of each
    other under names that start with ``layers_``, move layer by layer.
    """
    paths, tree = jax.tree.flatten_with_path(points)
    leaves = [leaf for _, leaf in paths]
    stacked = [str(getattr(path[0], "key", "")).startswith("layers_") for path, _ in paths]

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

    def each_layer(leaf_key: Array, leaf: Array) -> Array:
        layer_keys = jax.random.split(leaf_key, leaf.shape[1])
        return jax.vmap(moved, in_axes=(0, 1), out_axes=1)(layer_keys, leaf)

    moves: list[Any] = [
        each_layer(k, leaf) if layered else moved(k, leaf)
        for k, leaf, layered in zip(keys, leaves, stacked, strict=True)
    ]
    return jax.tree.unflatten(tree, moves)
