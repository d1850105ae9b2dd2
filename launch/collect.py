"""What a sweep found, in one table and on one page.

    python -m launch.collect --workdir=DIR

writes DIR/table.csv and DIR/report.html: every result with the settings in which they differ, and
each number over each swept axis. ``--numbers`` chooses the numbers, ``--parquet`` writes the table
as Parquet, too (needs the extra ``parquet``).
"""

import csv
import io
import shlex
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import rich.console

from experiments.tools.flags import UsageError, describe, option, parse, typed
from experiments.tools.output import told
from icl_jax.records import read_plain
from icl_jax.report.figures import Curve, Panel, curves
from icl_jax.report.page import Highlight, Section, Table, number, render_page
from icl_jax.report.terminal import print_table
from launch import origins
from launch.layout import Layout, check_reachable, write_whole
from launch.table import FIXED, SweepTable, gather, is_number

#: A page shows so many rows, a terminal fewer, and neither more columns than fit on paper; the CSV
#: file has them all.
MOST_ROWS, MOST_PRINTED, MOST_COLUMNS = 200, 20, 12
#: Figures are drawn for so many numbers unless they are named.
MOST_NUMBERS = 6
#: Characters of a name beside the upright axis of a figure.
_AXIS_LENGTH = 34


@dataclass(frozen=True)
class Config:
    """What is shown."""

    numbers: tuple[str, ...] = option((), f"to draw; empty: the first {MOST_NUMBERS}")
    parquet: bool = option(False, "write table.parquet, too")
    title: str = option("Sweep", "of the page")


