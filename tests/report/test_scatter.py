"""Scatter: large clouds become an image, clear errors."""

import numpy as np
import pytest

from icl_jax.report.scatter import MAX_VECTOR_POINTS, Cloud, scatter
from tests.report.helpers import X


def test_a_large_cloud_becomes_an_image():
    many = np.linspace(0.1, 1.0, MAX_VECTOR_POINTS + 1)

    def draw(x):
        return scatter([Cloud("c", x, x)], x_label="x", y_label="y", log_x=True)

    assert "data:image/png" in draw(many) and "data:image/png" not in draw(many[1:])
    assert len(draw(many)) < 200_000
    assert draw(many) == draw(many)


def _clouds(*clouds, **kwargs):
    return scatter(clouds, x_label="x", y_label="y", **kwargs)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: _clouds(), "scatter: clouds must not be empty"),
        (lambda: _clouds(Cloud("c", X, X[1:])), "share one length, got x of 'c': 6"),
        (lambda: _clouds(Cloud("c", X, X, "null")), "scatter: role of 'c' must be one of"),
        (lambda: _clouds(Cloud("c", X, X), log_y=True), "y of 'c' must be above 0"),
        (lambda: _clouds(Cloud("c", X, X), bins=-1), "bins must be at least 0, got -1"),
    ],
)
def test_bad_input_is_named(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()
