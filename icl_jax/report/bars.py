"""Grouped bars from zero, with error bars."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from icl_jax.report import arguments, style
from icl_jax.report.dots import Reference, check_reference
from icl_jax.report.looks import Role, group_looks


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
    arguments.not_empty(where, "categories", categories)
    arguments.not_empty(where, "groups", groups)
    expected = (len(categories), len(groups))
    arrays = {"values": arguments.numbers(where, "values", values)}
    arguments.both_or_none(where, low, high)
    if low is not None and high is not None:
        arrays["low"], arrays["high"] = (
            arguments.numbers(where, "low", low),
            arguments.numbers(where, "high", high),
        )
    for name, array in arrays.items():
        if array.shape != expected:
            raise ValueError(
                f"{where}: {name} must have shape (categories, groups) = {expected}, got "
                f"{array.shape}."
            )
    looks = group_looks(where, groups, roles)
    for reference in references:
        check_reference(where, reference, 1)

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
            axis.axhline(reference.value, **style.RULE)
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
