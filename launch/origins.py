"""How the results of a sweep came about: what a page of them closes with."""

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from experiments.tools.conduct import measurements, on_device, provenance
from experiments.tools.fields import shown
from icl_jax.records import read_plain
from launch.layout import Layout
from launch.table import READERS, SweepTable, is_number

#: So many values of an axis are listed; of more, the ends.
_MOST_VALUES = 12


@dataclass(frozen=True)
class Origin:
    """What the folder of a run has noted.

    Attributes:
      measured: the commit and the device, in words.
      quick: whether it was asked for with ``--quick``.
      versions: package -> version.
    """

    measured: str
    quick: bool
    versions: Mapping[str, str]


def origin(layout: Layout, name: str) -> Origin | None:
    """Of one run; None where its folder has no record."""
    folder = layout.run(name)
    if not (folder / "provenance.json").exists():
        return None
    about = read_plain(folder / "provenance.json")
    told = dict.fromkeys(map(on_device, measurements(folder) or [about]))
    return Origin(" and ".join(told), " --quick" in about.get("command", ""), about["versions"])


def footer(layout: Layout, table: SweepTable, command: str) -> str:
    """The commands, and by which code, on which devices, with which versions results were measured.

    Args:
      layout: the sweep's.
      table: its results.
      command: what the page is written by.
    """
    with ThreadPoolExecutor(READERS) as pool:
        asked = list(pool.map(lambda row: origin(layout, row["id"]), table.rows))
    found = [one for one in asked if one is not None]
    commit = provenance()["commit"]
    lines = [f"`{command}`", _runs(layout, table, found), f"Report by commit {commit}."]
    if found:
        lines.insert(2, f"Measured by {_counted([one.measured for one in found], '; ')}.")
        lines.append(_versions([one.versions for one in found]))
    if len(found) < len(asked):
        lines.append(
            f"Of {len(asked) - len(found)} of {len(asked)} results it is not known what measured "
            "them: their folders in `runs` have no `provenance.json`."
        )
    return "\n\n".join(lines)


def settings(table: SweepTable) -> dict[str, str]:
    """Every flag of the runs: the values of those that differ, then what all have."""
    return {
        **{f"--{axis}": f"{_values(table, axis)} (swept)" for axis in table.axes},
        **{f"--{name}": _typed(value) for name, value in table.fixed.items()},
    }


def _runs(layout: Layout, table: SweepTable, found: Sequence[Origin]) -> str:
    sweeps = [read_plain(path) for path in sorted(layout.root.glob("sweep*.json"))]
    names = dict.fromkeys(one["sweep"] for one in sweeps)
    where = shlex.quote(layout.workdir)
    commands = [f"`python -m launch.sweep --sweep={name} --workdir={where}`" for name in names]
    experiments = ", ".join(
        f"`{name}`" for name in dict.fromkeys(r["experiment"] for r in table.rows)
    )
    modes = _counted([f"{'with' if one.quick else 'without'} `--quick`" for one in found], ", ")
    by = f" by {', '.join(commands)}" if commands else ""
    return f"Runs of {experiments}{by}{f', {modes}' if modes else ''}."


def _versions(found: Sequence[Mapping[str, str]]) -> str:
    """Each package with its version; those that differ between results by themselves."""
    same: list[str] = []
    other: list[str] = []
    for package in dict.fromkeys(name for versions in found for name in versions):
        versions = [one.get(package, "not noted") for one in found]
        (same if len(set(versions)) == 1 else other).append(f"{package} {_counted(versions, ', ')}")
    differ = f" Not the same in all results: {'; '.join(other)}." if other else ""
    return f"{', '.join(same)}.{differ}" if same else differ.strip()


def _counted(texts: Sequence[str], separator: str) -> str:
    """Each text once; how many results have it, where there are several."""
    counts = Counter(texts)
    if len(counts) < 2:
        return "".join(counts)
    return separator.join(
        f"{text} ({count} result{'' if count == 1 else 's'})" for text, count in counts.items()
    )


def _values(table: SweepTable, axis: str) -> str:
    found = {_typed(row[axis]): row[axis] for row in table.rows if axis in row}
    if all(map(is_number, found.values())):
        found = dict(sorted(found.items(), key=lambda item: item[1]))
    names = list(found)
    if len(names) <= _MOST_VALUES:
        return ("; " if "," in "".join(names) else ", ").join(names)
    return f"{names[0]}, {names[1]}, ..., {names[-1]}: {len(names)} values"


def _typed(value: Any) -> str:
    return shown(tuple(value) if isinstance(value, list) else value)
