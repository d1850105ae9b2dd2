import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.measures.weight_space import (
    alignment,
    cosine,
    norm_ratio,
    off_diagonal_mean,
)
from icl_jax.patches.low_rank import LowRank, as_matrix


def _update(seed, rank=1, dtype=jnp.float64):
    left_key, right_key = jax.random.split(jax.random.key(seed))
    return LowRank(
        jax.random.normal(left_key, (rank, 6), dtype),
        jax.random.normal(right_key, (rank, 9), dtype),
    )


def _matrix_cosine(first, second):
    return np.vdot(first, second) / np.linalg.norm(first) / np.linalg.norm(second)


@pytest.mark.parametrize("rank", [1, 3])
def test_cosine_is_that_of_the_matrices(rank):
    first, second = _update(0, rank), _update(1, rank)
    expected = _matrix_cosine(as_matrix(first), as_matrix(second))
    np.testing.assert_allclose(cosine(first, second), expected, rtol=1e-12)
    np.testing.assert_allclose(cosine(first, as_matrix(second)), expected, rtol=1e-12)


def test_cosine_by_hand():
    east = LowRank(jnp.array([[1.0, 0.0]]), jnp.array([[2.0, 0.0]]))
    diagonal = LowRank(jnp.array([[3.0, 0.0]]), jnp.array([[1.0, 1.0]]))
    np.testing.assert_allclose(cosine(east, diagonal), np.sqrt(0.5))
    np.testing.assert_allclose(cosine(east, LowRank(-east.left_RD, east.right_RH)), -1.0)


def test_an_update_of_zero_has_no_angle():
    nothing = LowRank(jnp.zeros((1, 6)), jnp.zeros((1, 9)))
    assert jnp.isnan(cosine(_update(0), nothing))


def test_cosine_refuses_a_batch_of_matrices():
    with pytest.raises(ValueError, match="second must have 2 axes"):
        cosine(_update(0), jnp.ones((2, 6, 9)))


def test_alignment_is_every_pair_of_cosines():
    updates = jax.vmap(
        lambda key: LowRank(
            jax.random.normal(key, (1, 6), jnp.float64), jax.random.normal(key, (1, 9), jnp.float64)
        )
    )(jax.random.split(jax.random.key(0), 4))
    matrices = [as_matrix(jax.tree.map(lambda leaf, i=i: leaf[i], updates)) for i in range(4)]
    expected = [[_matrix_cosine(a, b) for b in matrices] for a in matrices]
    np.testing.assert_allclose(alignment(updates), expected, atol=1e-12)


def test_alignment_refuses_updates_of_higher_rank():
    with pytest.raises(ValueError, match="rank-1 updates"):
        alignment(LowRank(jnp.ones((4, 2, 6)), jnp.ones((4, 2, 9))))


def test_random_updates_do_not_align():
    updates = jax.vmap(
        lambda key: LowRank(
            jax.random.normal(jax.random.fold_in(key, 0), (1, 64)),
            jax.random.normal(jax.random.fold_in(key, 1), (1, 64)),
        )
    )(jax.random.split(jax.random.key(0), 40))
    # Cosines of independent rank-1 updates are products of two with standard deviation 1/8.
    assert abs(off_diagonal_mean(alignment(updates))) < 5 / 64 / np.sqrt(780)


def test_off_diagonal_mean_leaves_the_diagonal_out():
    matrix = jnp.array([[5.0, 1.0, 2.0], [1.0, 5.0, 3.0], [2.0, 3.0, 5.0]])
    np.testing.assert_allclose(off_diagonal_mean(matrix), 2.0)


def test_measures_are_the_same_compiled():
    first, second = _update(2), _update(3)
    chex.assert_trees_all_close(jax.jit(cosine)(first, second), cosine(first, second), rtol=1e-14)


@pytest.mark.parametrize("rank", [1, 3])
def test_norm_ratio_is_that_of_the_matrices(rank):
    first, second = _update(4, rank), _update(5, rank)
    expected = np.linalg.norm(as_matrix(first)) / np.linalg.norm(as_matrix(second))
    np.testing.assert_allclose(norm_ratio(first, second), expected, rtol=1e-13)
    np.testing.assert_allclose(norm_ratio(first, as_matrix(second)), expected, rtol=1e-13)


def test_norm_ratio_by_hand():
    first = LowRank(jnp.array([[3.0, 4.0]]), jnp.array([[2.0, 0.0]]))
    np.testing.assert_allclose(norm_ratio(first, jnp.full((2, 2), 2.0)), 10 / 4)
    assert jnp.isposinf(norm_ratio(first, jnp.zeros((2, 2))))
    with pytest.raises(ValueError, match="norm_ratio: second must have 2 axes"):
        norm_ratio(first, jnp.ones((3, 2, 2)))
