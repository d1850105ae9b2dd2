"""Lines with interval bands, in panels side by side."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from icl_jax.report import arguments, style
from icl_jax.report.looks import BEYOND, Looks, Role, back_to_front


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


def curves(
    panels: Sequence[Panel], *, share_y: bool = False, band: str = "95% interval of the mean"
) -> str:
    """Lines with interval bands, in panels side by side (at most three in a row).

    Args:
      panels: at least one; the legend below is shared.
      share_y: gives all panels one vertical range, for values that are to be compared across.
      band: what the intervals around curves are, for the legend.

    Returns:
      The figure as SVG text.

    Raises:
      ValueError: no panels, a panel without curves, lengths that differ, an unknown role, an x at
        or below 0 on a logarithmic axis, or panels that cannot share an axis.
      ImportError: matplotlib is not installed.
    """
    where = "curves"
    arguments.not_empty(where, "panels", panels)
    looks = Looks(where)
    data = []
    for panel in panels:
        arguments.not_empty(where, f"curves of panel {panel.title!r}", panel.curves)
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
            for i in back_to_front([curve.role for curve in panel.curves]):
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
                        marker=BEYOND[0],
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
        for axis, panel, arrays in zip(axes, panels, data, strict=True):
            style.set_ticks(axis, panel.log_x, panel.log_y)
            counts = np.concatenate([x for x, *_ in arrays])
            if not panel.log_x and np.all(counts == np.round(counts)):
                style.count_ticks(axis.xaxis)
        if any(low is not None for arrays in data for _, _, low, _ in arrays):
            from matplotlib.patches import Patch

            entries[band] = Patch(facecolor="#767676", alpha=0.25, linewidth=0)
        if off_scale is not None:
            entries["0 or below (off the scale)"] = off_scale
        style.add_legend(figure, looks.order(entries))
        return style.to_svg(figure)


def _check_limits(where: str, panel: Panel) -> None:
    if panel.y_limits is not None:
        low, high = panel.y_limits
        if not low < high or (panel.log_y and low <= 0):
            raise ValueError(
                f"{where}: y_limits of panel {panel.title!r} must be (low, high) with low below "
                f"high{' and above 0' if panel.log_y else ''}, got {panel.y_limits}."
            )


def _smallest_positive(arrays: Sequence[list[Any]]) -> float:
    """The smallest value above 0 among the lines and lower ends of a panel's curves."""
    values = np.concatenate([a for _, y, low, _ in arrays for a in (y, low) if a is not None])
    positive = values[values > 0]
    return float(positive.min()) if positive.size else 0.1


def _curve_arrays(where: str, curve: Curve, panel: Panel) -> list[Any]:
    """The checked arrays x, y, low, high of a curve, None for no interval; infinities are gaps."""
    arguments.both_or_none(f"{where}: {curve.label!r}", curve.low, curve.high)
    names = ["x", "y"] if curve.low is None else ["x", "y", "low", "high"]
    named = {f"{name} of {curve.label!r}": getattr(curve, name) for name in names}
    arrays = {name: arguments.vector(where, name, values) for name, values in named.items()}
    arguments.same_length(where, **arrays)
    x, y, *interval = arrays.values()
    if panel.log_x:
        arguments.above_zero(where, f"x of {curve.label!r}", x)
    finite = [np.where(np.isfinite(array), array, np.nan) for array in (x, y, *interval)]
    return finite if interval else [*finite, None, None]
