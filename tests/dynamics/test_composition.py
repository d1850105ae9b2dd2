"""Static patches beside each other, against the matrices that they stand for."""

import jax
import numpy as np
import pytest

from icl_jax.dynamics.composition import compare_static, move_layers
from icl_jax.patches.low_rank import LowRank, as_matrix
from icl_jax.patches.static_patch import StaticPatch, combine_static, scale_static
from icl_jax.stack.layers import PerLayer
from tests.helpers import normal


def patches(seed, depth=3, rank=2, down=True):
    def update(offset, height, width):
        return LowRank(
            normal(seed + offset, depth, rank, height),
            normal(seed + offset + 1, depth, rank, width),
        )

    patch = StaticPatch(update(0, 4, 4), update(10, 6, 4) if down else None)
    return PerLayer(((patch,),), (depth,))


def test_every_number_is_that_of_the_matrices():
    first, second = patches(0), patches(50)
    found = compare_static(first, second)
    assert len(found) == 3
    for layer in range(3):
        for side in ("input", "down"):
            one, other = (np.asarray(as_matrix(getattr(p[layer], side))) for p in (first, second))
            told = getattr(found[layer], side)
            sizes = np.linalg.norm(one), np.linalg.norm(other)
            np.testing.assert_allclose(told.cosine, np.sum(one * other) / np.prod(sizes), atol=1e-5)
            np.testing.assert_allclose(told.norm_ratio, sizes[0] / sizes[1], rtol=1e-5)
            want = np.linalg.norm(one - other) / sizes[1]
            np.testing.assert_allclose(told.difference, want, rtol=1e-5)


def test_a_sum_agrees_with_itself_and_strangers_do_not():
    first, second = patches(0), patches(50)
    both = combine_static(first, second)
    same = compare_static(both, combine_static(second, first)).joined()
    np.testing.assert_allclose(same.input.cosine, 1, atol=1e-5)
    np.testing.assert_allclose(same.down.difference, 0, atol=1e-5)
    twice = compare_static(scale_static(first, 2.0), first).joined()
    np.testing.assert_allclose(twice.down.norm_ratio, 2, rtol=1e-5)
    assert np.abs(compare_static(first, second).joined().input.cosine).max() < 0.9


def test_moved_patches_are_those_of_the_layer_below():
    first = patches(0)
    moved = move_layers(first, 1)
    for layer in range(3):
        jax.tree.map(np.testing.assert_array_equal, moved[layer], first[(layer - 1) % 3])


def test_patches_of_other_stacks_or_sides_are_refused():
    with pytest.raises(ValueError, match="of 3 layers .* and of 2"):
        compare_static(patches(0), patches(0, depth=2))
    with pytest.raises(ValueError, match="changes the down side"):
        compare_static(patches(0), patches(0, down=False))
    two = PerLayer(patches(0).segments * 2, (3, 3))
    with pytest.raises(ValueError, match="layers of different kinds"):
        move_layers(two, 1)
