"""Roles: controls in grey and only they, one look per label, more than colour."""

import re

import pytest

from icl_jax.report import looks, style
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
        found = {
            c for item in group for c in re.findall(r"stroke: var\([^,]*, (#[0-9a-f]{6})", item)
        }
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


def test_no_two_series_of_a_figure_look_the_same_and_one_too_many_is_refused():
    given = looks.Looks("test")
    for role, points in looks._POINTS.items():
        for i in range(len(points)):
            given.add(f"{role} {i}", role)
    drawn = [look for label in given._looks for look in [given[label]]]
    assert len({look.point for look in drawn}) == len(drawn)
    assert len({(look.colour, str(look.line), look.marker) for look in drawn}) == len(drawn)
    with pytest.raises(ValueError, match="'ten' is one control more than the 9 that can be told"):
        given.add("ten", "control")


def contrast(first, second):
    """The ratio of WCAG 2.1."""

    def luminance(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    bright, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colour", sum(looks._COLOURS.values(), (style.INK,)))
def test_what_is_drawn_stands_out_from_both_plates(colour):
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast(colour, "#ffffff") >= 3
    assert contrast(style.DARK[colour], style.DARK["#ffffff"]) >= 3


def test_a_label_looks_the_same_in_every_panel_and_stands_once_in_the_legend():
    svg = curves([loss_panel(), loss_panel(title="The same, log", log_y=True)])
    assert texts(svg).count("implicit update") == 1


def test_no_series_has_a_marker_of_what_is_beyond_an_axis():
    given = looks.Looks("here")
    for role in looks.ROLES:
        for number in range(len(looks._POINTS[role])):
            label = f"{role} {number}"
            given.add(label, role)
            assert not {given[label].marker, given[label].point} & set(looks.BEYOND)
