"""Matrices side by side, under one colour bar."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from icl_jax.report import arguments, style

#: Up to this many cells per side, a heat map can carry its numbers.
MAX_ANNOTATED_CELLS = 10


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
    arguments.not_empty(where, "matrices", matrices)
    arguments.same_length(where, matrices=matrices, titles=titles)
    arrays = [
        arguments.numbers(where, f"matrices[{i}]", matrix) for i, matrix in enumerate(matrices)
    ]
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

        # Cells keep their colours on a dark plate, so none is among those of ``style.DARK``.
        stops = (
            ["#8a3b00", "#e08a3c", "#fffffe", "#4d94c4", "#083a5f"]
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
                        color="#fffffe" if share > 0.55 else "#222223",
                    )
        bar = figure.colorbar(image, ax=list(axes), pad=0.02, fraction=0.05, aspect=16)
        bar.ax.set_ylim(low, high)
        bar.set_label(value_label)
        bar.outline.set_edgecolor("#bbbbbb")
        bar.solids.set_edgecolor("face")
        return style.to_svg(figure)
