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

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from icl_jax.report import style
from icl_jax.report.style import Role

#: Above this many points, clouds are embedded as an image instead of one path per point.
MAX_VECTOR_POINTS = 1000
#: Up to this many cells per side, a heat map can carry its numbers.
MAX_ANNOTATED_CELLS = 10


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


def curves(panels: Sequence[Panel], *, share_y: bool = False) -> str:
    """Lines with interval bands, in panels side by side (at most three in a row).

    Args:
      panels: at least one; the legend below is shared.
      share_y: gives all panels one vertical range, for values that are to be compared across.

    Returns:
      The figure as SVG text.

    Raises:
      ValueError: no panels, a panel without curves, lengths that differ, an unknown role, an x at
        or below 0 on a logarithmic axis, or panels that cannot share an axis.
      ImportError: matplotlib is not installed.
    """
    where = "curves"
    _not_empty(where, "panels", panels)
    looks = style.Looks(where)
    data = []
    for panel in panels:
        _not_empty(where, f"curves of panel {panel.title!r}", panel.curves)
        _check_limits(where, panel)
        data.append([_curve_arrays(where, curve, panel) for curve in panel.curves])
        for curve in panel.curves:
            looks.add(curve.label, curve.role)
    if share_y and len({(panel.y_label, panel.log_y) for panel in panels}) > 1:
        raise ValueError(
            f"{where}: share_y needs the same y_label and log_y in all panels, got "
            f"{[(panel.y_label, panel.log_y) for panel in panels]}."
        )

    with style.new_figure(len(panels), share_y=share_y) as (figure, axes):
        entries: dict[str, Any] = {}
        off_scale = None
        bottoms = [_smallest_positive(arrays) for arrays in data]
        if share_y:
            bottoms = [min(bottoms)] * len(panels)
        for p, (axis, panel, arrays) in enumerate(zip(axes, panels, data, strict=True)):
            y_label = "" if share_y and p % style.num_columns(len(panels)) else panel.y_label
            style.decorate(axis, panel.title, panel.x_label, y_label, panel.log_x, panel.log_y)
            # Controls first: what we claim something about lies on top.
            for i in _back_to_front(panel.curves):
                curve, (x, y, low, high) = panel.curves[i], arrays[i]
                look = looks[curve.label]
                hidden = (y <= 0) & panel.log_y
                (line,) = axis.plot(
                    x,
                    np.where(hidden, np.nan, y),
                    color=look.colour,
                    linestyle=look.line,
                    linewidth=look.width,
                    marker=look.marker,
                    markevery=max(1, -(-len(x) // 10)),
                    markerfacecolor=look.colour if look.filled else "white",
                )
                entries.setdefault(curve.label, line)
                if low is not None and high is not None:
                    if panel.log_y:
                        # An interval that reaches 0 runs through the lower edge.
                        low = np.maximum(low, bottoms[p] * 1e-2)
                        high = np.maximum(high, bottoms[p] * 1e-2)
                    axis.fill_between(x, low, high, color=look.colour, alpha=0.16, linewidth=0)
                if hidden.any():
                    (off_scale,) = axis.plot(
                        x[hidden],
                        np.zeros(int(hidden.sum())),
                        linestyle="",
                        marker="v",
                        markersize=5.0,
                        markerfacecolor="white",
                        markeredgecolor=look.colour,
                        transform=axis.get_xaxis_transform(),
                        clip_on=False,
                        zorder=5,
                    )
            if panel.y_limits is not None:
                axis.set_ylim(*panel.y_limits)
            elif panel.log_y:
                axis.set_ylim(bottom=bottoms[p] * 0.75)
        for axis, panel in zip(axes, panels, strict=True):
            style.set_ticks(axis, panel.log_x, panel.log_y)
        if off_scale is not None:
            entries["0 or below (off the scale)"] = off_scale
        style.add_legend(figure, looks.order(entries))
        return style.to_svg(figure)


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

    positive = np.array([*array[array > 0], *(reference.value for reference in references)])
    if positive.size == 0:
        positive = np.array([0.1, 1.0])
    first = int(np.floor(np.log10(positive.min()) - 0.15))
    last = int(np.ceil(np.log10(positive.max()) + 0.15))
    has_zero = bool(np.any(array == 0))
    gap = 0.09 * (last - first)
    zero_at, break_at = 10.0 ** (first - gap), 10.0 ** (first - gap / 2)
    left = 10.0 ** (first - 1.6 * gap) if has_zero else 10.0**first

    # Several controls stand beside each other within their row: near 1 they would hide each other.
    shifts = np.zeros(len(groups))
    if len(groups) > 2:
        shifts[1:] = np.linspace(-0.2, 0.2, len(groups) - 1)

    height = 0.95 + 0.32 * len(rows)
    with style.new_figure(len(titles), panel_height=height, share_y=True) as (figure, axes):
        entries: dict[str, Any] = {}
        for p, (axis, title) in enumerate(zip(axes, titles, strict=True)):
            here = [r for r in references if r.panel is None or r.panel == p]
            style.decorate(axis, title, x_label, "", True, False)
            axis.set_title(title, pad=7.0 + 11.0 * min(len(here), 2))
            axis.set_xlim(left, 10.0**last)
            axis.set_ylim(len(rows) - 0.4, -0.6)
            axis.set_yticks(range(len(rows)), rows)
            axis.tick_params(axis="y", length=0)
            axis.grid(axis="y", linewidth=12.0, color="#f6f6f6")
            style.set_log_ticks(axis.xaxis, first, last, zero_at if has_zero else None)
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
                    (np.arange(len(rows)) + shifts[g])[shown],
                    linestyle="",
                    marker=look.point,
                    markersize=5.8,
                    markeredgewidth=1.4,
                    markerfacecolor=look.colour if look.filled else "none",
                    markeredgecolor=look.colour,
                    clip_on=False,
                    zorder=3 + (g == 0),
                )
                entries.setdefault(groups[g], marks)
        style.add_legend(figure, {group: entries[group] for group in groups}, handle=1.2)
        return style.to_svg(figure)


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
    # Cells are square unless that would make a panel a strip or a tower.
    tallest = max(array.shape[0] / array.shape[1] for array in arrays)
    square = all(0.5 <= array.shape[0] / array.shape[1] <= 2 for array in arrays)
    panel_width = (style.WIDTH - 1.0) / columns - 0.35
    height = float(np.clip(tallest * panel_width, 1.3, 3.6)) + 0.35
    with style.new_figure(len(arrays), panel_height=height, columns=columns) as (figure, axes):
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
            style.decorate(axis, title, x_label, y_label if first_column else "", False, False)
            axis.grid(False)
            axis.tick_params(length=2)
            image = axis.imshow(
                array,
                cmap=colours,
                vmin=-reach if diverging else low,
                vmax=reach if diverging else high,
                interpolation="none",
                aspect="equal" if square else "auto",
            )
            for spine in axis.spines.values():
                spine.set_visible(True)
                spine.set_color("#bbbbbb")
            style.name_ticks(axis.xaxis, x_ticks)
            style.name_ticks(axis.yaxis, y_ticks)
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
                        color="white" if share > 0.55 else style.INK,
                    )
        bar = figure.colorbar(image, ax=list(axes), pad=0.02, fraction=0.05, aspect=16)
        bar.ax.set_ylim(low, high)
        bar.set_label(value_label)
        bar.outline.set_edgecolor("#bbbbbb")
        bar.solids.set_edgecolor("face")
        return style.to_svg(figure)


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
    looks = style.Looks(where)
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

    with style.new_figure(1, panel_height=3.7) as (figure, (axis,)):
        style.decorate(axis, title, x_label, y_label, log_x, log_y)
        entries: dict[str, Any] = {}
        many = sum(len(x) for x, _ in data) > MAX_VECTOR_POINTS
        for i in _back_to_front(clouds):
            look, (x, y) = looks[clouds[i].label], data[i]
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
                means = [[axis_values[group].mean() for group in groups] for axis_values in (x, y)]
                # A white casing keeps the line apart from its own points.
                axis.plot(*means, color="white", linewidth=look.width + 2.4, zorder=4)
                axis.plot(
                    *means, color=look.colour, linestyle=look.line, linewidth=look.width, zorder=4
                )
        if diagonal:
            ends = [
                max(axis.get_xlim()[0], axis.get_ylim()[0]),
                min(axis.get_xlim()[1], axis.get_ylim()[1]),
            ]
            (line,) = axis.plot(ends, ends, color="#111111", linewidth=1.0, linestyle=(0, (1, 1.6)))
            entries["y = x"] = line
        if bins:
            (line,) = axis.plot([], [], color=style.INK, linewidth=style.WIDTHS["main"])
            entries[f"lines: means of {bins} bins"] = line
        style.set_ticks(axis, log_x, log_y)
        style.add_legend(figure, looks.order(entries), handle=1.6)
        return style.to_svg(figure)


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

    with style.new_figure(1, panel_height=2.9) as (figure, (axis,)):
        style.decorate(axis, title, "", y_label, False, False)
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
                facecolor="white" if look.outline else look.colour,
                edgecolor=look.colour if look.outline else "white",
                linewidth=1.0 if look.outline else 0.0,
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
                    ecolor=style.INK,
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
        style.add_legend(figure, entries, handle=1.6)
        return style.to_svg(figure)


