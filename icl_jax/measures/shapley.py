"""Who of N contributed how much to a worth: Shapley values, sampled with intervals, and exact.

A player's value is the mean, over orders in which the players arrive, of what the worth gains when
it does. The worth is measured by the caller: the loss of a query after the players so far, such as
the prefixes of a context whose demonstrations stand in that order, which one prefix pass gives.
"""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from icl_jax import checks
from icl_jax.dims import Array, accumulator
from icl_jax.measures.intervals import bootstrap_mean


class Shapley(NamedTuple):
    """N values, each with the ends of its interval over orders.

    Examples:
      >>> worths = jnp.array([[0.0, 1.0, 3.0], [0.0, 2.0, 3.0]])
      >>> found = shapley_values(jax.random.key(0), all_orders(2), worths)
      >>> found.values_N.tolist(), bool(jnp.all(found.low_N <= found.high_N))
      ([1.0, 2.0], True)
    """

    values_N: Array
    low_N: Array
    high_N: Array


def random_orders(key: Array, num_orders: int, num_players: int) -> Array:
    """Orders (S, N) of the players, each second one the reverse of the one before it.

    A pair is a random order and its mirror image, which takes most of the noise out of values that
    depend on who came early.

    Raises:
      ValueError: no orders or players.
      TypeError: no PRNG key.

    Examples:
      >>> orders = random_orders(jax.random.key(0), 2, 3)
      >>> (orders[1] == orders[0][::-1]).tolist()
      [True, True, True]
    """
    checks.prng_key("random_orders", "key", key)
    checks.positive_int("random_orders", "num_orders", num_orders)
    checks.positive_int("random_orders", "num_players", num_players)
    keys = jax.random.split(key, (num_orders + 1) // 2)
    half_SN = jax.vmap(lambda one: jax.random.permutation(one, num_players))(keys)
    both = jnp.stack([half_SN, half_SN[:, ::-1]], axis=1)
    return both.reshape(-1, num_players)[:num_orders]


def all_orders(num_players: int) -> np.ndarray:
    """Every order (N!, N), for exact values of a few players.

    Raises:
      ValueError: more than 8 players, whose orders are 40,320 and more.

    Examples:
      >>> all_orders(2).tolist()
      [[0, 1], [1, 0]]
    """
    checks.positive_int("all_orders", "num_players", num_players)
    if num_players > 8:
        raise ValueError(
            f"all_orders: num_players={num_players} have more than 300,000 orders. Draw some: "
            "random_orders."
        )
    return np.array(list(itertools.permutations(range(num_players))), np.int32)


def shapley_values(
    key: Array, orders_SN: Array, worths_SM: Array, *, level: float = 0.95
) -> Shapley:
    """Values from the worth of every prefix of some orders; exact when these are all orders.

    The values add up to the worth of all minus that of none (the mean of it, where a worth depends
    on the order, as a transformer's does: then a player's value is the mean over orders, too).

    Args:
      key: of the interval's resampling.
      orders_SN: (S, N), who arrives first, second, ...
      worths_SM: (S, M), M = N + 1: the worth of nobody, of the first, ..., of all.
      level: probability that an interval covers.

    Raises:
      ValueError: shapes that do not fit, fewer than two orders, or (where they can be read) rows
        that are no orders of the players.
      TypeError: worths that are not floating point, orders that are not integers, or no PRNG key.

    Examples:
      >>> worths = jnp.array([[0.0, 1.0, 3.0], [0.0, 2.0, 3.0]])  # the second player is worth 2
      >>> shapley_values(jax.random.key(0), all_orders(2), worths).values_N.tolist()
      [1.0, 2.0]

    Source: Shapley 1953; sampled over orders as in Castro, Gomez and Tejada 2009.
    """
    where = "shapley_values"
    checks.prng_key(where, "key", key)
    checks.rank(where, "orders_SN", orders_SN, 2, "(S, N)")
    checks.rank(where, "worths_SM", worths_SM, 2, "(S, M)")
    checks.axis_size(where, "worths_SM", worths_SM, 0, orders_SN.shape[0], "one per order")
    checks.axis_size(where, "worths_SM", worths_SM, 1, orders_SN.shape[1] + 1, "N + 1 prefixes")
    checks.floating(where, "worths_SM", worths_SM)
    _check_orders(where, orders_SN)
    wide_SM = worths_SM.astype(accumulator(worths_SM.dtype))
    gains_SN = wide_SM[:, 1:] - wide_SM[:, :-1]

    def by_player(order_N: Array, gain_N: Array) -> Array:
        return jnp.zeros_like(gain_N).at[order_N].set(gain_N)

    values_SN = jax.vmap(by_player)(jnp.asarray(orders_SN), gains_SN)
    return Shapley(*bootstrap_mean(key, values_SN, level=level))


def _check_orders(where: str, orders_SN: Array) -> None:
    if not jnp.issubdtype(jnp.result_type(orders_SN), jnp.integer):
        dtype = jnp.result_type(orders_SN)
        raise TypeError(f"{where}: orders_SN must hold integers, got dtype {dtype}.")
    if checks.is_concrete(orders_SN):
        orders = np.asarray(orders_SN)
        wrong = np.flatnonzero(np.any(np.sort(orders) != np.arange(orders.shape[1]), axis=1))
        if wrong.size:
            raise ValueError(
                f"{where}: row {wrong[0]} of orders_SN is no order of {orders.shape[1]} players: "
                f"{orders[wrong[0]].tolist()}. Each of 0 to {orders.shape[1] - 1} comes once."
            )
