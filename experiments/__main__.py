"""Lists the experiments with their questions: ``python -m experiments``."""

import ast

from rich.console import Console
from rich.table import Table

from experiments import EXPERIMENTS, source
from experiments.tools.output import told


def question(name: str) -> str:
    """What an experiment asks: the first line of its docstring."""
    doc = ast.get_docstring(ast.parse(source(name).read_text())) or ""
    return doc.partition("\n")[0]


def main() -> None:
    """Prints a line per experiment, and how to start one."""
    table = Table("experiment", "question", box=None, pad_edge=False)
    for name in EXPERIMENTS:
        table.add_row(name, question(name))
    console = Console()
    console.print(table)
    console.print("\nRun one: python -m experiments.NAME --workdir=DIR; its settings: --help.")


if __name__ == "__main__":
    with told("experiments"):
        main()
