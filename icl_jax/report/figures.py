"""Figures from saved records: plain arrays in, SVG text out.

Every figure of a report is one of five primitives: ``curves``, ``dots``, ``heatmaps``, ``scatter``
and ``bars``. They compute nothing, share one style, and the same arrays give the same bytes.

What a series *is* decides how it looks, so a reader learns the code once:

    main       what we claim something about: blue, solid, filled markers
    second     what it is compared with: orange, dashed
    reference  a closed-form oracle or a bound: black, dotted, thin
    control    a null (shuffled, random, untrained, zero): always grey

Line styles, markers and hatches differ within and between roles: a figure survives a greyscale
printer and a colour-blind reader. Two series of one role get the next variant of it, and a label
looks the same in every panel of a figure.

Text stays text (searchable, small, in the reader's own sans-serif face). Widths are measured with
the face that ships inside matplotlib, which is wider than common system faces, so labels fit.

matplotlib is optional (``pip install "icl_jax[experiments]"``) and imported when a figure is drawn.
"""

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

Role = Literal["main", "second", "reference", "control"]
ROLES: tuple[str, ...] = get_args(Role)

#: The width of a figure in inches: 720 CSS pixels.
WIDTH = 7.5
#: From this many points on, a cloud is embedded as an image instead of one path per point.
MAX_VECTOR_POINTS = 2000
#: Up to this many cells per side, a heat map can carry its numbers.
MAX_ANNOTATED_CELLS = 10

_INK = "#222222"
_GRID = "#e4e4e4"
_FONTS = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
_MEASURED_FONT = "DejaVu Sans"

# Variants within one role; a role's hues are the colour-blind-safe ones of Okabe and Ito, darkened.
_COLOURS = {
    "main": ("#0b5c94", "#3f97d1", "#083a5e"),
    "second": ("#d1600a", "#b0487f", "#0f8265"),
    "reference": ("#111111", "#111111", "#111111"),
    "control": ("#8c8c8c", "#a9a9a9", "#6e6e6e"),
}
_LINES: dict[str, tuple[Any, ...]] = {
    "main": ("-", (0, (7, 1.5)), (0, (3, 1))),
    "second": ((0, (5, 2)), (0, (5, 1.5, 1.5, 1.5)), (0, (2, 1))),
    "reference": ((0, (1, 1.6)), (0, (4, 1.5, 1, 1.5)), (0, (8, 2))),
    "control": ("-", (0, (4, 2)), (0, (1, 1.5))),
}
_MARKERS = {
    "main": ("o", "s", "^"),
    "second": ("D", "v", "P"),
    "reference": ("", "", ""),
    "control": ("x", "+", "d"),
}
_POINTS = {**_MARKERS, "reference": ("|", "_", "1")}
_HATCHES = {
    "main": ("", "///", "..."),
    "second": ("\\\\\\", "xxx", "ooo"),
    "reference": ("---", "|||", "+++"),
    "control": ("", "///", "..."),
}
_WIDTHS = {"main": 2.0, "second": 1.7, "reference": 1.3, "control": 1.4}

