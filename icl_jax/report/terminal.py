"""The tables of a report, in the terminal."""

from rich import box
from rich import table as rich_table
from rich.console import Console
from rich.text import Text

from icl_jax.report.page import Table, number


def print_table(table: Table, console: Console | None = None) -> None:
    """Prints ``table`` with its caption above; numbers as in the page, flush right.

    Args:
      table: the record that ``write_page`` takes.
      console: where to print; None makes one for standard output.
    """
    console = Console() if console is None else console
    widths = _widths(table, console.width)
    if widths is None:
        _print_stacked(table, console)
        return
    shown = rich_table.Table(
        title=Text(table.caption) if table.caption else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for i, (name, width) in enumerate(zip(table.header, widths, strict=True)):
        shown.add_column(
            Text(name),
            justify="right" if table.is_numeric(i) else "left",
            overflow="fold",
            width=width,
        )
    for row in table.rows:
        # Text, not str: square brackets in a cell are not rich's markup.
        shown.add_row(*(Text(number(cell)) for cell in row))
    console.print(shown)


def _widths(table: Table, limit: int) -> list[int] | None:
    """A width for every column such that all fit and no word is broken; None where none is."""
    columns = [
        [name, *(number(row[i]) for row in table.rows)] for i, name in enumerate(table.header)
    ]
    least = [max((len(word) for cell in c for word in cell.split()), default=1) for c in columns]
    most = [max(len(cell) for cell in c) for c in columns]
    spare = (
        limit - sum(least) - 3 * len(columns) + 1
    )  # Three between two columns, one at either end.
    if spare < 0:
        return None
    widths = list(least)
    for i in sorted(range(len(columns)), key=lambda i: most[i] - least[i]):
        more = min(most[i] - least[i], spare)
        widths[i], spare = widths[i] + more, spare - more
    return widths


def _print_stacked(table: Table, console: Console) -> None:
    """A row under the other, a cell per line: for windows that are narrower than the table."""
    if table.caption:
        console.print(Text(table.caption, style="bold"))
    for row in table.rows:
        console.print()
        for name, cell in zip(table.header, row, strict=True):
            console.print(Text(f"{name}: {number(cell)}" if name else number(cell)))
    console.print()
