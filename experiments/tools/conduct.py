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

import jax
from rich.console import Console
from rich.progress import track

from experiments.tools.arrays import NO_NAMES, Names, Record, flatten, rebuild
from experiments.tools.flags import command, settings
from icl_jax.records import Run, WorkdirError, open_run, read_plain
from icl_jax.report.page import Highlight, Section, write_page
from icl_jax.report.terminal import print_table

#: By which code and on which device the arrays beside it were measured.
MEASUREMENT = "measurement.json"
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


#: The root of the checkout that the experiments run from.
CHECKOUT = Path(__file__).parents[2]


def commit() -> str:
    """The commit of the code, where git can tell: of this project's repository, not of another."""
    return _commit_of(CHECKOUT)


@functools.cache
def _commit_of(checkout: Path) -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=checkout, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        # A copy inside somebody else's repository has no commit of its own.
        if Path(git("rev-parse", "--show-toplevel")).resolve() != checkout.resolve():
            return "unknown"
        git("ls-files", "--error-unmatch", str(Path(__file__).resolve()))
        return git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def provenance() -> dict[str, str]:
    """What a record says of the code."""
    return {"commit": commit()}


def start(workdir: str | Path, name: str, config: Any, *, free: Collection[str] = ()) -> Run:
    """Opens the run's folder; the errors of a folder that is taken come before any work.

    ``free`` are the fields of the configuration that may change between two calls.
    """
    about = {**provenance(), "command": command(name, config, Path(workdir))}
    return open_run(workdir, config, experiment=name, provenance=about, free=free)


def measured(
    run: Run,
    kind: type[Record],
    measure: Callable[[], Record],
    *,
    names: Names = NO_NAMES,
    file: str = "arrays.npz",
) -> Record:
    """What an experiment measured: done and saved, or read back when it is there.

    Args:
      run: the folder.
      kind: a frozen dataclass of arrays.
      measure: makes one.
      names: of the mappings in it: what must be there, and nothing else.
      file: its name in the folder, of a part that is saved by itself.

    Raises:
      WorkdirError: what is there is no such record: another version measured it.
      ValueError: what was measured just now has other names than it should.
    """
    earlier = str(Path(file).with_suffix(".json"))
    if not run.has(file):
        if run.has(earlier):
            raise WorkdirError(
                f"{run.path(earlier)}: an earlier version measured this, which kept no arrays. "
                "Choose another --workdir."
            )
        arrays = flatten(measure())
        rebuild(kind, arrays, names)  # What could not be read is not saved.
        run.save_arrays(file, arrays)
        note_measurement(run)
    arrays = run.load_arrays(file)
    try:
        return rebuild(kind, arrays, names)
    except ValueError as error:
        raise WorkdirError(f"{run.path(file)}: {error}") from error


def note_measurement(run: Run) -> None:
    """Writes beside what was just measured by which code it was, and on what."""
    about = run.load_json("provenance.json")
    now = {name: about[name] for name in ("commit", "device")}
    earlier = run.load_json(MEASUREMENT) if run.has(MEASUREMENT) else []
    run.save_json(MEASUREMENT, [*earlier, *([] if now in earlier else [now])])


def measurements(folder: Path) -> list[Mapping[str, Any]]:
    """All that ``note_measurement`` noted in the folder of a run, and in those of its parts."""
    noted = [path for at in ("", "*/") for path in sorted(folder.glob(f"{at}{MEASUREMENT}"))]
    return [entry for path in noted for entry in read_plain(path)]


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
    if jax.process_index() != 0:  # Of several processes the first one reports.
        return outcome
    write_page(
        run.path("report.html"),
        title=title,
        introduction=_prose(introduction or ""),
        sections=outcome.sections,
        highlights=highlights,
        footer=footer(run),
        settings=configuration(run),
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


def configuration(run: Run) -> dict[str, str]:
    """Every flag of a run and its value, for the foot of its page."""
    return settings(run.load_json("config.json")["config"])


def footer(run: Run) -> str:
    """How to get the page again: the command, and the code and device of measurement and report."""
    about = run.load_json("provenance.json")
    entries = measurements(run.workdir)
    told = list(dict.fromkeys(map(on_device, entries)))
    mode = "with" if " --quick" in about["command"] else "without"
    lines = [f"`{about['command']}` ({mode} `--quick`; the configuration is in `config.json`)"]
    if told:
        lines.append(f"Measured by {'; '.join(told)}.")
    if not told or {entry["commit"] for entry in entries} != {about["commit"]}:
        lines.append(f"Report by {on_device(about)}.")
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return "\n\n".join([*lines, f"{versions}."])


def on_device(about: Mapping[str, Any]) -> str:
    """What a record says of code and device, as in ``commit 1a2b3c on 1 x cpu (cpu)``."""
    device = about["device"]
    commit = about.get("commit", "unknown")
    return f"commit {commit} on {device['count']} x {device['kind']} ({device['platform']})"
