"""Sweeps are lists, made from smaller lists, the same every time."""

import doctest
import math

import pytest

from launch import combinators
from launch.combinators import (
    chain,
    choice,
    grid,
    integers,
    log_uniform,
    product,
    random,
    seeds,
    uniform,
    zipped,
)


def test_a_grid_is_every_combination_the_last_axis_fastest():
    assert grid({"a": (1, 2), "b.c": "xy"}) == [
        {"a": 1, "b.c": "x"},
        {"a": 1, "b.c": "y"},
        {"a": 2, "b.c": "x"},
        {"a": 2, "b.c": "y"},
    ]
    assert grid({}) == [{}]
    assert grid({"a": ()}) == []


def test_zipped_takes_the_axes_side_by_side_and_wants_them_equally_long():
    assert zipped({"a": (1, 2), "b": (3, 4)}) == [{"a": 1, "b": 3}, {"a": 2, "b": 4}]
    with pytest.raises(ValueError, match=r"zipped: .* equally long, got \{'a': 2, 'b': 1\}"):
        zipped({"a": (1, 2), "b": (3,)})


def test_a_chain_appends_and_a_product_multiplies():
    one, two = grid({"a": (1, 2)}), seeds("s", 2, start=5)
    assert chain(one, two) == [{"a": 1}, {"a": 2}, {"s": 5}, {"s": 6}]
    assert product(one, two) == grid({"a": (1, 2), "s": (5, 6)})
    assert product(one) == one
    with pytest.raises(ValueError, match="product: 'a' is set by two of the lists"):
        product(one, grid({"a": (3,)}))


def test_random_settings_repeat_and_a_longer_list_begins_with_the_shorter():
    axes = {"rate": log_uniform(1e-4, 1e-1), "width": choice((16, 32))}
    short, long = random(axes, count=4, seed=0), random(axes, count=9, seed=0)
    assert long[:4] == short and len(long) == 9
    assert random(axes, count=4, seed=1) != short
    # An axis more leaves the others as they are.
    wider = random({"depth": integers(1, 3), **axes}, count=4, seed=0)
    assert [{k: v for k, v in point.items() if k != "depth"} for point in wider] == short


def test_draws_stay_in_their_ranges():
    axes = {"u": uniform(-1, 1), "l": log_uniform(1e-3, 1e3), "i": integers(2, 4)}
    points = random(axes, count=400, seed=3)
    assert all(-1 <= point["u"] <= 1 and 1e-3 <= point["l"] <= 1e3 for point in points)
    assert {point["i"] for point in points} == {2, 3, 4}
    # Uniform in the logarithm: half of the draws lie below 1, 200 with a deviation of 10.
    assert 150 < sum(math.log(point["l"]) < 0 for point in points) < 250
    with pytest.raises(ValueError, match="log_uniform: 0 < low <= high is needed, got 0 and 1"):
        log_uniform(0, 1)


def test_the_examples_of_the_docstrings_hold():
    assert doctest.testmod(combinators).failed == 0
