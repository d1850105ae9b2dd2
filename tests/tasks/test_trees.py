"""Prompts of decision trees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.tasks.trees import DecisionTree, tree_value


def _slow_value(splits, leaves, point):
    """Recursion on nested halves of the tree, no heap arithmetic."""
    if len(leaves) == 1:
        return leaves[0]
    levels = [splits[2**k - 1 : 2 ** (k + 1) - 1] for k in range(len(leaves).bit_length() - 1)]
    side = int(point[levels[0][0]] > 0)
    below = [level[side * len(level) // 2 :][: len(level) // 2] for level in levels[1:]]
    half = len(leaves) // 2
    return _slow_value([s for level in below for s in level], leaves[side * half :][:half], point)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_the_walk_agrees_with_a_recursion(depth):
    rng = np.random.default_rng(depth)
    splits = rng.integers(0, 3, 2**depth - 1).astype(np.int32)
    leaves = rng.normal(size=2**depth)
    points = rng.normal(size=(50, 3))
    points[0] = 0.0  # Not positive: left everywhere.
    walked = jax.jit(jax.vmap(tree_value, in_axes=(None, None, 0)))(splits, leaves, points)
    np.testing.assert_array_equal(walked, [_slow_value(splits, leaves, p) for p in points])
    assert walked[0] == leaves[0]


def test_every_leaf_can_be_reached():
    signs = np.array([[1.0 if i >> k & 1 else -1.0 for k in (2, 1, 0)] for i in range(8)])
    splits, leaves = jnp.array([0, 1, 1, 2, 2, 2, 2]), jnp.arange(8.0)
    reached = jax.jit(jax.vmap(tree_value, in_axes=(None, None, 0)))(splits, leaves, signs)
    np.testing.assert_array_equal(reached, np.arange(8))


def test_targets_are_standard_normal_and_take_at_most_so_many_values(draw):
    prompts = draw(DecisionTree(5, depth=2), num_prompts=2000, num_examples=30)
    values_B = prompts.query_target
    assert abs(values_B.mean()) < 4 / np.sqrt(2000)
    assert abs(values_B.std() - 1) < 4 / np.sqrt(4000)
    counts = [len(np.unique(row)) for row in prompts.targets_N[:200]]
    assert max(counts) == 4


def test_every_coordinate_is_compared_as_often(draw):
    prompts = draw(DecisionTree(3, depth=1), num_prompts=600, num_examples=40)
    high_BN = prompts.targets_N == prompts.targets_N[:, :1]
    positive_BND = prompts.inputs_ND > 0
    same_side_BND = positive_BND == positive_BND[:, :1]
    compared_BD = np.all(same_side_BND == high_BN[:, :, None], axis=1)
    np.testing.assert_array_equal(compared_BD.sum(1), 1)
    assert np.all(np.abs(compared_BD.mean(0) - 1 / 3) < 4 * np.sqrt(2 / 9 / 600))


def test_a_tree_that_is_not_full_is_refused():
    with pytest.raises(ValueError, match=r"got 3 leaves and 2 splits"):
        tree_value(jnp.zeros(2, jnp.int32), jnp.zeros(3), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"got 4 leaves and 2 splits"):
        tree_value(jnp.zeros(2, jnp.int32), jnp.zeros(4), jnp.zeros(1))
    with pytest.raises(ValueError, match=r"depth must be an integer of at least 1, got 0"):
        DecisionTree(2, depth=0)
