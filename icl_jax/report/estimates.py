"""Values with intervals by case: a row each, on an axis that is not logarithmic."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from icl_jax.report import arguments, style
from icl_jax.report.dots import Reference, check_reference, draw_rows
from icl_jax.report.looks import BEYOND, Role, group_looks


def estimates(
    rows: Sequence[str],
    groups: Sequence[str],
    values: ArrayLike,
    low: ArrayLike,
    high: ArrayLike,
    *,
    x_label: str,
    roles: Sequence[Role] | None = None,
    references: Sequence[Reference] = (),
    limits: tuple[float, float] | None = None,
) -> str:
    """A row per case, a marker and an interval per condition: no line joins cases without an order.

    Args:
      rows: R names of cases, for example tasks, from top to bottom.
      groups: G names of conditions.
      values: (R, G), of either sign; NaN means that the case was not measured.
      low, high: (R, G), the ends of the intervals.
      x_label: quantity and unit; say there what the intervals are.
      roles: G roles; None makes the first group "main" and the others "control".
      references: vertical lines with a label above.
      limits: the range shown, or None for all of it; what lies outside is an arrow at the edge.

    Returns:
      The figure as SVG text.

    Raises:
      ValueError: nothing to draw, lengths that differ, an unknown role, or an infinite value.
      ImportError: matplotlib is not installed.
    """
    where = "estimates"
    arguments.not_empty(where, "rows", rows)
    arguments.not_empty(where, "groups", groups)
    arrays = []
    for name, given in (("values", values), ("low", low), ("high", high)):
        array = arguments.numbers(where, name, given)
        if array.shape != (len(rows), len(groups)) or np.any(np.isinf(array)):
            raise ValueError(
                f"{where}: {name} must be finite (NaN for what was not measured) and of shape "
                f"(rows, groups) = {(len(rows), len(groups))}, got {array.shape}."
            )
        arrays.append(array)
    looks = group_looks(where, groups, roles)
    for reference in references:
        check_reference(where, reference, 1)
    first, last = limits or (-np.inf, np.inf)
    at, ends, starts = arrays[0], arrays[2], arrays[1]
    with style.new_figure(1, panel_height=0.95 + 0.5 * len(rows)) as (figure, (axis,)):
        style.decorate(axis, "", x_label, "", False, False)
        if limits is not None:
            axis.set_xlim(*limits)
        draw_rows(axis, rows, references, 26.0)
        shifts = np.linspace(-0.26, 0.26, len(groups)) if len(groups) > 1 else np.zeros(1)
        entries: dict[str, Any] = {}
        for g in reversed(range(len(groups))):
            look = looks[groups[g]]
            y = np.arange(len(rows)) + shifts[g]
            colour = {"color": look.colour, "zorder": 3 + (g == 0)}
            axis.hlines(y, starts[:, g].clip(first, last), ends[:, g].clip(first, last), **colour)
            colour |= {"linestyle": "", "markerfacecolor": look.colour if look.filled else "white"}
            inside = (at[:, g] >= first) & (at[:, g] <= last)
            marks = [(inside, look.point, 5.8), (at[:, g] < first, BEYOND[1], 7.0)]
            for shown, marker, size in [*marks, (at[:, g] > last, BEYOND[2], 7.0)]:
                x = at[:, g].clip(first, last)[shown]
                # Nothing, unclipped, would still take room below the axes.
                colour["clip_on"] = not shown.any()
                (mark,) = axis.plot(x, y[shown], marker=marker, markersize=size, **colour)
                entries.setdefault(groups[g], mark)
        style.add_legend(figure, {group: entries[group] for group in groups}, handle=1.2)
        return style.to_svg(figure)
