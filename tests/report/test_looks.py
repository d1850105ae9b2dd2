"""Roles: controls in grey and only they, one look per label, more than colour."""

import re

import pytest

from icl_jax.report import looks
from icl_jax.report.curves import Curve, curves
from tests.report.helpers import X, loss_panel, texts


@pytest.mark.parametrize("number", [1, 2, 3])
def test_controls_are_drawn_in_grey_and_only_they(number):
    def colours(role):
        svg = curves(
            [
                loss_panel(
                    curves=[Curve(str(i), X, X + i, X, X + 2 * i, role) for i in range(number)]
                )
            ]
        )
        group = re.findall(r'<g id="line2d_\d+">\s*<path d="[^"]*"[^>]*style="([^"]*)"', svg)
        found = {c for item in group for c in re.findall(r"stroke: (#[0-9a-f]{6})", item)}
        return found & set(sum(looks._COLOURS.values(), ()))

    def is_grey(colour):
        return len({colour[1:3], colour[3:5], colour[5:7]}) == 1

    assert len(colours("control")) == number
    assert all(is_grey(colour) for colour in colours("control"))
    assert len(colours("main")) == number
    assert not any(is_grey(colour) for colour in colours("main") | colours("second"))


def test_series_of_a_figure_differ_by_more_than_colour():
    given = looks.Looks("test")
    for role in looks.ROLES:
        for i in range(3):
            given.add(f"{role} {i}", role)
    drawn = [given[f"{role} {i}"] for role in looks.ROLES for i in range(3)]
    assert len({(str(look.line), look.marker) for look in drawn}) == len(drawn)


def test_a_label_looks_the_same_in_every_panel_and_stands_once_in_the_legend():
    svg = curves([loss_panel(), loss_panel(title="The same, log", log_y=True)])
    assert texts(svg).count("implicit update") == 1
