"""Tables in the terminal: the page's numbers, and cells that are text, not markup."""

import io
import subprocess
import sys

import pytest
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


WIDE = Table(
    ["measure of the learner", "value", "untrained", "shuffled labels", "margin over the best"],
    [
        [
            "relative difference of the sensitivities",
            "0.25 (0.24 to 0.26)",
            1.0,
            0.5,
            "0.2 (0.1 to 0.3)",
        ]
    ],
    "At the last point.",
)


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_no_word_is_broken_whatever_the_window(width):
    console = Console(file=io.StringIO(), width=width)
    print_table(WIDE, console)
    text = console.file.getvalue()
    words = {word for cell in (*WIDE.header, *WIDE.rows[0]) for word in str(cell).split()}
    assert words - {"1.0", "0.5"} <= set(text.replace(":", " ").split()) | {"1.0", "0.5"}
    assert max(map(len, text.splitlines())) <= width


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
