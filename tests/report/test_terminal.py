"""Tables in the terminal: the page's numbers, and cells that are text, not markup."""

import io
import subprocess
import sys

from rich.console import Console

from icl_jax.report.page import Table
from icl_jax.report.terminal import print_table


def _printed(table):
    console = Console(file=io.StringIO(), width=80)
    print_table(table, console)
    return console.file.getvalue()


def test_a_table_shows_its_caption_header_and_numbers():
    text = _printed(Table(["wiring", "error"], [["skip", 1.234e-7], ["none", None]], "Errors."))
    for shown in ("Errors.", "wiring", "error", "skip", "1.2e-07", "–"):
        assert shown in text


def test_square_brackets_are_not_markup():
    assert "[bold]x[/bold]" in _printed(Table(["[red]a"], [["[bold]x[/bold]"]]))


def test_a_table_goes_to_standard_output_unless_told(capsys):
    print_table(Table(["a"], [[12]]))
    assert "12" in capsys.readouterr().out


def test_reports_import_neither_jax_nor_flax_nor_matplotlib():
    code = (
        "import sys, icl_jax; before = set(sys.modules)\n"
        "import icl_jax.report.figures, icl_jax.report.page, icl_jax.report.terminal\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "sys.exit(str(new & {'jax', 'flax', 'matplotlib'}) if new & {'jax', 'flax', 'matplotlib'} "
        "else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
