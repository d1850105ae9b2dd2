"""What every experiment does around its measurement: records, terminal tables, a report.

An experiment is three functions: ``measure`` (arrays, the only slow part, done once and kept on
disk), ``summarise`` (numbers from the arrays) and ``sections`` (pictures from the arrays).
"""

import functools
import subprocess
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.progress import track

from icl_jax.records import Run, open_run
from icl_jax.report.page import Highlight, Section, write_page
from icl_jax.report.terminal import print_table

Arrays = dict[str, np.ndarray]
Item = TypeVar("Item")

#: Separates the test prompts' keys from the training's, whatever the seeds.
TEST_STREAM = 2**31 - 1


@dataclass(frozen=True)
class Outcome:
    """What an experiment found.

    Attributes:
      summary: its numbers, as they go into ``summary.json``.
      sections: its part of a report.
    """

    summary: dict[str, Any]
    sections: Sequence[Section]


@functools.cache
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


def start(workdir: str | Path, name: str, config: Any, *, free: Collection[str] = ()) -> Run:
    """Opens the run's folder; the errors of a folder that is taken come before any work.

    ``free`` are the fields of the configuration that may change between two calls.
    """
    return open_run(workdir, config, experiment=name, provenance=provenance(), free=free)


def measured(run: Run, measure: Callable[[], Mapping[str, Any]]) -> Arrays:
    """The arrays of an experiment: measured and saved, or read back when they are there."""
    if not run.has("arrays.npz"):
        run.save_arrays("arrays.npz", measure())
    return run.load_arrays("arrays.npz")


def each(items: Collection[Item], what: str) -> Iterator[Item]:
    """The items one by one, behind a progress bar on a terminal."""
    console = Console(stderr=True)
    yield from track(items, what, console=console, disable=not console.is_terminal)


def finish(
    run: Run,
    title: str,
    introduction: str | None,
    outcome: Outcome,
    *,
    highlights: Sequence[Highlight] = (),
    print_tables: bool = True,
) -> Outcome:
    """Writes ``summary.json`` and ``report.html``, and prints the tables.

    ``introduction`` is the experiment's docstring; the page shows what stands before its commands.
    """
    run.save_json("summary.json", outcome.summary)
    write_page(
        run.path("report.html"),
        title=title,
        introduction=_prose(introduction or ""),
        sections=outcome.sections,
        highlights=highlights,
        footer=_footer(run),
    )
    console = Console()
    for section in outcome.sections if print_tables else ():
        for table in section.tables:
            print_table(table, console)
    console.print(f"Report: {run.path('report.html')}", soft_wrap=True)
    return outcome


def _prose(docstring: str) -> str:
    """What a docstring says before its indented command lines."""
    paragraphs = docstring.strip().split("\n\n")
    return "\n\n".join(takewhile(lambda text: not text.startswith(" "), paragraphs))


def _footer(run: Run) -> str:
    about = run.load_json("provenance.json")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"Commit {about['commit']}; {about['device']}; {versions}."
