"""Curves: zeros, gaps and intervals on logarithmic axes, shared axes, clear errors."""

import numpy as np
import pytest

from icl_jax.report.curves import Curve, curves
from tests.report.helpers import X, loss_panel, texts


def test_a_zero_on_a_logarithmic_axis_of_curves_is_marked_not_dropped():
    with_zero = Curve("error", X, [1.0, 0.1, 0.0, 0.1, 0.01, 0.0])
    svg = curves([loss_panel(curves=[with_zero], log_y=True)])
    assert "0 or below (off the scale)" in texts(svg)
    linear = curves([loss_panel(curves=[with_zero])])
    assert "0 or below (off the scale)" not in texts(linear)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("log", [False, True])
def test_curves_without_a_single_value_to_show_are_still_drawn(value, log):
    svg = curves([loss_panel(curves=[Curve("empty", X, np.full(6, value))], log_y=log)])
    assert "empty" in texts(svg)


def test_an_interval_that_reaches_zero_does_not_stretch_a_logarithmic_axis():
    band = Curve("loss", X, np.full(6, 0.5), np.zeros(6), np.ones(6))
    words = texts(curves([loss_panel(curves=[band], log_y=True)]))
    assert not any(word.startswith("10⁻") for word in words)


def test_small_numbers_below_an_axis_are_short():
    rates = Curve("loss", [1e-3, 2e-3, 3e-3], [1.0, 2.0, 3.0])
    words = texts(curves([loss_panel(curves=[rates])] * 3))
    assert "1e−3" in words and not any("0.001" in word for word in words)


def test_panels_can_share_their_vertical_axis():
    svg = curves([loss_panel(title="a"), loss_panel(title="b")], share_y=True)
    assert texts(svg).count("squared error") == 1
    with pytest.raises(ValueError, match="share_y needs the same y_label"):
        curves([loss_panel(), loss_panel(y_label="norm")], share_y=True)


def _one_curve(*args, panel=None, **kwargs):
    return curves([loss_panel(curves=[Curve("c", *args, **kwargs)], **(panel or {}))])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: curves([]), "curves: panels must not be empty"),
        (lambda: curves([loss_panel(curves=[])]), "curves of panel .* must not be empty"),
        (lambda: _one_curve(X, X[1:]), "share one length, got x of 'c': 6, y of 'c': 5"),
        (lambda: _one_curve(X, X, X[1:], X), "share one length.*low of 'c': 5"),
        (lambda: _one_curve(X, X, X), "low and high come together, but high is None"),
        (lambda: _one_curve(X, X[None]), "y of 'c' must be a non-empty vector, got shape"),
        (lambda: _one_curve(X, ["a"] * 6), "y of 'c' must be an array of real numbers"),
        (lambda: _one_curve(X, X, role="null"), "role of 'c' must be one of 'main', .* got 'null'"),
        (lambda: _one_curve(X, X, panel={"log_x": True}), "x of 'c' must be above 0"),
        (lambda: _one_curve(X, X, panel={"y_limits": (1.0, 0.0)}), "y_limits of panel"),
        (
            lambda: curves(
                [loss_panel(curves=[Curve("c", X, X), Curve("c", X, X, role="control")])]
            ),
            "label 'c' has role 'main' and role 'control'",
        ),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