_STYLE = {
    "font.family": _MEASURED_FONT,
    "font.size": 9.0,
    "text.color": _INK,
    "axes.edgecolor": "#777777",
    "axes.labelcolor": _INK,
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
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 3.2,
    "legend.columnspacing": 1.6,
    "lines.markersize": 4.5,
    "hatch.linewidth": 0.6,
    "hatch.color": "#ffffff",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
    "svg.hashsalt": "icl_jax",
    "svg.image_inline": True,
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line, and the interval around it.

    Attributes:
      label: what the legend says; the same label looks the same in every panel.
      x: n positions.
      y: n values; NaN leaves a gap.
      low: n lower ends of the interval, or None. Given together with ``high``.
      high: n upper ends.
      role: what the curve is: "main", "second", "reference" or "control".
    """

    label: str
    x: ArrayLike
    y: ArrayLike
    low: ArrayLike | None = None
    high: ArrayLike | None = None
    role: Role = "main"


@dataclasses.dataclass(frozen=True)
class Panel:
    """One pair of axes and its curves.

    Attributes:
      title: stands above the panel; may be empty.
      curves: at least one.
      x_label: quantity and unit, for example "examples in the context".
      y_label: likewise.
      log_x: logarithmic horizontal axis; every x must be above 0.
      log_y: logarithmic vertical axis; a value at or below 0 is marked at the lower edge.
      y_limits: the range shown, or None for all of it.
    """

    title: str
    curves: Sequence[Curve]
    x_label: str
    y_label: str
    log_x: bool = False
    log_y: bool = False
    y_limits: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Cloud:
    """The points of one condition: ``label``, n ``x``, n ``y``, and its ``role``."""

    label: str
    x: ArrayLike
    y: ArrayLike
    role: Role = "main"


@dataclasses.dataclass(frozen=True)
class Reference:
    """A labelled line across a figure, such as a tolerance.

    Attributes:
      value: where it stands, in the units of the axis.
      label: a few words, written at the line.
      panel: the panel it belongs to (counted from 0), or None for all of them.
    """

    value: float
    label: str
    panel: int | None = None


def curves(panels: Sequence[Panel]) -> str:
    """Lines with interval bands, in panels side by side (at most three in a row).

    Args:
      panels: at least one; the legend below is shared.

    Returns:
      The figure as SVG text.

    Raises:
      ValueError: no panels, a panel without curves, lengths that differ, an unknown role, or an x
        at or below 0 on a logarithmic axis.
      ImportError: matplotlib is not installed.
    """
    where = "curves"
    _not_empty(where, "panels", panels)
    looks = _Looks(where)
    data = []
    for panel in panels:
        _not_empty(where, f"curves of panel {panel.title!r}", panel.curves)
        data.append([_curve_arrays(where, curve, panel) for curve in panel.curves])
        for curve in panel.curves:
            looks.add(curve.label, curve.role)

    with _figure(len(panels)) as (figure, axes):
        entries: dict[str, Any] = {}
        off_scale = None
        for axis, panel, arrays in zip(axes, panels, data, strict=True):
            _decorate(axis, panel.title, panel.x_label, panel.y_label, panel.log_x, panel.log_y)
            # Controls first: what we claim something about lies on top.
            order = sorted(
                range(len(panel.curves)), key=lambda i: -ROLES.index(panel.curves[i].role)
            )
            for i in order:
                curve, (x, y, low, high) = panel.curves[i], arrays[i]
                look = looks[curve.label]
                hidden = np.zeros(y.shape, bool)
                if panel.log_y:
                    hidden = y <= 0
                    y = np.where(hidden, np.nan, y)
                (line,) = axis.plot(
                    x,
                    y,
                    color=look.colour,
                    linestyle=look.line,
                    linewidth=look.width,
                    marker=look.marker,
                    markevery=max(1, -(-len(x) // 10)),
                    markerfacecolor=look.colour if look.filled else "white",
                    label=curve.label,
                )
                entries.setdefault(curve.label, line)
                if low is not None and high is not None:
                    if panel.log_y:
                        tiny = np.finfo(np.float64).tiny
                        high = np.where(high > 0, high, np.nan)
                        low = np.where(low > 0, low, np.where(np.isnan(low), np.nan, tiny))
                    shown = np.nanmin(np.where(np.isfinite(y), y, np.nan), initial=np.inf)
                    # A lower end at or below 0 must not stretch a logarithmic axis to 1e-308.
                    band = axis.fill_between(
                        x, low, high, color=look.colour, alpha=0.16, linewidth=0
                    )
                    if panel.log_y and np.any(low < shown * 1e-3):
                        band.remove()
                        floor = shown * 1e-3
                        axis.fill_between(
                            x,
                            np.maximum(low, floor),
                            high,
                            color=look.colour,
                            alpha=0.16,
                            linewidth=0,
                        )
                if hidden.any():
                    off_scale = axis.plot(
                        x[hidden],
                        np.zeros(int(hidden.sum())),
                        linestyle="",
                        marker="v",
                        markersize=4.5,
                        markerfacecolor="white",
                        markeredgecolor=look.colour,
                        transform=axis.get_xaxis_transform(),
                        clip_on=False,
                        zorder=5,
                    )[0]
            if panel.y_limits is not None:
                axis.set_ylim(*panel.y_limits)
            _ticks(axis, panel.log_x, panel.log_y)
        if off_scale is not None:
            entries["0 or below (off the scale)"] = off_scale
        _legend(figure, looks.order(entries))
        return _svg(figure)


def dots(
    rows: Sequence[str],
    groups: Sequence[str],
    values: ArrayLike,
    *,
    x_label: str,
    titles: Sequence[str] = ("",),
    roles: Sequence[Role] | None = None,
    references: Sequence[Reference] = (),
) -> str:
    """A dot plot on a logarithmic axis: a row per case, a marker per condition.

    The axis ends one step left of the smallest positive value. An exact zero has no place on it
    and is drawn in a column of its own, "0", behind a break at the left edge; NaN means that the
    case was not measured.

    Args:
      rows: R names of cases, for example wirings, from top to bottom.
      groups: G names of conditions, for example patched, unpatched, shuffled.
      values: (R, G), or (P, R, G) for P panels side by side; at least 0.
      x_label: quantity and unit.
      titles: P panel titles.
      roles: G roles; None makes the first group "main" and the others "control".
      references: vertical lines with a label above, such as a float32 bound.

    Returns:
      The figure as SVG text.

    Raises:
      ValueError: nothing to draw, lengths that differ, an unknown role, a negative or infinite
        value, or a reference that is not above 0.
      ImportError: matplotlib is not installed.
    """
    where = "dots"
    _not_empty(where, "rows", rows)
    _not_empty(where, "groups", groups)
    _not_empty(where, "titles", titles)
    array = _numbers(where, "values", values)
    if array.ndim == 2:
        array = array[None]
    expected = (len(titles), len(rows), len(groups))
    if array.shape != expected:
        raise ValueError(
            f"{where}: values must have shape (titles, rows, groups) = {expected}, or without "
            f"the first axis for one panel, got {np.shape(values)}."
        )
    if np.any(array < 0) or np.any(np.isinf(array)):
        raise ValueError(
            f"{where}: values must be finite and at least 0 (NaN for what was not measured), got "
            f"a smallest of {np.nanmin(array)} and a largest of {np.nanmax(array)}."
        )
    looks = _group_looks(where, groups, roles)
    for reference in references:
        _check_reference(where, reference, len(titles))
        if not reference.value > 0:
            raise ValueError(
                f"{where}: references must lie above 0 on a logarithmic axis, got "
                f"{reference.value} ({reference.label!r})."
            )

    positive = np.concatenate(
        [array[array > 0], [reference.value for reference in references] or [], []]
    )
    if positive.size == 0:
        positive = np.array([1e-1, 1.0])
    first = int(np.floor(np.log10(positive.min()) - 0.15))
    last = int(np.ceil(np.log10(positive.max()) + 0.15))
    has_zero = bool(np.any(array == 0))
    gap = 0.09 * (last - first)
    zero_at, break_at = 10.0 ** (first - gap), 10.0 ** (first - gap / 2)
    left = 10.0 ** (first - 1.6 * gap) if has_zero else 10.0**first

    height = 0.95 + 0.29 * len(rows)
    with _figure(len(titles), panel_height=height, share_y=True) as (figure, axes):
        entries: dict[str, Any] = {}
        for p, (axis, title) in enumerate(zip(axes, titles, strict=True)):
            here = [r for r in references if r.panel is None or r.panel == p]
            _decorate(axis, title, x_label, "", True, False)
            axis.set_title(title, pad=7.0 + 11.0 * min(len(here), 2))
            axis.set_xlim(left, 10.0**last)
            axis.set_ylim(len(rows) - 0.4, -0.6)
            axis.set_yticks(range(len(rows)), rows)
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="y", linewidth=5.0, color="#f5f5f5")
            _log_ticks(axis.xaxis, first, last, zero_at if has_zero else None)
            if has_zero:
                axis.axvline(break_at, color="#999999", linewidth=0.8, linestyle=(0, (2, 2)))
            for i, reference in enumerate(here):
                axis.axvline(
                    reference.value, color="#111111", linewidth=1.0, linestyle=(0, (1, 1.6))
                )
                axis.annotate(
                    reference.label,
                    (reference.value, 1.0),
                    xycoords=axis.get_xaxis_transform(),
                    xytext=(0, 3 + 11 * (i % 2)),
                    textcoords="offset points",
                    ha="center",
                    va="bottom",
                    fontsize=8.0,
                )
            # The first group is drawn last: controls never cover it.
            for g in reversed(range(len(groups))):
                look = looks[groups[g]]
                x = array[p, :, g]
                shown = ~np.isnan(x)
                (marks,) = axis.plot(
                    np.where(x == 0, zero_at, x)[shown],
                    np.arange(len(rows))[shown],
                    linestyle="",
                    marker=look.point,
                    markersize=6.5,
                    markeredgewidth=1.4,
                    markerfacecolor=look.colour if look.filled else "none",
                    markeredgecolor=look.colour,
                    clip_on=False,
                    zorder=3 + (g == 0),
                    label=groups[g],
                )
                entries.setdefault(groups[g], marks)
        _legend(figure, {group: entries[group] for group in groups})
        return _svg(figure)


def heatmaps(
    matrices: Sequence[ArrayLike],
    titles: Sequence[str],
    *,
    x_label: str,
    y_label: str,
    value_label: str = "",
    low: float | None = None,
    high: float | None = None,
    x_ticks: Sequence[str] | None = None,
    y_ticks: Sequence[str] | None = None,
    annotate: bool = False,
) -> str:
    """Small multiples of matrices that share one colour bar.

    When ``low < 0 < high`` the colours diverge from white at 0 and both signs share one scale;
    otherwise they run from pale to dark. Row 0 is at the top. NaN is grey.

    Args:
      matrices: P matrices (rows, columns), all of one shape when ticks are named.
      titles: P titles.
      x_label: what the columns are.
      y_label: what the rows are.
      value_label: quantity and unit of the entries, written at the colour bar.
      low: the lower end of the colours; None takes the smallest entry.
      high: the upper end; None takes the largest entry.
      x_ticks: a name for every column, or None for numbers.
      y_ticks: a name for every row, or None for numbers.
      annotate: writes each entry into its cell (at most 10 rows and columns); a diverging map
        needs that where it will be printed in greyscale.

    Returns:
      The figure as SVG text.

    Raises:
      ValueError: nothing to draw, lengths that differ, an axis count other than 2, a range that is
        empty, or too many cells to annotate.
      ImportError: matplotlib is not installed.
    """
    where = "heatmaps"
    _not_empty(where, "matrices", matrices)
    _same_length(where, matrices=matrices, titles=titles)
    arrays = [_numbers(where, f"matrices[{i}]", matrix) for i, matrix in enumerate(matrices)]
    for i, array in enumerate(arrays):
        if array.ndim != 2 or array.size == 0:
            raise ValueError(
                f"{where}: matrices[{i}] must be a non-empty matrix (rows, columns), got shape "
                f"{array.shape}."
            )
        for name, ticks, size in (
            ("x_ticks", x_ticks, array.shape[1]),
            ("y_ticks", y_ticks, array.shape[0]),
        ):
            if ticks is not None and len(ticks) != size:
                raise ValueError(
                    f"{where}: {name} must name each of the {size} entries of matrices[{i}], got "
                    f"{len(ticks)} names."
                )
        if annotate and max(array.shape) > MAX_ANNOTATED_CELLS:
            raise ValueError(
                f"{where}: annotate writes into at most {MAX_ANNOTATED_CELLS} rows and columns, "
                f"matrices[{i}] has shape {array.shape}. Pass annotate=False."
            )
    finite = np.concatenate([array[np.isfinite(array)] for array in arrays])
    if low is None:
        low = float(finite.min()) if finite.size else 0.0
    if high is None:
        high = float(finite.max()) if finite.size else 1.0
        high = high if high > low else low + 1.0
    if not low < high:
        raise ValueError(f"{where}: low must be below high, got low={low} and high={high}.")
    diverging = low < 0 < high
    reach = max(-low, high)

    columns = min(len(arrays), 4)
    tallest = max(array.shape[0] / array.shape[1] for array in arrays)
    height = float(np.clip(tallest * (WIDTH - 1.2) / columns, 1.1, 3.6)) + 0.75
    with _figure(len(arrays), panel_height=height, columns=columns) as (figure, axes):
        from matplotlib.colors import LinearSegmentedColormap

        stops = (
            ["#8a3b00", "#e08a3c", "#ffffff", "#4d94c4", "#083a5e"]
            if diverging
            else ["#f7fafc", "#9cc3dd", "#3479ab", "#06263f"]
        )
        colours = LinearSegmentedColormap.from_list("report", stops).with_extremes(bad="#d0d0d0")
        image = None
        for i, (axis, array, title) in enumerate(zip(axes, arrays, titles, strict=True)):
            first_column = i % columns == 0
            _decorate(axis, title, x_label, y_label if first_column else "", False, False)
            axis.grid(False)
            axis.tick_params(length=2)
            image = axis.imshow(
                array,
                cmap=colours,
                vmin=-reach if diverging else low,
                vmax=reach if diverging else high,
                interpolation="none",
                aspect="auto" if max(array.shape) > 4 * min(array.shape) else "equal",
            )
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_color("#bbbbbb")
            _name_ticks(axis.xaxis, x_ticks)
            _name_ticks(axis.yaxis, y_ticks)
            if annotate:
                for (row, column), value in np.ndenumerate(array):
                    share = abs(value) / reach if diverging else (value - low) / (high - low)
                    axis.text(
                        column,
                        row,
                        f"{value:.2f}",
                        ha="center",
                        va="center",
                        fontsize=7.5,
                        color="white" if share > 0.55 else _INK,
                    )
        bar = figure.colorbar(image, ax=list(axes), shrink=0.85, pad=0.02, fraction=0.05)
        bar.ax.set_ylim(low, high)
        bar.set_label(value_label)
        bar.outline.set_edgecolor("#bbbbbb")
        bar.solids.set_edgecolor("face")
        return _svg(figure)


def scatter(
    clouds: Sequence[Cloud],
    *,
    x_label: str,
    y_label: str,
    title: str = "",
    log_x: bool = False,
    log_y: bool = False,
    bins: int = 0,
    diagonal: bool = False,
) -> str:
    """Point clouds, with the mean of each over equal-count bins where asked for.

    Args:
      clouds: at least one; points with a NaN are left out.
      x_label: quantity and unit.
      y_label: likewise.
      title: stands above the panel; may be empty.
      log_x: logarithmic horizontal axis; every x must be above 0.
      log_y: logarithmic vertical axis; every y must be above 0.
      bins: the number of bins with equally many points whose means a line joins; 0 draws none.
      diagonal: draws the line y = x.

    Returns:
      The figure as SVG text.

    Raises:
      ValueError: no clouds, lengths that differ, an unknown role, negative ``bins``, or a value at
        or below 0 on a logarithmic axis.
      ImportError: matplotlib is not installed.
    """
    where = "scatter"
    _not_empty(where, "clouds", clouds)
    if bins < 0:
        raise ValueError(f"{where}: bins must be at least 0, got {bins}.")
    looks = _Looks(where)
    data = []
    for cloud in clouds:
        looks.add(cloud.label, cloud.role)
        x = _vector(where, f"x of {cloud.label!r}", cloud.x)
        y = _vector(where, f"y of {cloud.label!r}", cloud.y)
        _same_length(where, **{f"x of {cloud.label!r}": x, f"y of {cloud.label!r}": y})
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        for name, log, array in (("x", log_x, x), ("y", log_y, y)):
            if log:
                _above_zero(where, f"{name} of {cloud.label!r}", array)
        data.append((x, y))

    with _figure(1, panel_height=3.7) as (figure, (axis,)):
        _decorate(axis, title, x_label, y_label, log_x, log_y)
        entries: dict[str, Any] = {}
        order = sorted(range(len(clouds)), key=lambda i: -ROLES.index(clouds[i].role))
        for i in order:
            look, (x, y) = looks[clouds[i].label], data[i]
            many = len(x) > MAX_VECTOR_POINTS
            (points,) = axis.plot(
                x,
                y,
                linestyle="",
                marker=look.point,
                markersize=3.2 if many else 4.2,
                markeredgewidth=0.8,
                markerfacecolor=look.colour if look.filled else "none",
                markeredgecolor=look.colour if not look.filled else "none",
                alpha=0.35 if many else 0.6,
                rasterized=many,
            )
            entries[clouds[i].label] = points
            if bins and len(x):
                groups = np.array_split(np.argsort(x, kind="stable"), min(bins, len(x)))
                axis.plot(
                    [x[group].mean() for group in groups],
                    [y[group].mean() for group in groups],
                    color=look.colour,
                    linestyle=look.line,
                    linewidth=look.width,
                    zorder=4,
                )
        if diagonal:
            ends = [
                max(axis.get_xlim()[0], axis.get_ylim()[0]),
                min(axis.get_xlim()[1], axis.get_ylim()[1]),
            ]
            (line,) = axis.plot(ends, ends, color="#111111", linewidth=1.0, linestyle=(0, (1, 1.6)))
            entries["y = x"] = line
        _ticks(axis, log_x, log_y)
        _legend(figure, looks.order(entries))
        return _svg(figure)


def bars(
    categories: Sequence[str],
    groups: Sequence[str],
    values: ArrayLike,
    *,
    y_label: str,
    low: ArrayLike | None = None,
    high: ArrayLike | None = None,
    roles: Sequence[Role] | None = None,
    title: str = "",
    references: Sequence[Reference] = (),
) -> str:
    """Grouped bars from zero, with error bars. (Many decades: take ``dots``.)

    Args:
      categories: C names along the horizontal axis.
      groups: G names of conditions, side by side within a category.
      values: (C, G); NaN leaves a bar out.
      y_label: quantity and unit.
      low: (C, G) lower ends of the error bars, or None. Given together with ``high``.
      high: (C, G) upper ends.
      roles: G roles; None makes the first group "main" and the others "control".
      title: stands above the panel; may be empty.
      references: horizontal lines with a label at their right end.

    Returns:
      The figure as SVG text.

    Raises:
      ValueError: nothing to draw, lengths that differ, or an unknown role.
      ImportError: matplotlib is not installed.
    """
    where = "bars"
    _not_empty(where, "categories", categories)
    _not_empty(where, "groups", groups)
    expected = (len(categories), len(groups))
    arrays = {"values": _numbers(where, "values", values)}
    _both_or_none(where, low, high)
    if low is not None and high is not None:
        arrays["low"], arrays["high"] = _numbers(where, "low", low), _numbers(where, "high", high)
    for name, array in arrays.items():
        if array.shape != expected:
            raise ValueError(
                f"{where}: {name} must have shape (categories, groups) = {expected}, got "
                f"{array.shape}."
            )
    looks = _group_looks(where, groups, roles)
    for reference in references:
        _check_reference(where, reference, 1)

    with _figure(1, panel_height=2.9) as (figure, (axis,)):
        _decorate(axis, title, "", y_label, False, False)
        axis.grid(axis="x", visible=False)
        width = 0.8 / len(groups)
        entries: dict[str, Any] = {}
        for g, group in enumerate(groups):
            look = looks[group]
            at = np.arange(len(categories)) + (g - (len(groups) - 1) / 2) * width
            height = arrays["values"][:, g]
            entries[group] = axis.bar(
                at,
                np.nan_to_num(height),
                width * 0.92,
                color=look.colour,
                edgecolor="white",
                linewidth=0,
                hatch=look.hatch,
            )
            if "low" in arrays:
                ends = np.stack([height - arrays["low"][:, g], arrays["high"][:, g] - height])
                shown = np.isfinite(height) & np.all(np.isfinite(ends), axis=0)
                axis.errorbar(
                    at[shown],
                    height[shown],
                    np.maximum(ends[:, shown], 0.0),
                    fmt="none",
                    ecolor=_INK,
                    elinewidth=1.0,
                    capsize=2.5,
                )
        for reference in references:
            axis.axhline(reference.value, color="#111111", linewidth=1.0, linestyle=(0, (1, 1.6)))
            axis.annotate(
                reference.label,
                (1.0, reference.value),
                xycoords=axis.get_yaxis_transform(),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.0,
            )
        axis.axhline(0.0, color="#777777", linewidth=0.7)
        axis.set_xticks(range(len(categories)), categories)
        axis.tick_params(axis="x", length=0)
        _legend(figure, entries)
        return _svg(figure)


# --- the shared look -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Look:
    """How one series is drawn."""

    colour: str
    line: Any
    marker: str
    point: str
    hatch: str
    width: float
    filled: bool


class _Looks:
    """Gives each label of a figure its look: by role, then by order of appearance within it."""

    def __init__(self, where: str):
        self._where = where
        self._roles: dict[str, str] = {}
        self._looks: dict[str, _Look] = {}

    def add(self, label: str, role: str) -> None:
        if role not in ROLES:
            raise ValueError(
                f"{self._where}: role of {label!r} must be one of "
                f"{', '.join(map(repr, ROLES))}, got {role!r}."
            )
        if label in self._roles:
            if self._roles[label] != role:
                raise ValueError(
                    f"{self._where}: label {label!r} has role {self._roles[label]!r} and role "
                    f"{role!r}. One label is one condition: rename one of them."
                )
            return
        i = list(self._roles.values()).count(role) % 3
        self._roles[label] = role
        self._looks[label] = _Look(
            colour=_COLOURS[role][i],
            line=_LINES[role][i],
            marker=_MARKERS[role][i],
            point=_POINTS[role][i],
            hatch=_HATCHES[role][i],
            width=_WIDTHS[role],
            filled=role == "main",
        )

    def __getitem__(self, label: str) -> _Look:
        return self._looks[label]

    def order(self, entries: dict[str, Any]) -> dict[str, Any]:
        """Legend entries in the order in which the caller listed the series."""
        known = {label: entries[label] for label in self._looks if label in entries}
        return known | {label: entry for label, entry in entries.items() if label not in known}


def _group_looks(where: str, groups: Sequence[str], roles: Sequence[str] | None) -> _Looks:
    if roles is None:
        roles = ["main"] + ["control"] * (len(groups) - 1)
    _same_length(where, groups=groups, roles=roles)
    if len(set(groups)) != len(groups):
        raise ValueError(f"{where}: groups must have different names, got {list(groups)}.")
    looks = _Looks(where)
    for group, role in zip(groups, roles, strict=True):
        looks.add(group, role)
    return looks


def _import_matplotlib() -> Any:
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
def _figure(
    panels: int,
    *,
    panel_height: float = 2.75,
    columns: int | None = None,
    share_y: bool = False,
) -> Iterator[tuple[Any, list[Any]]]:
    """A figure of ``panels`` axes under our style, whatever a user's matplotlibrc says."""
    matplotlib = _import_matplotlib()
    if columns is None:
        columns = 2 if panels == 4 else min(panels, 3)
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


def _decorate(axis: Any, title: str, x_label: str, y_label: str, log_x: bool, log_y: bool) -> None:
    axis.set_title(title)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    if log_x:
        axis.set_xscale("log")
    if log_y:
        axis.set_yscale("log")


def _ticks(axis: Any, log_x: bool, log_y: bool) -> None:
    for log, one, limits in (
        (log_x, axis.xaxis, axis.get_xlim),
        (log_y, axis.yaxis, axis.get_ylim),
    ):
        if log:
            first, last = np.log10(limits())
            _log_ticks(one, first, last, None)


def _log_ticks(axis: Any, first: float, last: float, zero_at: float | None) -> None:
    """Whole decades, at most about seven; within two decades also 2 and 5 of each."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    decades = np.arange(np.ceil(first - 1e-9), np.floor(last + 1e-9) + 1)
    short = last - first < 2.0
    if short:
        steps = (1, 2, 5) if last - first > 0.5 else (1, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
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


def _name_ticks(axis: Any, names: Sequence[str] | None) -> None:
    from matplotlib.ticker import MaxNLocator

    if names is None:
        axis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    else:
        axis.set_ticks(range(len(names)), names)


def _legend(figure: Any, entries: dict[str, Any]) -> None:
    """One legend below all panels; none where a single unnamed series needs no name."""
    entries = {label: entry for label, entry in entries.items() if label}
    if not entries:
        return
    widest = max(len(label) for label in entries)
    figure.legend(
        list(entries.values()),
        list(entries),
        loc="outside lower center",
        ncols=max(1, min(len(entries), 105 // (widest + 9))),
    )


def _svg(figure: Any) -> str:
    """The figure as an ``<svg>`` element: no prologue, no date, no style that leaks into a page."""
    buffer = io.StringIO()
    figure.savefig(
        buffer,
        format="svg",
        dpi=200,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"\s*<defs>\s*<style[^>]*>[^<]*</style>\s*</defs>", "", text, count=1)
    text = text.replace("<svg ", '<svg style="stroke-linejoin: round; stroke-linecap: butt" ', 1)
    return text.replace(f"'{_MEASURED_FONT}'", _FONTS)


# --- checks --------------------------------------------------------------------------------------


def _not_empty(where: str, name: str, values: Sequence[Any]) -> None:
    if len(values) == 0:
        raise ValueError(f"{where}: {name} must not be empty.")


def _same_length(where: str, **sequences: Any) -> None:
    lengths = {name: len(sequence) for name, sequence in sequences.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"{where}: the arguments must share one length, got {listed}.")


def _numbers(where: str, name: str, values: ArrayLike) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: {name} must be an array of real numbers, got {type(values).__name__}."
        ) from error


def _vector(where: str, name: str, values: ArrayLike) -> np.ndarray:
    array = _numbers(where, name, values)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{where}: {name} must be a non-empty vector, got shape {array.shape}.")
    return array


def _above_zero(where: str, name: str, values: np.ndarray) -> None:
    if np.any(values <= 0):
        raise ValueError(
            f"{where}: {name} must be above 0 on a logarithmic axis, got {values.min()}."
        )


def _both_or_none(where: str, low: Any, high: Any) -> None:
    if (low is None) != (high is None):
        missing = "low" if low is None else "high"
        raise ValueError(f"{where}: low and high come together, but {missing} is None.")


def _check_reference(where: str, reference: Reference, panels: int) -> None:
    if not np.isfinite(reference.value):
        raise ValueError(
            f"{where}: references must be finite, got {reference.value} ({reference.label!r})."
        )
    if reference.panel is not None and not 0 <= reference.panel < panels:
        raise ValueError(
            f"{where}: panel of reference {reference.label!r} must be from 0 to {panels - 1}, got "
            f"{reference.panel}."
        )


def _curve_arrays(where: str, curve: Curve, panel: Panel) -> tuple[Any, Any, Any, Any]:
    """The checked arrays x, y, low, high of a curve; infinities become gaps."""
    _both_or_none(f"{where}: {curve.label!r}", curve.low, curve.high)
    given = {"x": curve.x, "y": curve.y, "low": curve.low, "high": curve.high}
    arrays: dict[str, Any] = {
        name: None if values is None else _vector(where, f"{name} of {curve.label!r}", values)
        for name, values in given.items()
    }
    _same_length(
        where,
        **{f"{name} of {curve.label!r}": a for name, a in arrays.items() if a is not None},
    )
    if panel.log_x:
        _above_zero(where, f"x of {curve.label!r}", arrays["x"])
    return tuple(  # type: ignore[return-value]
        None if array is None else np.where(np.isfinite(array), array, np.nan)
        for array in arrays.values()
    )
