"""What all figures share: their face, axes, ticks, legend, and the way to SVG text."""

import contextlib
import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

#: The width of a figure in inches: 720 CSS pixels.
WIDTH = 7.5

INK = "#222222"
_GRID = "#e4e4e4"
_FONTS = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_MEASURED_FONT = "DejaVu Sans"

#: What the colours of a figure become on a dark plate; a page sets ``--f-RRGGBB`` to it.
DARK = {
    "#ffffff": "#1b1f23",
    "#222222": "#e3e6e9",
    "#111111": "#f2f2f2",
    "#555555": "#a9b1b8",
    "#777777": "#868e96",
    "#999999": "#8b939b",
    "#bbbbbb": "#5a626b",
    "#e4e4e4": "#31373d",
    "#f6f6f6": "#23282d",
    "#0b5c94": "#5fb0ea",
    "#3089c6": "#9bd0f5",
    "#083a5e": "#3d8fc9",
    "#c85a06": "#ff9a4d",
    "#b0487f": "#e58bbb",
    "#0f8265": "#4cc5a5",
    "#767676": "#a3a3a3",
    "#8e8e8e": "#858585",
    "#5c5c5c": "#c4c4c4",
}

#: A rule across a panel: a tolerance, a diagonal.
RULE: dict[str, Any] = {"color": "#111111", "linewidth": 1.0, "linestyle": (0, (1, 1.6))}

_STYLE = {
    "font.family": _MEASURED_FONT,
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": "#777777",
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 7.0,
    "axes.labelsize": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.7,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.2,
    "legend.columnspacing": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    # Labels are words: a dollar sign in one is a dollar sign.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "icl_jax",
    "svg.image_inline": True,
}


def import_matplotlib() -> Any:
    """matplotlib, or an ImportError that says what to install."""
    try:
        import matplotlib
        import matplotlib.figure
    except ImportError as error:
        raise ImportError(
            "icl_jax.report.figures draws with matplotlib, which is not installed. Install it "
            'with: pip install "icl_jax[experiments]"'
        ) from error
    return matplotlib


@contextlib.contextmanager
def new_figure(
    panels: int,
    *,
    panel_height: float = 2.75,
    columns: int | None = None,
    share_y: bool = False,
) -> Iterator[tuple[Any, list[Any]]]:
    """A figure of ``panels`` axes under our style, whatever a user's matplotlibrc says."""
    matplotlib = import_matplotlib()
    columns = num_columns(panels) if columns is None else columns
    rows = -(-panels // columns)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        figure = matplotlib.figure.Figure(
            figsize=(WIDTH, rows * panel_height + 0.35), layout="constrained"
        )
        figure.get_layout_engine().set(w_pad=0.06, h_pad=0.05, wspace=0.03, hspace=0.05)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=share_y).ravel()
        for unused in grid[panels:]:
            unused.remove()
        yield figure, list(grid[:panels])


def num_columns(panels: int) -> int:
    """Panels per row: at most three, and four stand two by two."""
    return 2 if panels == 4 else min(panels, 3)


def decorate(axis: Any, title: str, x_label: str, y_label: str, log_x: bool, log_y: bool) -> None:
    """Titles, labels and scales of one pair of axes."""
    # A panel has room for some 84 bold characters, less by the panels beside it.
    axis.set_title(textwrap.fill(title, 84 // axis.get_gridspec().ncols))
    axis.set_xlabel(x_label)
    # An upright axis has room for some 34 characters.
    axis.set_ylabel(textwrap.fill(y_label, 34))
    if log_x:
        axis.set_xscale("log")
    else:
        # Three panels side by side have no room for 0.00025 and its neighbours.
        axis.ticklabel_format(axis="x", scilimits=(-3, 6))
    if log_y:
        axis.set_yscale("log")


def set_ticks(axis: Any, log_x: bool, log_y: bool) -> None:
    """Our ticks on the axes that are logarithmic; call it once the limits are final."""
    for log, one, limits in (
        (log_x, axis.xaxis, axis.get_xlim),
        (log_y, axis.yaxis, axis.get_ylim),
    ):
        if log:
            first, last = np.log10(limits())
            set_log_ticks(one, first, last, None)


def set_log_ticks(axis: Any, first: float, last: float, zero_at: float | None) -> None:
    """Whole decades, at most about seven; within three decades also steps in between."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    decades = np.arange(np.ceil(first - 1e-9), np.floor(last + 1e-9) + 1)
    span = last - first
    short = span < 3.0
    if short:
        steps = (1, 3) if span > 1.5 else (1, 2, 5) if span > 0.6 else tuple(range(1, 10))
        if span < 0.2:
            steps = tuple(np.arange(1.0, 10.0, 0.1))
        whole = np.arange(np.floor(first), np.ceil(last) + 1)
        ticks = [step * 10.0**decade for decade in whole for step in steps]
        ticks = [tick for tick in ticks if first - 1e-9 <= np.log10(tick) <= last + 1e-9]
    else:
        stride = int(np.ceil(len(decades) / 7))
        ticks = [10.0**decade for decade in decades if decade % stride == 0]
    plain = -3 <= first and last <= 4
    if zero_at is not None:
        ticks = [zero_at, *ticks]

    def text(value: float, _: Any) -> str:
        if zero_at is not None and value == zero_at:
            return "0"
        if plain:
            return f"{value:g}"
        exponent = int(np.floor(np.log10(value) + 1e-9))
        digits = value / 10.0**exponent
        power = "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        return power if abs(digits - 1) < 1e-6 else f"{digits:g}·{power}"

    axis.set_major_locator(FixedLocator(ticks))
    axis.set_major_formatter(FuncFormatter(text))
    axis.set_minor_locator(FixedLocator([] if short else [10.0**decade for decade in decades]))
    axis.set_minor_formatter(NullFormatter())


def count_ticks(axis: Any) -> None:
    """Ticks at whole numbers, for what is counted."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=8, integer=True))


def name_ticks(axis: Any, names: Sequence[str] | None) -> None:
    """A name per row or column of a matrix; without names, whole numbers."""
    if names is None:
        count_ticks(axis)
    else:
        axis.set_ticks(range(len(names)), names)


def add_legend(figure: Any, entries: dict[str, Any], handle: float = 3.2) -> None:
    """One legend below all panels, in as many rows as its labels need."""
    # Some 108 characters fit the width; a handle and the space around it take about ten.
    lengths = [len(label) + 10 for label in entries]
    fits = sum(lengths) <= 108
    columns = len(entries) if fits else max(1, min(len(entries), 108 // max(lengths)))
    # The rows of a long legend are added to the figure, not taken from its panels.
    rows = -(-len(entries) // columns)
    figure.set_figheight(figure.get_figheight() + 0.19 * (rows - 1))
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=columns,
        handlelength=handle,
    )


def to_svg(figure: Any) -> str:
    """The figure as an ``<svg>`` element: no prologue, no date, no style that leaks into a page."""
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        dpi=160,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>", "", text, count=1)
    text = re.sub(r"(?<=[ \"])#[0-9a-f]{6}(?=[;\"])", _themed, text)
    text = text.replace("<svg ", '<svg style="stroke-linejoin: round; stroke-linecap: butt" ', 1)
    return text.replace(f"'{_MEASURED_FONT}'", _FONTS)


def _themed(colour: re.Match[str]) -> str:
    """A colour that a page can replace; by itself it is what it was."""
    return f"var(--f-{colour[0][1:]}, {colour[0]})" if colour[0] in DARK else colour[0]
