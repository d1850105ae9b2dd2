"""What becomes of a measure's values per task: numbers, words, and the picture with its nulls."""

import jax
import numpy as np

from experiments.tools.comparisons import compared, panel, summaries, table, verdict

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def values(mean, spread=0.1):
    return (mean + spread * RNG.standard_normal((3, 40))).astype(np.float32)


ARRAYS = {
    "measures.sensitivity_cosine": values(0.9),
    "measures.sensitivity_cosine.random": values(0.0),
    "measures.sensitivity_cosine.untrained": values(0.5),
    # Smaller is closer here: one null is nearer, one is the same.
    "measures.model_difference": values(0.8),
    "measures.model_difference.random": values(0.2),
    "measures.kl": values(1.0, 0.3),
    "measures.kl.shuffled": values(1.0, 0.3),
    "losses": values(3.0),
}


def test_a_verdict_says_of_every_measure_which_side_of_its_nulls_it_is_on():
    found = compared(KEY, ARRAYS, (-1,))
    assert set(found) == {"sensitivity_cosine", "model_difference", "kl"}
    value = ARRAYS["measures.sensitivity_cosine"][-1].mean()
    closer, other, same = (sentence for sentence in verdict(found).split(". ") if sentence)
    margin = summaries(found)["sensitivity_cosine"]["margin"]
    assert closer.startswith(
        f"Closer than every null: cosine of the sensitivities {value:.3g}, margin {margin:.3g} ("
    )
    assert other.startswith("No closer than the best null: relative difference")
    assert same.startswith("Not to be told from the best null: KL divergence (nats)")


def test_the_margin_is_over_the_nearest_null():
    found = summaries(compared(KEY, ARRAYS, (0,)))["sensitivity_cosine"]
    expected = (
        ARRAYS["measures.sensitivity_cosine"][0].mean()
        - ARRAYS["measures.sensitivity_cosine.untrained"][0].mean()
    )
    np.testing.assert_allclose(found["margin"], expected, rtol=1e-5)
    low, high = found["margin_interval"]
    assert low < found["margin"] < high


def test_a_null_that_is_tied_by_construction_has_no_part_in_the_margin():
    gap = values(0.5)
    arrays = {
        "measures.norm_gap": gap,
        "measures.norm_gap.random": gap,
        "measures.norm_gap.untrained": gap + 1,
    }
    found = summaries(compared(KEY, arrays, (0,)))["norm_gap"]
    np.testing.assert_allclose(found["margin"], 1, rtol=1e-5)
    assert found["random"] == found["value"]


def test_a_table_has_a_row_per_measure_and_a_column_per_null():
    made = table(compared(KEY, ARRAYS, (0,)), "caption")
    assert made.header == (
        "measure",
        "value",
        *("random", "untrained", "shuffled"),
        "margin over the best null",
    )
    assert len(made.rows) == 3 and {len(row) for row in made.rows} == {6}


def test_nulls_are_drawn_as_controls_with_intervals():
    made = panel(KEY, ARRAYS, "sensitivity_cosine", [1, 2, 3], "examples")
    roles = {curve.label: curve.role for curve in made.curves}
    assert roles == {"trained learner": "main", "random": "control", "untrained": "control"}
    for curve in made.curves:
        assert np.all(curve.low < curve.y) and np.all(curve.y < curve.high)
