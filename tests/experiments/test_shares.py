"""The share of a gap, with its interval."""

import numpy as np

from experiments.tools.shares import share_of_gap


def test_nothing_is_0_the_full_context_1_and_worse_than_nothing_below_0():
    alone, full = np.array([3.0, 5.0, 4.0]), np.array([1.0, 1.0, 1.0])
    assert share_of_gap(alone, full, alone).value == 0
    assert share_of_gap(alone, full, full) == (1.0, 1.0, 1.0)
    assert share_of_gap(alone, full, alone + 1).value < 0


def test_the_interval_is_of_the_cases_and_shrinks_with_their_number():
    rng = np.random.default_rng(0)
    widths = []
    for count in (10, 1000):
        alone, full = rng.normal(4, 0.1, count), rng.normal(0, 0.1, count)
        found = share_of_gap(alone, full, rng.normal(1, 1, count))
        assert found.low < found.value < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 3 and abs(found.value - 0.75) < 0.05
    assert str(share_of_gap([2.0, 2.0], [0.0, 0.0], [1.0, 1.0])) == "0.500 (0.500 to 0.500)"


def test_without_a_gap_there_is_no_share_and_a_draw_without_one_is_left_out():
    assert np.isnan(share_of_gap([1.0, 0.0], [0.0, 1.0], [0.0, 0.0])).all()
    # In one of 3^3 draws only the case without a gap is there.
    found = share_of_gap([1.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0])
    assert found.value == 0.5 and 0 <= found.low < found.high <= 1
