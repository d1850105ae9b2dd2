"""Point clouds, and the means along them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from icl_jax.report import arguments, style
from icl_jax.report.looks import WIDTHS, Looks, Role, back_to_front

#: Above this many points, clouds are embedded as an image instead of one path per point.
MAX_VECTOR_POINTS = 1000


@dataclasses.dataclass(frozen=True)
class Cloud:
    """The points of one condition: ``label``, n ``x``, n ``y``, and its ``role``."""

    label: str
    x: ArrayLike
    y: ArrayLike
    role: Role = "main"


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
    arguments.not_empty(where, "clouds", clouds)
    if bins < 0:
        raise ValueError(f"{where}: bins must be at least 0, got {bins}.")
    looks = Looks(where)
    data = []
    for cloud in clouds:
        looks.add(cloud.label, cloud.role)
        x = arguments.vector(where, f"x of {cloud.label!r}", cloud.x)
        y = arguments.vector(where, f"y of {cloud.label!r}", cloud.y)
        arguments.same_length(where, **{f"x of {cloud.label!r}": x, f"y of {cloud.label!r}": y})
        finite = np.isfinite(x) & np.isfinite(y)
        x, y = x[finite], y[finite]
        for name, log, array in (("x", log_x, x), ("y", log_y, y)):
            if log:
                arguments.above_zero(where, f"{name} of {cloud.label!r}", array)
        data.append((x, y))

    with style.new_figure(1, panel_height=3.7) as (figure, (axis,)):
        style.decorate(axis, title, x_label, y_label, log_x, log_y)
        entries: dict[str, Any] = {}
        many = sum(len(x) for x, _ in data) > MAX_VECTOR_POINTS
        for i in back_to_front([cloud.role for cloud in clouds]):
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
            (line,) = axis.plot(ends, ends, **style.RULE)
            entries["y = x"] = line
        if bins:
            (line,) = axis.plot([], [], color=style.INK, linewidth=WIDTHS["main"])
            entries[f"lines: means of {bins} bins"] = line
        style.set_ticks(axis, log_x, log_y)
        style.add_legend(figure, looks.order(entries), handle=1.6)
        return style.to_svg(figure)
