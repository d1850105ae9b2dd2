"""Figures: valid SVG, every label there, the same bytes twice, controls in grey, clear errors."""

import builtins
import re
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from icl_jax.report import figures, style
from icl_jax.report.figures import Cloud, Curve, Panel, Reference

X = np.arange(6.0)


def _loss_panel(**changes):
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


def _draw_curves():
    return figures.curves([_loss_panel(), _loss_panel(title="The same, log", log_y=True)])


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


def _draw_scatter():
    return figures.scatter(
        [Cloud("trained", X, X), Cloud("shuffled", X, X[::-1], "control")],
        x_label="token alignment",
        y_label="block alignment",
        title="Alignment",
        bins=3,
        diagonal=True,
    )


def _draw_bars():
    values = np.array([[0.2, 0.1, 1.0], [0.4, np.nan, 1.0]])
    return figures.bars(
        ["linear", "sparse"],
        ["trained", "ridge", "zero"],
        values,
        low=values - 0.05,
        high=values + 0.05,
        roles=["main", "reference", "control"],
        y_label="query loss",
        references=[Reference(0.35, "target 0.35")],
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
    _draw_heatmaps: ["trained", "untrained", "layer", "head", "cosine", "one", "three", "-1.00"],
    _draw_scatter: ["trained", "shuffled", "token alignment", "Alignment", "y = x"],
    _draw_bars: ["linear", "sparse", "trained", "ridge", "zero", "query loss", "target 0.35"],
}


def _texts(svg):
    return [
        "".join(text.itertext()).strip() for text in ET.fromstring(svg).iter() if _is_text(text)
    ]


def _is_text(element):
    return element.tag.endswith("}text")


@pytest.mark.parametrize("draw", DRAWINGS)
def test_a_figure_is_valid_svg_with_every_label(draw):
    svg = draw()
    assert svg.startswith("<svg")
    texts = _texts(svg)
    for label in DRAWINGS[draw]:
        assert label in texts


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


@pytest.mark.parametrize("number", [1, 2, 3])
def test_controls_are_drawn_in_grey_and_only_they(number):
    def colours(role):
        svg = figures.curves(
            [
                _loss_panel(
                    curves=[Curve(str(i), X, X + i, X, X + 2 * i, role) for i in range(number)]
                )
            ]
        )
        group = re.findall(r'<g id="line2d_\d+">\s*<path d="[^"]*"[^>]*style="([^"]*)"', svg)
        found = {c for item in group for c in re.findall(r"stroke: (#[0-9a-f]{6})", item)}
        return found & set(sum(style._COLOURS.values(), ()))

    def is_grey(colour):
        return len({colour[1:3], colour[3:5], colour[5:7]}) == 1

    assert len(colours("control")) == number
    assert all(is_grey(colour) for colour in colours("control"))
    assert len(colours("main")) == number
    assert not any(is_grey(colour) for colour in colours("main") | colours("second"))


def test_series_of_a_figure_differ_by_more_than_colour():
    looks = style.Looks("test")
    for role in style.ROLES:
        for i in range(3):
            looks.add(f"{role} {i}", role)
    drawn = [looks[f"{role} {i}"] for role in style.ROLES for i in range(3)]
    assert len({(str(look.line), look.marker) for look in drawn}) == len(drawn)


def test_a_label_looks_the_same_in_every_panel_and_stands_once_in_the_legend():
    assert _texts(_draw_curves()).count("implicit update") == 1


def test_an_exact_zero_is_marked_at_the_left_edge_of_a_dot_plot():
    def draw(value):
        return figures.dots(["a", "b"], ["patched"], [[value], [1e-3]], x_label="error")

    marks = re.findall(r'<use [^>]*?x="([\d.]+)"[^>]*style="fill: #0b5c94', draw(0.0))
    zero, other = (float(x) for x in marks[:2])
    assert zero < other
    assert "0" in _texts(draw(0.0))
    assert "0" not in _texts(draw(1e-5))


def test_a_zero_on_a_logarithmic_axis_of_curves_is_marked_not_dropped():
    with_zero = Curve("error", X, [1.0, 0.1, 0.0, 0.1, 0.01, 0.0])
    svg = figures.curves([_loss_panel(curves=[with_zero], log_y=True)])
    assert "0 or below (off the scale)" in _texts(svg)
    linear = figures.curves([_loss_panel(curves=[with_zero])])
    assert "0 or below (off the scale)" not in _texts(linear)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
@pytest.mark.parametrize("log", [False, True])
def test_curves_without_a_single_value_to_show_are_still_drawn(value, log):
    svg = figures.curves([_loss_panel(curves=[Curve("empty", X, np.full(6, value))], log_y=log)])
    assert "empty" in _texts(svg)


def test_dots_and_heat_maps_without_a_single_value_to_show_are_still_drawn():
    svg = figures.dots(["a"], ["b"], [[np.nan]], x_label="error")
    assert "a" in _texts(svg)
    svg = figures.heatmaps([np.full((2, 2), np.nan)], ["t"], x_label="x", y_label="y")
    assert "t" in _texts(svg)


