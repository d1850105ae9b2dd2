"""What becomes of a measure's values per task: numbers, words, and the picture with its nulls."""

import jax
import numpy as np
import pytest

from experiments.language.classification.report import CALLED
from experiments.tools.comparisons import (
    Measured,
    against_best,
    compared,
    joined,
    panel,
    summaries,
    table,
    verdict,
    with_nulls,
)

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


def values(mean, spread=0.1):
    return (mean + spread * RNG.standard_normal((3, 40))).astype(np.float32)


MEASURED = {
    "sensitivity_cosine": Measured(values(0.9), {"random": values(0.0), "untrained": values(0.5)}),
    # Smaller is closer here: one null is nearer, one is the same.
    "model_difference": Measured(values(0.8), {"random": values(0.2)}),
    "kl": Measured(values(1.0, 0.3), {"shuffled": values(1.0, 0.3)}),
}


def test_a_verdict_says_of_every_measure_which_side_of_its_nulls_it_is_on():
    found = compared(KEY, MEASURED, (-1,))
    assert set(found) == {"sensitivity_cosine", "model_difference", "kl"}
    value = MEASURED["sensitivity_cosine"].value[-1].mean()
    closer, other, same = (sentence for sentence in verdict(found).split(". ") if sentence)
    margin = summaries(found)["sensitivity_cosine"]["margin"]
    null = MEASURED["sensitivity_cosine"].nulls["untrained"][-1].mean()
    assert closer.startswith(
        f"Closer than every null: cosine of the sensitivities {value:.3g} (nearest null: "
        f"untrained, {null:.3g}; margin {margin:.3g} ("
    )
    assert other.startswith("No closer than the nearest null: relative difference")
    assert "(nearest null: random update, 0." in other
    assert same.startswith("Not to be told from the nearest null: KL divergence (nats)")


def test_a_null_has_the_same_name_in_table_and_verdict():
    measured = {"kl": Measured(values(1.0), {"another": values(0.1)})}
    found = compared(KEY, measured, (-1,))
    assert "another task" in table(found, "").header and "null: another task," in verdict(found)
    told = table(found, "", CALLED).header, verdict(found, CALLED)
    assert "another prompt's" in told[0] and "null: another prompt's," in told[1]
    assert "another task" not in f"{told}"


def test_a_loss_is_told_beside_the_best_of_its_baselines_even_where_it_loses():
    losses = {"zero predictor": 1.0, "averaging": 0.1}
    assert against_best("In context", 0.2, losses) == (
        "In context 0.200 is worse than averaging, the best of 2 baselines, at 0.100."
    )
    assert against_best("In context", 0.05, losses).startswith("In context 0.0500 is better than")
    assert against_best("It", 1.0, {"zero": 1.0}) == "It 1.00 is the same as zero, at 1.00."


def test_every_baseline_and_every_null_that_beats_a_loss_is_named_with_its_number():
    losses = {"zero": 2.0, "averaging": 0.0586, "ridge": 0.01, "least squares": 1e-12}
    nulls = {"untrained": 0.5, "untrained, fine-tuned": 0.0131}
    assert against_best("It", 0.0593, losses, nulls) == (
        "It 0.0593 is worse than least squares, the best of 4 baselines, at 1.0e-12, and than "
        "ridge (0.0100) and averaging (0.0586). Nearest of 2 nulls: untrained, fine-tuned "
        "(0.0131), which beats it."
    )
    told = against_best("It", 0.118, {"zero": 2.0}, {**nulls, "random": 0.1, "shuffled": 0.11})
    assert told == (
        "It 0.118 is better than zero, at 2.00. Nearest of 4 nulls: untrained, fine-tuned "
        "(0.0131), which beats it, as do random (0.100) and shuffled (0.110)."
    )
    assert against_best("It", 0.1, {"zero": 2.0}, {"untrained": 0.5}).endswith(
        "at 2.00. The null: untrained (0.500)."
    )


def test_a_measure_or_a_null_that_nobody_has_described_is_an_error():
    with pytest.raises(ValueError, match="cosinus: not among .*kl, .* Describe it in"):
        with_nulls({"cosinus": values(1)}, {})
    with pytest.raises(ValueError, match="untrian: not among"):
        with_nulls({"kl": values(1)}, {"untrian": {"kl": values(1)}})
    with pytest.raises(ValueError, match="the null 'random' has ilwd, the pair kl"):
        with_nulls({"kl": values(1)}, {"random": {"ilwd": values(1)}})
    with pytest.raises(KeyError, match="update_cosine"):
        panel(KEY, MEASURED, "update_cosine", [1, 2, 3], "examples")


def test_another_models_measures_become_one_more_null():
    mine = with_nulls({"kl": values(1)}, {"random": {"kl": values(2)}})
    found = joined(mine, "untrained", with_nulls({"kl": values(3)}, {"random": {"kl": values(4)}}))
    assert list(found["kl"].nulls) == ["random", "untrained"]
    assert found["kl"].nulls["untrained"].mean() == pytest.approx(3, abs=0.1)


def test_the_margin_is_over_the_nearest_null():
    found = summaries(compared(KEY, MEASURED, (0,)))["sensitivity_cosine"]
    expected = (
        MEASURED["sensitivity_cosine"].value[0].mean()
        - MEASURED["sensitivity_cosine"].nulls["untrained"][0].mean()
    )
    np.testing.assert_allclose(found["margin"], expected, rtol=1e-5)
    low, high = found["margin_interval"]
    assert low < found["margin"] < high


def test_a_null_that_is_tied_by_construction_has_no_part_in_the_margin():
    gap = values(0.5)
    measured = {"norm_gap": Measured(gap, {"random": gap, "untrained": gap + 1})}
    found = summaries(compared(KEY, measured, (0,)))["norm_gap"]
    np.testing.assert_allclose(found["margin"], 1, rtol=1e-5)
    assert found["random"] == pytest.approx(found["value"], rel=1e-6)


def test_a_table_has_a_row_per_measure_and_a_column_per_null():
    made = table(compared(KEY, MEASURED, (0,)), "caption")
    assert made.header == (
        "measure",
        "value",
        *("random update", "untrained", "shuffled labels"),
        "margin over the nearest null",
    )
    assert len(made.rows) == 3 and {len(row) for row in made.rows} == {6}


def test_nulls_are_drawn_as_controls_with_intervals():
    made = panel(KEY, MEASURED, "sensitivity_cosine", [1, 2, 3], "examples")
    roles = {curve.label: curve.role for curve in made.curves}
    assert roles == {"trained learner": "main", "random update": "control", "untrained": "control"}
    for curve in made.curves:
        assert np.all(curve.low < curve.y) and np.all(curve.y < curve.high)
