"""Dot plots: values over many decades, an exact zero among them."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from icl_jax.report import arguments, style
from icl_jax.report.looks import Role, group_looks


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
    arguments.not_empty(where, "rows", rows)
    arguments.not_empty(where, "groups", groups)
    arguments.not_empty(where, "titles", titles)
    array = arguments.numbers(where, "values", values)
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
    looks = group_looks(where, groups, roles)
    for reference in references:
        check_reference(where, reference, len(titles))
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
            draw_rows(axis, rows, here, 12.0)
            style.set_log_ticks(axis.xaxis, first, last, zero_at if has_zero else None)
            if has_zero:
                axis.axvline(break_at, color="#999999", linewidth=0.8, linestyle=(0, (2, 2)))
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


def draw_rows(axis: Any, rows: Sequence[str], references: Sequence[Reference], band: float) -> None:
    """The names of the rows, a band of so many points behind each, and the labelled lines."""
    axis.set_ylim(len(rows) - 0.4, -0.6)
    axis.set_yticks(range(len(rows)), rows)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="y", linewidth=band, color="#f6f6f6")
    for i, reference in enumerate(references):
        axis.axvline(reference.value, **style.RULE)
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


def check_reference(where: str, reference: Reference, panels: int) -> None:
    """Raises ValueError unless the reference is finite and on one of the panels."""
    if not np.isfinite(reference.value):
        raise ValueError(
            f"{where}: references must be finite, got {reference.value} ({reference.label!r})."
        )
    if reference.panel is not None and not 0 <= reference.panel < panels:
        raise ValueError(
            f"{where}: panel of reference {reference.label!r} must be from 0 to {panels - 1}, got "
            f"{reference.panel}."
        )