def test_an_interval_that_reaches_zero_does_not_stretch_a_logarithmic_axis():
    band = Curve("loss", X, np.full(6, 0.5), np.zeros(6), np.ones(6))
    texts = _texts(figures.curves([_loss_panel(curves=[band], log_y=True)]))
    assert not any(text.startswith("10⁻") for text in texts)


def test_panels_can_share_their_vertical_axis():
    svg = figures.curves([_loss_panel(title="a"), _loss_panel(title="b")], share_y=True)
    assert _texts(svg).count("squared error") == 1
    with pytest.raises(ValueError, match="share_y needs the same y_label"):
        figures.curves([_loss_panel(), _loss_panel(y_label="norm")], share_y=True)


def test_a_dollar_sign_stays_a_dollar_sign():
    svg = figures.curves([_loss_panel(title="from $5 to $6")])
    assert "from $5 to $6" in _texts(svg)


def test_a_large_cloud_becomes_an_image():
    many = np.linspace(0.1, 1.0, figures.MAX_VECTOR_POINTS + 1)

    def draw(x):
        return figures.scatter([Cloud("c", x, x)], x_label="x", y_label="y", log_x=True)

    assert "data:image/png" in draw(many) and "data:image/png" not in draw(many[1:])
    assert len(draw(many)) < 200_000
    assert draw(many) == draw(many)


def _dots(**changes):
    settings = {"rows": ["a"], "groups": ["g"], "values": [[1.0]], "x_label": "x"} | changes
    return figures.dots(**settings)


def _maps(**changes):
    settings = {"matrices": [np.eye(2)], "titles": ["t"], "x_label": "x", "y_label": "y"} | changes
    return figures.heatmaps(**settings)


def _bars(**changes):
    settings = {"categories": ["a"], "groups": ["g"], "values": [[1.0]], "y_label": "y"} | changes
    return figures.bars(**settings)


def _one_curve(*args, panel=None, **kwargs):
    return figures.curves([_loss_panel(curves=[Curve("c", *args, **kwargs)], **(panel or {}))])


def _clouds(*clouds, **kwargs):
    return figures.scatter(clouds, x_label="x", y_label="y", **kwargs)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: figures.curves([]), "curves: panels must not be empty"),
        (lambda: figures.curves([_loss_panel(curves=[])]), "curves of panel .* must not be empty"),
        (lambda: _one_curve(X, X[1:]), "share one length, got x of 'c': 6, y of 'c': 5"),
        (lambda: _one_curve(X, X, X[1:], X), "share one length.*low of 'c': 5"),
        (lambda: _one_curve(X, X, X), "low and high come together, but high is None"),
        (lambda: _one_curve(X, X[None]), "y of 'c' must be a non-empty vector, got shape"),
        (lambda: _one_curve(X, ["a"] * 6), "y of 'c' must be an array of real numbers"),
        (lambda: _one_curve(X, X, role="null"), "role of 'c' must be one of 'main', .* got 'null'"),
        (lambda: _one_curve(X, X, panel={"log_x": True}), "x of 'c' must be above 0"),
        (lambda: _one_curve(X, X, panel={"y_limits": (1.0, 0.0)}), "y_limits of panel"),
        (
            lambda: figures.curves(
                [_loss_panel(curves=[Curve("c", X, X), Curve("c", X, X, role="control")])]
            ),
            "label 'c' has role 'main' and role 'control'",
        ),
        (lambda: _dots(rows=[]), "dots: rows must not be empty"),
        (lambda: _dots(groups=[]), "dots: groups must not be empty"),
        (lambda: _dots(values=[[1.0, 2.0]]), r"dots: values must have shape .* \(1, 1, 1\)"),
        (lambda: _dots(values=[[-1.0]]), "dots: values must be finite and at least 0"),
        (lambda: _dots(roles=["null"]), "dots: role of 'g' must be one of"),
        (lambda: _dots(roles=[]), "dots: .* share one length, got groups: 1, roles: 0"),
        (lambda: _dots(references=[Reference(0.0, "r")]), "references must lie above 0"),
        (lambda: _dots(references=[Reference(1.0, "r", 1)]), "panel of reference 'r'"),
        (lambda: _maps(matrices=[], titles=[]), "heatmaps: matrices must not be empty"),
        (lambda: _maps(titles=["t", "u"]), "share one length, got matrices: 1, titles: 2"),
        (lambda: _maps(matrices=[X]), r"matrices\[0\] must be a non-empty matrix"),
        (lambda: _maps(low=1.0, high=0.0), "low must be below high"),
        (lambda: _maps(x_ticks=["a"]), "x_ticks must name each of the 2 entries"),
        (lambda: _maps(matrices=[np.eye(11)], annotate=True), "annotate writes into at most 10"),
        (lambda: _clouds(), "scatter: clouds must not be empty"),
        (lambda: _clouds(Cloud("c", X, X[1:])), "share one length, got x of 'c': 6"),
        (lambda: _clouds(Cloud("c", X, X, "null")), "scatter: role of 'c' must be one of"),
        (lambda: _clouds(Cloud("c", X, X), log_y=True), "y of 'c' must be above 0"),
        (lambda: _clouds(Cloud("c", X, X), bins=-1), "bins must be at least 0, got -1"),
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


def test_a_missing_matplotlib_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(f"No module named {name!r}")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r'pip install "icl_jax\[experiments\]"'):
        _draw_curves()
