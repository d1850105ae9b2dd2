"""What a sweep found, as one table: a row per result, a column per swept setting and number."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from icl_jax.report.page import Cell
from launch.layout import Layout

#: Columns that every table has.
FIXED = ("id", "experiment")
#: Files are read side by side: those of a bucket are slow one by one.
READERS = 32


@dataclass(frozen=True)
class SweepTable:
    """Results side by side.

    Attributes:
      axes: names of the settings that differ between the results, in the configuration's order.
      fixed: the settings that all results share, with their values.
      numbers: names of the summaries' entries.
      rows: a dictionary per result, with the names above and ``FIXED``; what a result does not have
        is left out.
    """

    axes: Sequence[str]
    fixed: Mapping[str, Any]
    numbers: Sequence[str]
    rows: Sequence[Mapping[str, Any]]

    @property
    def header(self) -> list[str]:
        """All columns."""
        return [*FIXED, *self.axes, *self.numbers]

    def cells(self, columns: Sequence[str] | None = None) -> list[list[Cell]]:
        """The rows as lists, None where there is nothing; several values in a cell as text.

        Args:
          columns: names of those that are asked for; None for all, in the order of ``header``.
        """
        names = self.header if columns is None else columns
        return [[_cell(row.get(name)) for name in names] for row in self.rows]


def gather(layout: Layout) -> SweepTable:
    """Reads every result of a sweep, in the order of their ids.

    Raises:
      FileNotFoundError: there are none.
    """
    with ThreadPoolExecutor(READERS) as pool:
        results = list(pool.map(layout.load_result, sorted(layout.done())))
    if not results:
        raise FileNotFoundError(f"{layout.root} has no results. Run launch.sweep first.")
    configs = [_flat(result["config"]) for result in results]
    names = _names(configs)
    axes = [name for name in names if len({_key(c.get(name)) for c in configs}) > 1]
    fixed = {name: configs[0][name] for name in names if name not in axes}
    numbers = [n for n in _names([result["summary"] for result in results]) if n not in axes]
    rows = [
        {
            **{name: result[name] for name in FIXED},
            **{name: config[name] for name in axes if name in config},
            **{name: result["summary"][name] for name in numbers if name in result["summary"]},
        }
        for result, config in zip(results, configs, strict=True)
    ]
    return SweepTable(axes, fixed, numbers, rows)


def is_number(value: Any) -> bool:
    """Whether a value can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(mappings: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for mapping in mappings for name in mapping))


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= (
            _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        )
    return found


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _cell(value: Any) -> Cell:
    return ",".join(map(str, value)) if isinstance(value, list) else value