def main(argv: Sequence[str] | None = None, console: rich.console.Console | None = None) -> int:
    """The command; returns the exit code."""
    console = console or rich.console.Console()
    try:
        parsed = parse(Config, list(sys.argv if argv is None else argv))
        if parsed.help:
            print(describe(Config, __doc__, "collect", package="launch"))
            return 0
        if parsed.workdir is None:
            raise UsageError("--workdir=DIR is missing: the folder of the sweep.")
        _collect(parsed.config, Layout(str(parsed.workdir)), console)
    except (UsageError, FileNotFoundError) as error:
        print(f"collect: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _collect(config: Config, layout: Layout, console: rich.console.Console) -> None:
    check_reachable(layout.workdir)
    table = gather(layout)
    unknown = [name for name in config.numbers if name not in table.numbers]
    if unknown:
        raise UsageError(
            f"--numbers={unknown[0]}: the results have no such number. They have "
            f"{', '.join(table.numbers)}."
        )
    if config.parquet:
        _write_parquet(table, layout)
    write_whole(layout.root / "table.csv", to_csv(table))
    listed = _listed(layout)
    missing = len(listed - {row["id"] for row in table.rows})
    where = f"python -m launch.collect --workdir={shlex.quote(layout.workdir)}"
    command = where + "".join(typed(config, Config()))
    text = page(config, table, missing, footer=origins.footer(layout, table, command))
    write_whole(layout.root / "report.html", text)
    names = columns(table, numbers(config, table))
    shown = table.cells(names)[:MOST_PRINTED]
    print_table(Table(names, shown, f"{len(table.rows)} results"), console)
    if len(table.rows) > MOST_PRINTED:
        console.print(f"... and {len(table.rows) - MOST_PRINTED} more")
    if missing:
        console.print(f"{missing} of the {len(listed)} runs of the sweep are not done.")
    console.print(f"Table: {layout.root / 'table.csv'}", soft_wrap=True)
    console.print(f"Report: {layout.root / 'report.html'}", soft_wrap=True)


def to_csv(table: SweepTable) -> str:
    """The table as CSV text, numbers in full."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(table.header)
    writer.writerows(["" if cell is None else cell for cell in row] for row in table.cells())
    return buffer.getvalue()


def page(config: Config, table: SweepTable, missing: int, *, footer: str) -> str:
    """The report's HTML text."""
    names = numbers(config, table)
    axes = [name for name in table.axes if _is_drawn(table, name)]
    sections = [_over(table, axis, names) for axis in axes if names]
    shown = columns(table, names)
    rows = table.cells(shown)
    more = "" if len(rows) <= MOST_ROWS else f" The first {MOST_ROWS} of {len(rows)}."
    left = len(table.header) - len(shown)
    rest = f"all rows in full, and {left} more columns" if left else "them in full"
    sections.append(
        Section(
            "Every result",
            f"The settings in which the runs differ, and their numbers; `table.csv` has {rest}."
            f"{more}",
            verdict=" ".join(_lowest(table, name) for name in names[:3]),
            tables=[Table(shown, rows[:MOST_ROWS])],
        )
    )
    highlights = [Highlight("results", len(rows), f"{missing} not done" if missing else "all done")]
    for name in names[:3]:
        lowest, where = _lowest_of(table, name)
        highlights.append(Highlight(f"lowest {name}", lowest, where))
    return render_page(
        title=config.title,
        introduction=f"{len(rows)} runs that differ in {_list(table.axes)}.",
        sections=sections,
        highlights=highlights,
        footer=footer,
        settings=origins.settings(table),
    )


def numbers(config: Config, table: SweepTable) -> Sequence[str]:
    """Those that are drawn: what was asked for, or the first ones that differ."""
    return config.numbers or [n for n in table.numbers if _is_drawn(table, n)][:MOST_NUMBERS]


def columns(table: SweepTable, names: Sequence[str]) -> list[str]:
    """Those of the table that people see: the run, its settings as far as they fit, the numbers."""
    first = ["id"] if len({row["experiment"] for row in table.rows}) == 1 else list(FIXED)
    last = names[: MOST_COLUMNS - len(first) - 1] or table.numbers[:MOST_NUMBERS]
    return [*first, *table.axes[: MOST_COLUMNS - len(first) - len(last)], *last]


def _over(table: SweepTable, axis: str, names: Sequence[str]) -> Section:
    """Each number over one axis: the mean over all that else differs, and its range."""
    panels, said = [], []
    for name in names:
        groups: dict[float, list[float]] = defaultdict(list)
        for row in table.rows:
            if is_number(row.get(axis)) and is_number(row.get(name)):
                groups[row[axis]].append(row[name])
        x = sorted(groups)
        means = {value: statistics.fmean(groups[value]) for value in x}
        best, worst = min(x, key=means.__getitem__), max(x, key=means.__getitem__)
        said.append(
            f"{name} is lowest in the mean, {number(means[best])}, at {best:g}, against "
            f"{number(means[worst])} at {worst:g}, where it is highest."
        )
        panels.append(
            Panel(
                "",
                [
                    Curve(
                        "mean over all runs with the value",
                        x,
                        list(means.values()),
                        low=[min(groups[value]) for value in x],
                        high=[max(groups[value]) for value in x],
                    )
                ],
                axis.rpartition(".")[2],
                # Broken at its parts where it is longer than its axis.
                name if len(name) <= _AXIS_LENGTH else name.replace(".", ". "),
                log_x=x[0] > 0 and x[-1] >= 10 * x[0],
            )
        )
    return Section(
        f"Over {axis}",
        "The line is the mean over all runs with that value, whatever else they differ in; the "
        "band reaches from the lowest to the highest of them.",
        verdict=" ".join(said),
        figure=curves(panels, band="from the lowest to the highest"),
    )


def _lowest_of(table: SweepTable, name: str) -> tuple[float, str]:
    """The lowest of a number, and the settings at which it is."""
    found = (row for row in table.rows if is_number(row.get(name)))
    lowest = min(found, key=lambda row: row[name])
    places = [f"{axis.rpartition('.')[2]} {lowest[axis]}" for axis in table.axes if axis in lowest]
    return lowest[name], ", ".join(places)


def _lowest(table: SweepTable, name: str) -> str:
    """The same in words, beside the run in the middle."""
    lowest, where = _lowest_of(table, name)
    values = [row[name] for row in table.rows if is_number(row.get(name))]
    middle = f"(median of {len(values)} runs: {number(statistics.median(values))})"
    return f"Lowest {name}: {number(lowest)}{f' at {where}' if where else ''} {middle}."


def _is_drawn(table: SweepTable, name: str) -> bool:
    """Whether a column has at least two different numbers."""
    return len({row[name] for row in table.rows if is_number(row.get(name))}) > 1


def _list(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "nothing"


def _listed(layout: Layout) -> set[str]:
    """The ids that the drivers were asked for."""
    found: set[str] = set()
    for path in layout.root.glob("sweep*.json"):
        found |= read_plain(path)["runs"].keys()
    return found


def _write_parquet(table: SweepTable, layout: Layout) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(
            "--parquet needs pyarrow: pip install 'icl_jax[parquet]'; table.csv needs nothing."
        ) from error
    cells = table.cells()
    columns: dict[str, Any] = {
        name: [row[i] for row in cells] for i, name in enumerate(table.header)
    }
    for name, values in columns.items():
        kinds = {type(value) for value in values if value is not None}
        if len(kinds - {int, float}) > 0 and len(kinds) > 1:  # Parquet columns have one type.
            columns[name] = [None if value is None else str(value) for value in values]
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), buffer)
    (layout.root / "table.parquet").write_bytes(buffer.getvalue())


if __name__ == "__main__":
    with told("collect"):
        sys.exit(main())
