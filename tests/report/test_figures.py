"""Every figure: valid SVG, every label there, the same bytes twice, nothing outside."""

import builtins
import re
import sys

import numpy as np
import pytest

from icl_jax.report import figures
from icl_jax.report.figures import Reference
from tests.report.helpers import loss_panel, texts


def _draw_curves():
    return figures.curves([loss_panel(), loss_panel(title="The same, log", log_y=True)])


def _draw_dots():
    values = np.array([[[1e-7, 0.3, 0.5], [0.0, 0.4, np.nan]]])
    return figures.dots(
        ["skip", "pre-norm"],
        ["patched", "unpatched", "shuffled"],
        values,
        x_label="relative error",
        titles=["float32"],
        references=[Reference(1e-5, "bound 1e-5")],
    )


def _draw_estimates():
    values = np.array([[0.5, -0.2], [0.9, np.nan]])
    return figures.estimates(
        ["capitals", "past tense"],
        ["closed", "LoRA"],
        values,
        values - 0.1,
        values + 0.1,
        x_label="share of the gap",
        references=[Reference(0.0, "no context")],
    )


def _draw_heatmaps():
    return figures.heatmaps(
        [np.eye(3), -np.eye(3)],
        ["trained", "untrained"],
        x_label="layer",
        y_label="head",
        value_label="cosine",
        low=-1.0,
        high=1.0,
        x_ticks=["one", "two", "three"],
        annotate=True,
    )


DRAWINGS = {
    _draw_curves: [
        "Query loss <d = 2>",
        "The same, log",
        "implicit update",
        "gradient descent",
        "least squares",
        "untrained & frozen",
        "examples in the context",
        "squared error",
    ],
    _draw_dots: [
        "skip",
        "pre-norm",
        "patched",
        "unpatched",
        "shuffled",
        "relative error",
        "float32",
        "bound 1e-5",
        "0",
    ],
    _draw_estimates: [
        "capitals",
        "past tense",
        "closed",
        "LoRA",
        "share of the gap",
        "no context",
    ],
    _draw_heatmaps: ["trained", "untrained", "layer", "head", "cosine", "one", "three", "-1.00"],
}


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_figure_is_valid_svg_with_every_label(draw):
    svg = draw()
    assert svg.startswith("<svg")
    words = texts(svg)
    for label in DRAWINGS[draw]:
        assert label in words


@pytest.mark.parametrize("draw", DRAWINGS)
def test_the_same_data_gives_the_same_bytes(draw):
    assert draw() == draw()


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_figure_refers_to_nothing_outside(draw):
    svg = draw()
    assert not re.search(r'(?:href|src)="(?!#|data:)', svg)
    assert "<style" not in svg and "<script" not in svg and "<metadata" not in svg


def test_a_figure_leaves_the_global_settings_of_matplotlib_alone():
    import matplotlib

    with matplotlib.rc_context({"font.size": 33.0, "xtick.major.size": 20.0}):
        before = dict(matplotlib.rcParams)
        styled = _draw_curves()
        assert dict(matplotlib.rcParams) == before
    assert styled == _draw_curves()


def test_drawing_does_not_import_pyplot(monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)
    _draw_curves()
    assert "matplotlib.pyplot" not in sys.modules


def test_a_dollar_sign_stays_a_dollar_sign():
    svg = figures.curves([loss_panel(title="from $5 to $6")])
    assert "from $5 to $6" in texts(svg)


def test_a_missing_matplotlib_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r'pip install "icl_jax\[experiments\]"'):
        _draw_curves()
