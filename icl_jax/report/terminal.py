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
    shown = rich_table.Table(
        title=Text(table.caption) if table.caption else None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for i, name in enumerate(table.header):
        shown.add_column(
            Text(name), justify="right" if table.is_numeric(i) else "left", overflow="fold"
        )
    for row in table.rows:
        # Text, not str: square brackets in a cell are not rich's markup.
        shown.add_row(*(Text(number(cell)) for cell in row))
    console.print(shown)
