"""experiments.equivalence says which null comes nearest to a patched run."""

import pytest

from experiments.regression import equivalence
from icl_jax.report.page import number


def summary(**nulls):
    """As measured, with these errors of the nulls in every case."""
    config = equivalence.Config()
    one = {"patched": 1e-14, "open_loop": 1e-13, "largest_relative_change": 0.5, **nulls}
    cases = dict.fromkeys(equivalence.cases(config), one)
    layers = dict.fromkeys(equivalence.LAYERS, one)
    return config, {"float32": cases, "float64": cases, "layers": layers}


@pytest.mark.parametrize("nearest", equivalence.NULLS)
def test_both_verdicts_name_the_nearest_null(nearest):
    errors = dict.fromkeys(equivalence.NULLS, 0.9) | {nearest: 0.2}
    for section in equivalence.sections(*summary(**errors)):
        assert f"The nearest null is {nearest}, off by at least {number(0.2)} (" in section.verdict
        for other in set(equivalence.NULLS) - {nearest}:
            assert f"{other} {number(0.9)}" in section.verdict


def test_every_layer_of_the_library_is_named():
    section = equivalence.sections(*summary(**dict.fromkeys(equivalence.NULLS, 0.9)))[1]
    assert ", ".join(equivalence.LAYERS) in section.text
