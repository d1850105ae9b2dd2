"""Estimates: cases have names, nothing is joined, what lies outside is told, clear errors."""

import re

import numpy as np
import pytest

from icl_jax.report.dots import Reference
from icl_jax.report.estimates import estimates
from tests.report.helpers import texts


def _draw(**changes):
    values = np.array([[0.5, -0.2], [0.9, 0.1]])
    settings = {
        "rows": ["capitals", "past tense"],
        "groups": ["closed", "LoRA"],
        "values": values,
        "low": values - 0.1,
        "high": values + 0.1,
        "x_label": "share of the gap",
    }
    return estimates(**(settings | changes))


def paths(svg, colour):
    """The lines of a colour: where each begins, and where it goes."""
    found = re.findall(rf'<path d="([^"]*)"[^>]*style="[^"]*stroke: var\(--f-{colour}', svg)
    return [[float(x) for x in re.findall(r"-?[\d.]+", one)] for one in found]


def test_cases_have_names_and_no_line_goes_from_one_to_another():
    svg = _draw()
    assert {"capitals", "past tense", "closed", "LoRA"} <= set(texts(svg))
    lines = [one for one in paths(svg, "0b5c94") if len(one) == 4]
    assert len(lines) >= 2
    for _, y_0, _, y_1 in lines:
        assert y_0 == y_1  # An interval, within its row.


def test_an_interval_is_as_wide_as_it_is():
    wide = np.array([[0.3, -0.3], [0.7, 0.0]]), np.array([[0.7, -0.1], [1.1, 0.2]])
    svg = _draw(low=wide[0], high=wide[1], limits=(-1.0, 1.6))
    lengths = [abs(one[2] - one[0]) for one in paths(svg, "0b5c94") if len(one) == 4]
    usual = _draw(limits=(-1.0, 1.6))
    before = [abs(one[2] - one[0]) for one in paths(usual, "0b5c94") if len(one) == 4]
    np.testing.assert_allclose(lengths[:2], np.multiply(before[:2], 2), rtol=1e-3)


def test_what_lies_outside_is_an_arrow_at_the_edge():
    def marks(svg):
        return len(set(re.findall(r'<use xlink:href="#(m\w+)"', svg)))

    far = np.array([[9.0, -0.2], [0.9, 0.1]])
    inside = marks(_draw(limits=(-1.0, 1.6)))
    assert marks(_draw(values=far, high=far + 0.1, limits=(-1.0, 1.6))) == inside + 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": []}, "estimates: rows must not be empty"),
        ({"groups": []}, "estimates: groups must not be empty"),
        ({"low": [[1.0]]}, r"low must be finite .* = \(2, 2\), got \(1, 1\)"),
        ({"values": np.full((2, 2), np.inf)}, "values must be finite"),
        ({"roles": ["null", "main"]}, "role of 'closed' must be one of"),
        ({"references": [Reference(1.0, "r", 1)]}, "panel of reference 'r'"),
    ],
)
def test_bad_input_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        _draw(**changes)
