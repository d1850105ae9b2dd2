"""Bars: clear errors."""

import pytest

from icl_jax.report.bars import bars


def _bars(**changes):
    settings = {"categories": ["a"], "groups": ["g"], "values": [[1.0]], "y_label": "y"} | changes
    return bars(**settings)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: _bars(categories=[]), "bars: categories must not be empty"),
        (lambda: _bars(values=[1.0]), r"bars: values must have shape .* \(1, 1\), got \(1,\)"),
        (lambda: _bars(low=[[1.0]]), "low and high come together, but high is None"),
        (lambda: _bars(low=[[1.0]], high=[1.0]), "bars: high must have shape"),
        (lambda: _bars(groups=["g", "g"], values=[[1, 2]]), "groups must have different names"),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
