import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from icl_jax.measures.subspaces import (
    effective_rank,
    effective_rank_of_updates,
    leading_angles,
    principal_angles,
)
from icl_jax.patches.low_rank import LowRank, as_matrix
from tests.helpers import assert_close, compiled, normal

_angles = compiled(principal_angles)
_rank_of = compiled(effective_rank_of_updates)
_leading = jax.jit(leading_angles, static_argnums=2)


def test_effective_rank_counts_equal_directions():
    np.testing.assert_allclose(effective_rank(jnp.array([2.0, 2.0, 2.0, 0.0])), 3.0)
    np.testing.assert_allclose(effective_rank(jnp.array([7.0, 0.0])), 1.0)


def _stacked(seed, count, dtype=jnp.float64):
    return LowRank(
        normal(seed, count, 1, 6, dtype=dtype), normal(seed + 1, count, 1, 9, dtype=dtype)
    )


def _flattened(updates):
    return jax.vmap(as_matrix)(updates).reshape(updates.left_RD.shape[0], -1)


def test_effective_rank_of_updates_by_hand():
    # The same direction twice and another: lengths sqrt(2) and sqrt(2), two equal singular values.
    east, north = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 1.0]])
    updates = LowRank(
        jnp.stack([east, east, east]), jnp.stack([east, -east, jnp.sqrt(2.0) * north])
    )
    np.testing.assert_allclose(_rank_of(updates), 2.0, rtol=1e-12)
    np.testing.assert_allclose(_rank_of(3 * jnp.eye(4)), 4.0, rtol=1e-12)
    # Singular values 3 and 1: shares of 3/4 and 1/4.
    expected = np.exp(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    np.testing.assert_allclose(_rank_of(jnp.diag(jnp.array([3.0, 1.0]))), expected)


@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_effective_rank_of_updates_is_that_of_the_flattened_matrices(count):
    updates = _stacked(20, count)
    flat = _flattened(updates)
    expected = effective_rank(jnp.linalg.svd(flat, compute_uv=False))
    np.testing.assert_allclose(_rank_of(updates), expected, rtol=1e-11)
    np.testing.assert_allclose(_rank_of(flat), expected, rtol=1e-11)


def test_rounding_is_no_direction():
    # Forty copies in float32: what rounding leaves of 39 directions would count as a tenth of one.
    one = _stacked(30, 1, jnp.float32)
    scales = normal(31, 40, 1, 1, dtype="float32")
    copies = LowRank(one.left_RD / scales, one.right_RH * scales)
    np.testing.assert_allclose(_rank_of(copies), 1.0, rtol=1e-6)
    np.testing.assert_allclose(_rank_of(_flattened(copies)), 1.0, rtol=1e-6)


def test_effective_rank_of_updates_does_not_leave_the_range_of_float32():
    updates = _stacked(32, 5, jnp.float32)
    tiny = LowRank(updates.left_RD * 1e30, updates.right_RH * 1e-25)
    expected = _rank_of(updates)
    np.testing.assert_allclose(_rank_of(tiny), expected, rtol=1e-4)


def test_an_update_of_zero_adds_no_direction():
    updates = _stacked(33, 4)
    padded = jax.tree.map(lambda leaf: jnp.concatenate([leaf, jnp.zeros_like(leaf[:1])]), updates)
    np.testing.assert_allclose(_rank_of(padded), _rank_of(updates), rtol=1e-12)
    assert jnp.isnan(_rank_of(jnp.zeros((3, 5))))


def test_effective_rank_of_updates_refuses_other_shapes():
    with pytest.raises(ValueError, match="rank-1 updates"):
        _rank_of(LowRank(jnp.ones((4, 2, 6)), jnp.ones((4, 2, 9))))
    with pytest.raises(ValueError, match="updates must have 2 axes"):
        _rank_of(jnp.ones((4, 6, 9)))


def test_principal_angles_by_hand():
    # The xy plane and a plane through x that is tilted by 0.3.
    first = jnp.array([[1.0, 1.0, 0.0], [1.0, -2.0, 0.0]])
    second = jnp.array([[5.0, 0.0, 0.0], [1.0, np.cos(0.3), np.sin(0.3)]])
    np.testing.assert_allclose(_angles(first, second), [0.0, 0.3], atol=1e-14)
    line = jnp.array([[0.0, 0.0, 2.0]])
    np.testing.assert_allclose(_angles(first, line), [np.pi / 2], rtol=1e-15)


@pytest.mark.parametrize(("num_first", "num_second"), [(1, 1), (3, 3), (2, 5), (5, 2), (6, 7)])
def test_principal_angles_are_scipys(num_first, num_second):
    first, second = normal(40, num_first, 10), normal(41, num_second, 10)
    expected = scipy.linalg.subspace_angles(np.asarray(first).T, np.asarray(second).T)[::-1]
    angles = _angles(first, second)
    np.testing.assert_allclose(angles, expected, atol=1e-12)
    np.testing.assert_allclose(_angles(second, first), expected, atol=1e-12)


def test_principal_angles_depend_on_the_spans_alone():
    first, second = normal(42, 3, 8), normal(43, 4, 8)
    mixed = 1e6 * normal(44, 3, 3) @ first
    assert_close(_angles(mixed, second), _angles(first, second), 8, condition=100)
    np.testing.assert_allclose(_angles(first, mixed), 0, atol=1e-13)


def test_small_principal_angles_keep_their_digits():
    # The cosine of 1e-9 rounds to 1 in float64.
    first = jnp.eye(2, 6)
    second = first.at[1, 4].set(1e-9)
    angles = _angles(first, second)
    np.testing.assert_allclose(angles, [0.0, 1e-9], rtol=1e-12, atol=1e-24)


def test_vectors_that_depend_on_each_other_have_no_angles():
    first, second = normal(45, 2, 6), normal(46, 3, 6)
    twice = jnp.concatenate([first, first[:1] + first[1:]])
    assert np.all(np.isnan(_angles(twice, second)))
    assert np.all(np.isnan(_angles(second, twice)))
    assert np.all(np.isnan(_angles(first.at[0].set(0.0), second)))


def test_principal_angles_check_their_arguments():
    with pytest.raises(ValueError, match="second_YD has more vectors than dimensions"):
        _angles(jnp.ones((2, 3)), jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="the first's D"):
        _angles(jnp.ones((2, 3)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match="first_XD must have 2 axes"):
        _angles(jnp.ones(3), jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="share one dtype"):
        _angles(jnp.ones((2, 3)), jnp.ones((2, 3), jnp.float32))


def test_batches_are_loops():
    first, second = normal(47, 3, 2, 6), normal(48, 3, 4, 6)
    angles = jax.jit(jax.vmap(principal_angles))(first, second)
    loop = jnp.stack([_angles(a, b) for a, b in zip(first, second, strict=True)])
    np.testing.assert_allclose(angles, loop, rtol=1e-12)
    ranks = jax.jit(jax.vmap(effective_rank_of_updates))(second)
    np.testing.assert_allclose(ranks, [_rank_of(a) for a in second], rtol=1e-12)


def test_leading_angles_by_hand():
    # Mostly along e1 and e2, against e1 and a direction tilted by 0.4 from e2.
    e1, e2, e3 = jnp.eye(3)[:, None, :]
    lefts, rights = jnp.ones((3, 1, 1)), jnp.stack([5 * e1, -3 * e2, 0.1 * e3])
    tilted = jnp.cos(0.4) * e2 + jnp.sin(0.4) * e3
    second = jnp.stack([2 * e1, tilted, -4 * tilted])
    np.testing.assert_allclose(
        _leading(LowRank(lefts, rights), second, 2), [0, 0.4], rtol=1e-7, atol=1e-7
    )
    np.testing.assert_allclose(_leading(LowRank(lefts, rights), second, 1), [np.pi / 2], rtol=1e-7)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_leading_angles_are_those_of_the_leading_singular_vectors(count):
    first, second = _stacked(50, 5), normal(51, 7, 6, 9)
    spans = [
        np.linalg.svd(rows, full_matrices=False)[2][:count]
        for rows in (_flattened(first), second.reshape(7, -1))
    ]
    expected = scipy.linalg.subspace_angles(spans[0].T, spans[1].T)[::-1]
    np.testing.assert_allclose(_leading(first, second, count), expected, rtol=1e-7)
    # How far the paths go does not matter, nor does the split of the factors.
    scaled = LowRank(1e25 * first.left_RD, 1e-20 * first.right_RH)
    np.testing.assert_allclose(_leading(scaled, 1e5 * second, count), expected, rtol=1e-7)


def test_a_path_of_fewer_directions_has_no_leading_angles():
    first, second = _stacked(52, 5), normal(53, 4, 6, 9)
    copies = jax.tree.map(lambda leaf: jnp.repeat(leaf[:1], 5, axis=0), first)
    assert np.isfinite(_leading(copies, second, 1)).all()
    assert np.isnan(_leading(copies, second, 2)).all()
    with pytest.raises(ValueError, match="count must be at most 4, .* got 5"):
        _leading(first, second, 5)
    with pytest.raises(ValueError, match="rank-1 updates"):
        _leading(LowRank(jnp.ones((4, 2, 6)), jnp.ones((4, 2, 9))), second, 1)
    with pytest.raises(ValueError, match="second must have 3 axes"):
        _leading(first, second[0], 1)
