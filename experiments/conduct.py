"""What every experiment does around its measurement: records, terminal tables, a report.

An experiment is three functions: ``measure`` (arrays, the only slow part, done once and kept on
disk), ``summarise`` (numbers from the arrays) and ``sections`` (pictures from the arrays).
"""

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from icl_jax.records import Run, open_run
from icl_jax.report.page import Section, write_page
from icl_jax.report.terminal import print_table

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes:
      summary: its numbers, as they go into ``summary.json``.
      sections: its part of a report.
    """

    summary: dict[str, Any]
    sections: Sequence[Section]


def provenance() -> dict[str, str]:
    """The commit of the code, where git can tell."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return {"commit": "unknown"}
    return {"commit": described.stdout.strip()}


def start(workdir: str | Path, name: str, config: Any) -> Run:
    """Opens the run's folder; the errors of a folder that is taken come before any work."""
    return open_run(workdir, config, experiment=name, provenance=provenance())


def measured(run: Run, measure: Callable[[], Mapping[str, Any]]) -> Arrays:
    """The arrays of an experiment: measured and saved, or read back when they are there."""
    if not run.has("arrays.npz"):
        run.save_arrays("arrays.npz", measure())
    return run.load_arrays("arrays.npz")


def finish(run: Run, title: str, introduction: str, outcome: Outcome) -> Outcome:
    """Writes ``summary.json`` and ``report.html``, and prints the tables."""
    run.save_json("summary.json", outcome.summary)
    write_page(
        run.path("report.html"),
        title=title,
        introduction=introduction,
        sections=outcome.sections,
    )
    console = Console()
    for section in outcome.sections:
        for table in section.tables:
            print_table(table, console)
    console.print(f"Report: {run.path('report.html')}")
    return outcome
