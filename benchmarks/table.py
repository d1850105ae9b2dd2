"""Writes the tables of ``benchmarks/README.md`` from the JSON files beside it.

    python -m benchmarks.table

A row per measurement: both sides, their ratio, and the share of the card where it was measured.
"""

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


def table(file: Path) -> str:
    """The rows of one JSON file as a table in Markdown."""
    rows = json.loads(file.read_text())
    device = rows[0]["device"]
    versions = ", ".join(f"{name} {rows[0]['versions'][name]}" for name in ("jax", "flax"))
    lines = [
        f"## {file.stem}: {device}",
        "",
        f"{versions}. Medians; the ratio is the second side's time over the first's.",
        "",
        "| what | side | time | ratio | memory ratio | of the card |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for number, (label, side) in enumerate(row["sides"].items()):
            lines.append("| " + " | ".join(_cells(row, number, label, side)) + " |")
    return "\n".join(lines)


def _cells(row: dict[str, Any], number: int, label: str, side: dict[str, Any]) -> list[str]:
    speed = row.get("tokens per second", {}).get(label)
    share = row.get("of the card", {}).get(label)
    return [
        row["name"] if number == 0 else "",
        label + (f" ({speed:.0f} tokens/s)" if speed else ""),
        f"{1e3 * side['seconds']:.3g} ms",
        f"{row['ratio']:.2f}" if number == 1 else "",
        f"{row['bytes_ratio']:.2f}" if number == 1 else "",
        f"{share:.2f} of {row['of the card']['unit']}" if share else "",
    ]


def main() -> None:
    """Replaces what stands between the two marks."""
    readme = HERE / "README.md"
    text = readme.read_text()
    tables = "\n\n".join(table(file) for file in sorted(HERE.glob("*.json")))
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


if __name__ == "__main__":
    main()