def _back_to_front(series: Sequence[Curve] | Sequence[Cloud]) -> list[int]:
    """The order of drawing: controls first, what we claim something about last."""
    return sorted(range(len(series)), key=lambda i: -style.ROLES.index(series[i].role))


def _group_looks(where: str, groups: Sequence[str], roles: Sequence[str] | None) -> style.Looks:
    if roles is None:
        roles = ["main"] + ["control"] * (len(groups) - 1)
    _same_length(where, groups=groups, roles=roles)
    if len(set(groups)) != len(groups):
        raise ValueError(f"{where}: groups must have different names, got {list(groups)}.")
    looks = style.Looks(where)
    for group, role in zip(groups, roles, strict=True):
        looks.add(group, role)
    return looks


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


def _check_limits(where: str, panel: Panel) -> None:
    if panel.y_limits is not None:
        low, high = panel.y_limits
        if not low < high or (panel.log_y and low <= 0):
            raise ValueError(
                f"{where}: y_limits of panel {panel.title!r} must be (low, high) with low below "
                f"high{' and above 0' if panel.log_y else ''}, got {panel.y_limits}."
            )


def _smallest_positive(arrays: Sequence[tuple[Any, ...]]) -> float:
    """The smallest value above 0 among the lines and lower ends of a panel's curves."""
    values = np.concatenate([a for _, y, low, _ in arrays for a in (y, low) if a is not None])
    return float(np.min(values[values > 0], initial=np.inf)) if np.any(values > 0) else 0.1


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
