"""What the tests of figures share: a panel to draw, and the words of a figure."""

import xml.etree.ElementTree as ET

import numpy as np

from icl_jax.report.figures import Curve, Panel

X = np.arange(6.0)


def loss_panel(**changes):
    settings = {
        "title": "Query loss <d = 2>",
        "curves": [
            Curve("implicit update", X, np.exp(-X), 0.9 * np.exp(-X), 1.1 * np.exp(-X)),
            Curve("gradient descent", X, np.exp(-X / 2), role="second"),
            Curve("least squares", X, np.full(6, 0.01), role="reference"),
            Curve("untrained & frozen", X, np.ones(6), role="control"),
        ],
        "x_label": "examples in the context",
        "y_label": "squared error",
    }
    return Panel(**(settings | changes))


def texts(svg):
    """What a reader of the figure can read."""
    found = (e for e in ET.fromstring(svg).iter() if e.tag.endswith("}text"))
    return ["".join(element.itertext()).strip() for element in found]
