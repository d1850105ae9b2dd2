"""Times two ways of computing the same thing, side by side in one process."""

import importlib.metadata
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags, logging
from rich.console import Console
from rich.table import Table

from experiments.tools.fields import unknown_flag
from experiments.tools.manual import manual, preset
from experiments.tools.output import told

_HELP = flags.DEFINE_boolean("help", False, "show this", short_name="h")
_JSON = flags.DEFINE_string("json", None, "file that receives the rows as JSON")
_REPEATS = flags.DEFINE_integer("repeats", 5, "timed runs of each side", lower_bound=1)


@dataclass(frozen=True)
class Side:
    """One way of computing it.

    Attributes:
      run: computes and returns arrays; called once to warm up, then ``repeats`` times.
      size_of: what of the result counts as its memory, in bytes; the whole of it when left out.
    """

    run: Callable[[], Any]
    size_of: Callable[[Any], int] | None = None


def nbytes(tree: Any) -> int:
    """The bytes of all arrays of a tree."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def compare(
    name: str, sides: Mapping[str, Side], *, sizes: Mapping[str, int], repeats: int | None = None
) -> dict[str, Any]:
    """Times all sides, interleaved, and returns a row.

    The first side is the one that the others are compared with: ``ratio`` is the median time of the
    second over that of the first, ``bytes_ratio`` the same for memory.
    """
    repeats = repeats or _REPEATS.value
    results = {label: jax.block_until_ready(side.run()) for label, side in sides.items()}
    size_in_bytes = {
        label: (side.size_of or nbytes)(results[label]) for label, side in sides.items()
    }
    del results
    seconds: dict[str, list[float]] = {label: [] for label in sides}
    # Interleaved, so that a slow minute of the machine falls on both.
    for _ in range(repeats):
        for label, side in sides.items():
            start = time.perf_counter()
            jax.block_until_ready(side.run())
            seconds[label].append(time.perf_counter() - start)
    return as_row(name, seconds, size_in_bytes, sizes=sizes)


def as_row(
    name: str,
    seconds: Mapping[str, list[float]],
    size_in_bytes: Mapping[str, int],
    *,
    sizes: Mapping[str, int],
) -> dict[str, Any]:
    """The row of measurements made elsewhere, in another process, say.

    Args:
      name: of the comparison.
      seconds: label of a side -> its times; the first side is what the second is compared with.
      size_in_bytes: label -> memory.
      sizes: of the problem.
    """
    ours, theirs = list(seconds)[:2]
    medians = {label: statistics.median(times) for label, times in seconds.items()}
    return {
        "name": name,
        "ratio": medians[theirs] / medians[ours],
        "bytes_ratio": size_in_bytes[theirs] / size_in_bytes[ours],
        "sides": {
            label: {
                "seconds": medians[label],
                "fastest": min(times),
                "slowest": max(times),
                "bytes": size_in_bytes[label],
            }
            for label, times in seconds.items()
        },
        "sizes": dict(sizes),
        "repeats": len(seconds[ours]),
        "device": f"{jax.devices()[0].device_kind} ({jax.default_backend()})",
        "versions": {
            "python": platform.python_version(),
            **{pkg: importlib.metadata.version(pkg) for pkg in ("jax", "jaxlib", "flax", "numpy")},
        },
    }


def launch(benchmark: Callable[[], list[dict[str, Any]]]) -> None:
    """Runs a benchmark, prints its rows as a table and writes them where ``--json`` says.

    Raises:
      SystemExit: 0 after ``--help``; 2, after one line on standard error, for a bad command line.
    """
    name = Path(sys.argv[0]).stem
    try:
        rest = flags.FLAGS(sys.argv)[1:]
    except flags.UnrecognizedFlagError as error:
        own = [flag.name for _, flag in _flags()]
        _fail(name, unknown_flag(error.flagname, own))
    except flags.Error as error:
        _fail(name, str(error).removeprefix("flag "))
    if _HELP.value:
        with told(name):
            print(_manual(benchmark, name))
        return
    if rest:
        _fail(name, f"unexpected argument {rest[0]!r}; flags are written --name=value.")
    target = Path(_JSON.value) if _JSON.value else None
    if target is not None and not target.resolve().parent.is_dir():
        _fail(name, f"--json={target}: the folder {target.parent} does not exist.")
    logging.set_verbosity(logging.WARNING)
    with told(name):
        rows = benchmark()
        _print(rows)
        if target is not None:
            target.write_text(json.dumps(rows, indent=2) + "\n")


#: What stands after ``--name=`` in the help, by what absl calls the type of a flag.
_METAVARS = {"string": "TEXT", "int": "INT", "float": "FLOAT", "multi int": "INT"}


def _flags() -> list[tuple[str, flags.Flag]]:
    """The flags of all benchmarks and those of the one that runs, each with its group."""
    files = {__name__: "Flags", sys.argv[0]: "This benchmark"}
    defined = flags.FLAGS.flags_by_module_dict()
    return [(group, flag) for file, group in files.items() for flag in defined.get(file, [])]


def _manual(benchmark: Callable[..., Any], name: str) -> str:
    """What ``--help`` prints, as that of experiments."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for group, flag in _flags():
        text, default = flag.help, flag.default
        shown = f"--{flag.name}"
        if not flag.boolean:
            shown += f"={_METAVARS.get(flag.flag_type(), 'TEXT,...')}"
        if isinstance(default, list):
            default = tuple(default)
        if default not in (None, False):
            text += f" ({preset(default)})"
        groups.setdefault(group, []).append((shown, text))
    return manual(benchmark.__globals__["__doc__"], f"benchmarks.{name}", groups)


def _fail(name: str, error: str) -> NoReturn:
    print(f"{name}: error: {' '.join(error.split())}", file=sys.stderr)
    sys.exit(2)


def _print(rows: list[dict[str, Any]]) -> None:
    table = Table(title="median of interleaved runs", title_style="dim")
    for column in ("benchmark", "side", "seconds", "memory", "ratio"):
        table.add_column(column, justify="left" if column in ("benchmark", "side") else "right")
    for row in rows:
        for index, (label, side) in enumerate(row["sides"].items()):
            ratio = ""
            if index == 1:
                ratio = f"time {row['ratio']:.3g}, memory {row['bytes_ratio']:.3g}"
            table.add_row(
                row["name"] if index == 0 else "",
                label,
                f"{side['seconds']:.4g}",
                f"{side['bytes'] / 2**20:.4g} MiB",
                ratio,
            )
    Console().print(table)
