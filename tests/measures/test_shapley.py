"""Shapley values against the enumeration of all subsets, and greedy choices against all of them."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.measures.choice import greedy
from icl_jax.measures.shapley import all_orders, random_orders, shapley_values

PLAYERS = 4
WORTHS = np.random.default_rng(1).normal(size=2**PLAYERS)


def worth(players):
    """Of a set of players, whatever it is."""
    return WORTHS[sum(1 << player for player in players)]


def along(orders_SN):
    return np.array([[worth(order[:i]) for i in range(len(order) + 1)] for order in orders_SN])


def by_subsets(player):
    """Shapley's own formula."""
    others = [one for one in range(PLAYERS) if one != player]
    total = 0.0
    for size in range(PLAYERS):
        share = math.factorial(size) * math.factorial(PLAYERS - size - 1) / math.factorial(PLAYERS)
        for without in itertools.combinations(others, size):
            total += share * (worth((*without, player)) - worth(without))
    return total


def test_all_orders_give_the_values_of_the_formula_over_subsets():
    orders_SN = all_orders(PLAYERS)
    assert len({tuple(order) for order in orders_SN.tolist()}) == 24
    found = shapley_values(jax.random.key(0), orders_SN, jnp.asarray(along(orders_SN)))
    np.testing.assert_allclose(found.values_N, [by_subsets(one) for one in range(PLAYERS)])
    np.testing.assert_allclose(np.sum(found.values_N), WORTHS[-1] - WORTHS[0])


def test_drawn_orders_cover_the_exact_values_and_a_null_player_gets_nothing():
    orders_SN = random_orders(jax.random.key(3), 60, PLAYERS)
    assert np.array_equal(np.sort(orders_SN, axis=1), np.tile(np.arange(PLAYERS), (60, 1)))
    np.testing.assert_array_equal(orders_SN[1], orders_SN[0][::-1])
    found = shapley_values(jax.random.key(0), orders_SN, jnp.asarray(along(orders_SN.tolist())))
    exact_N = np.array([by_subsets(one) for one in range(PLAYERS)])
    covered = (found.low_N <= exact_N) & (exact_N <= found.high_N)
    assert covered.sum() >= 3
    # A worth that does not know player 2.
    null_SM = np.array(
        [[len(set(order[:i]) - {2}) for i in range(PLAYERS + 1)] for order in orders_SN.tolist()]
    )
    null = shapley_values(jax.random.key(0), orders_SN, jnp.asarray(null_SM, jnp.float32))
    np.testing.assert_allclose(null.values_N, [1, 1, 0, 1], atol=1e-6)


def test_orders_and_worths_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="N \\+ 1 prefixes"):
        shapley_values(jax.random.key(0), all_orders(3), jnp.zeros((6, 3)))
    with pytest.raises(ValueError, match="num_players=9"):
        all_orders(9)


def test_greedy_takes_the_best_next_one_and_of_a_sum_the_best_of_all():
    values_N = np.array([1.0, 5.0, 3.0, 4.0])
    order, reached = greedy(lambda sets_XN: sets_XN @ values_N, 4, 3)
    assert order.tolist() == [1, 3, 2] and reached.tolist() == [5.0, 9.0, 12.0]

    def sets_worth(sets_XN):
        return [worth(tuple(np.flatnonzero(one))) for one in sets_XN]

    order, reached = greedy(sets_worth, PLAYERS, 2)
    assert order[0] == max(range(PLAYERS), key=lambda one: worth((one,)))
    assert reached[1] == max(worth((order[0], one)) for one in range(PLAYERS) if one != order[0])


def test_greedy_refuses_what_cannot_be_chosen_and_passes_nan_by():
    with pytest.raises(ValueError, match="count must be at most num_items=2, got 3"):
        greedy(lambda sets_XN: sets_XN.sum(axis=1), 2, 3)
    with pytest.raises(ValueError, match="one number for each of 2 sets"):
        greedy(lambda sets_XN: 1.0, 2, 1)
    order, _ = greedy(lambda sets_XN: np.where(sets_XN[:, 0], np.nan, 1.0), 3, 1)
    assert order.tolist() == [1]
