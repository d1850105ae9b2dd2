"""Heat maps: nothing to show, clear errors."""

import numpy as np
import pytest

from icl_jax.report.heatmaps import heatmaps
from tests.report.helpers import texts


def test_heat_maps_without_a_single_value_to_show_are_still_drawn():
    svg = heatmaps([np.full((2, 2), np.nan)], ["t"], x_label="x", y_label="y")
    assert "t" in texts(svg)


def _maps(**changes):
    settings = {"matrices": [np.eye(2)], "titles": ["t"], "x_label": "x", "y_label": "y"} | changes
    return heatmaps(**settings)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: _maps(matrices=[], titles=[]), "heatmaps: matrices must not be empty"),
        (lambda: _maps(titles=["t", "u"]), "share one length, got matrices: 1, titles: 2"),
        (lambda: _maps(matrices=[np.arange(6.0)]), r"matrices\[0\] must be a non-empty matrix"),
        (lambda: _maps(low=1.0, high=0.0), "low must be below high"),
        (lambda: _maps(x_ticks=["a"]), "x_ticks must name each of the 2 entries"),
        (lambda: _maps(matrices=[np.eye(11)], annotate=True), "annotate writes into at most 10"),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
