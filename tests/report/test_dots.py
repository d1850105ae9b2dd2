"""Dots: an exact zero at the left edge, cases that were not measured, clear errors."""

import re

import numpy as np
import pytest

from icl_jax.report.dots import Reference, dots
from tests.report.helpers import texts


def test_an_exact_zero_is_marked_at_the_left_edge_of_a_dot_plot():
    def draw(value):
        return dots(["a", "b"], ["patched"], [[value], [1e-3]], x_label="error")

    marks = re.findall(r'<use [^>]*?x="([\d.]+)"[^>]*style="fill: var\(--f-0b5c94', draw(0.0))
    zero, other = (float(x) for x in marks[:2])
    assert zero < other
    assert "0" in texts(draw(0.0))
    assert "0" not in texts(draw(1e-5))


def test_dots_without_a_single_value_to_show_are_still_drawn():
    assert "a" in texts(dots(["a"], ["b"], [[np.nan]], x_label="error"))


def _dots(**changes):
    settings = {"rows": ["a"], "groups": ["g"], "values": [[1.0]], "x_label": "x"} | changes
    return dots(**settings)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: _dots(rows=[]), "dots: rows must not be empty"),
        (lambda: _dots(groups=[]), "dots: groups must not be empty"),
        (lambda: _dots(values=[[1.0, 2.0]]), r"dots: values must have shape .* \(1, 1, 1\)"),
        (lambda: _dots(values=[[-1.0]]), "dots: values must be finite and at least 0"),
        (lambda: _dots(roles=["null"]), "dots: role of 'g' must be one of"),
        (lambda: _dots(roles=[]), "dots: .* share one length, got groups: 1, roles: 0"),
        (lambda: _dots(references=[Reference(0.0, "r")]), "references must lie above 0"),
        (lambda: _dots(references=[Reference(1.0, "r", 1)]), "panel of reference 'r'"),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
