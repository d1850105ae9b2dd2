"""Writes the table of plans in ``launch/README.md`` from what the compiler said, ``plans.json``.

python -m launch.plan --experiment=... --json=FILE     # a plan
python -m launch.plan_table FILE ...                   # adds plans to plans.json, writes the table
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from icl_jax.sharding import mesh_axes
from launch.chips import chip_of
from launch.pages import write_between
from launch.plan import compilers, size

HERE = Path(__file__).parent
PLANS, PAGE = HERE / "plans.json", HERE / "README.md"
_PARTS = ("arguments", "results", "temporaries")
BEGIN, END = "<!-- plans -->", "<!-- end of plans -->"


def table(plans: Sequence[dict[str, Any]]) -> str:
    """Plans as a table in Markdown, and what they were made with."""
    lines = [
        "| program | model | batch | slice, mesh | per chip | of it: weights and inputs, results, "
        "temporaries | products | moved | sent | at least | bound by |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *map(_row, plans), "", compilers(plans)])


def _row(plan: dict[str, Any]) -> str:
    sizes, chip = plan["sizes"], chip_of(plan["topology"])
    batch = f"{sizes['prompts']} x {sizes['length']:,} tokens"
    if plan["program"] == "patches":
        batch += f", {sizes['kept']} kept each"
    chips = math.prod(mesh_axes(plan["mesh"]).values())
    verdict = "fits" if plan["fits"] else "**does not fit**"
    cells = [
        plan["program"],
        f"{sizes['model']}, {sizes['dtype']}",
        batch,
        f"{plan['topology']} ({chips} chips), `{plan['mesh']}`",
        f"{size(plan['needed'])} of {size(chip.capacity)}: {verdict}",
    ]
    if plan["parts"]:
        seconds = {name: plan[name] for name in ("compute", "memory", "network")}
        bound = max(seconds, key=lambda name: seconds[name])
        cells += [
            ", ".join(size(plan["parts"][name]) for name in _PARTS),
            f"{plan['flops'] / 1e12:.3g} TFLOP",
            size(plan["traffic"]),
            size(plan["sent"]),
            f"{1e3 * seconds[bound]:,.0f} ms",
            bound,
        ]
    return "| " + " | ".join([*cells, *[""] * (11 - len(cells))]) + " |"


def main(argv: Sequence[str]) -> None:
    """The command."""
    plans = json.loads(PLANS.read_text()) if PLANS.is_file() else []
    for file in argv[1:]:
        for plan in json.loads(Path(file).read_text()):
            asked = ("program", "topology", "mesh", "sizes")
            same = [all(old[name] == plan[name] for name in asked) for old in plans]
            plans = [old for old, again in zip(plans, same, strict=True) if not again] + [plan]
    PLANS.write_text(json.dumps(plans, indent=1) + "\n")
    write_between(PAGE, BEGIN, END, table(plans))


if __name__ == "__main__":
    main(sys.argv)
