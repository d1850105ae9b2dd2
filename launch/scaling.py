"""How the three main programs scale from 1 to 256 chips, on paper: compiled programs, no hardware.

    python -m launch.scaling             # compiles what scaling.json has not, half a minute each
    python -m launch.scaling --write     # table and figure from the file

Weak scaling grows the work with the chips, strong scaling divides one piece of work. Every point is
a program that the TPU's compiler made for that slice; its bytes, messages and products are read
from it, and a run takes at least as long as the slowest of products, memory and network at the
published peaks (``launch/chips.py``).
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from experiments.tools.flags import UsageError, describe, option, parse
from experiments.tools.output import told
from icl_jax.report.figures import Curve, Panel, curves
from launch.pages import write_between
from launch.plan import Plan, compilers, make_plan, size
from launch.programs import Sizes

HERE = Path(__file__).parent
ROWS, PAGE, FIGURE = HERE / "scaling.json", HERE / "SCALING.md", HERE / "scaling.svg"
BEGIN, END = "<!-- scaling -->", "<!-- end of scaling -->"

#: Chips -> the slice of v5e that has them.
SLICES = {
    1: "v5e:1x1", 4: "v5e:2x2", 8: "v5e:2x4", 16: "v5e:4x4", 64: "v5e:8x8", 256: "v5e:16x16",
}  # fmt: skip
#: Ends before middles: what was cut short says something already.
ORDER = {chips: place for place, chips in enumerate((1, 256, 8, 16, 64, 4))}
MODEL = "llama-3.2-1b"
#: Heads of keys and values of that model: one prompt is divided no further.
MOST_MODEL = 8


@dataclass(frozen=True)
class Case:
    """A point: a program of some size on some chips."""

    program: str
    mode: str
    chips: int
    mesh: str
    sizes: Sizes


def cases() -> Iterator[Case]:
    """All points."""
    for chips in SLICES:
        if chips <= MOST_MODEL:
            mesh = _mesh({"model": chips})
            yield Case("prefixes", "weak", chips, mesh, Sizes(MODEL, length=2048 * chips))
            yield Case("prefixes", "strong", chips, mesh, Sizes(MODEL, length=32768))
        if chips == MOST_MODEL:
            continue
        batch = Sizes(MODEL, prompts=4 * chips, length=2048)
        yield Case("patches", "weak", chips, f"data:{chips}", batch)
        data = min(chips, 64)
        whole = Sizes(MODEL, prompts=64, length=2048)
        yield Case("patches", "strong", chips, _mesh({"data": data, "model": chips // data}), whole)
        yield Case("fleet", "weak", chips, f"data:{chips}", Sizes(MODEL, prompts=64 * chips))
        yield Case("fleet", "strong", chips, f"data:{chips}", Sizes(MODEL, prompts=4096))


def _mesh(axes: dict[str, int]) -> str:
    used = {name: count for name, count in axes.items() if count > 1} or {"data": 1}
    return ",".join(f"{name}:{count}" for name, count in used.items())


def row(case: Case, plan: Plan) -> dict[str, Any]:
    """What is kept of a point."""
    told = dataclasses.asdict(plan)
    names = ("fits", "needed", "flops", "traffic", "sent", "compute", "memory", "network")
    return {
        **dataclasses.asdict(case),
        **{name: told[name] for name in names},
        "collectives": [list(one) for one in plan.collectives[:6]],
        "made_with": dict(plan.made_with),
    }


def seconds(entry: dict[str, Any]) -> float:
    """The lower bound of a run."""
    return float(max(entry["compute"], entry["memory"], entry["network"]))


def efficiency(entries: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Chips -> the share of its peak speed that each chip keeps, against the fewest that fit.

    Weak: work per chip and second. Strong: the same. Work are the products of all chips, so longer
    contexts, whose attention grows faster than they do, are not taken for waste.
    """
    fitting = sorted((one for one in entries if one["fits"]), key=lambda one: one["chips"])
    if not fitting:
        return {}
    rates = {one["chips"]: one["flops"] / seconds(one) for one in fitting}
    # Work that is done twice is none: of one problem only the first point's products count.
    if fitting[0]["mode"] == "strong":
        work = fitting[0]["flops"] * fitting[0]["chips"]
        rates = {one["chips"]: work / one["chips"] / seconds(one) for one in fitting}
    first = rates[fitting[0]["chips"]]
    return {chips: rate / first for chips, rate in rates.items()}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The points in Markdown, and what they were made with."""
    lines = [
        "| program | | chips | mesh | size | per chip | TFLOP | moved | sent | at least | bound by | efficiency |",  # noqa: E501
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for program, mode in dict.fromkeys((one["program"], one["mode"]) for one in rows):
        group = [one for one in rows if (one["program"], one["mode"]) == (program, mode)]
        shares = efficiency(group)
        for one in sorted(group, key=lambda entry: entry["chips"]):
            what = one["sizes"]
            sizes = {
                "patches": f"{what['prompts']} x {what['length']:,} tokens",
                "prefixes": f"{what['length']:,} tokens",
                "fleet": f"{what['prompts']:,} tasks x {what['rates']} rates",
            }[program]
            cells = [program, mode, str(one["chips"]), one["mesh"], sizes]
            if not one["fits"]:
                cells += [f"{size(one['needed'])}: does not fit", *[""] * 6]
            else:
                bound = max(("compute", "memory", "network"), key=lambda name: one[name])  # noqa: B023
                cells += [
                    size(one["needed"]),
                    f"{one['flops'] / 1e12:.3g}",
                    size(one["traffic"]),
                    size(one["sent"]) if one["sent"] else "0",
                    f"{1e3 * seconds(one):.3g} ms",
                    bound,
                    _percent(shares[one["chips"]]),
                ]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", compilers(rows)])


def _percent(share: float) -> str:
    """More than all says that something else has changed (``SCALING.md``)."""
    return f"{100 * share:.0f}%" if share < 1.05 else "over 100%"


def figure(rows: Sequence[dict[str, Any]]) -> str:
    """Efficiency over chips, as SVG."""
    roles: dict[str, Any] = {"patches": "main", "prefixes": "second", "fleet": "reference"}
    panels = []
    for mode in ("weak", "strong"):
        drawn = []
        for program, role in roles.items():
            group = [one for one in rows if (one["program"], one["mode"]) == (program, mode)]
            shares = efficiency(group)
            if shares:
                chips = sorted(shares)
                values = [100 * shares[count] for count in chips]
                drawn.append(Curve(program, chips, values, role=role))
        if drawn:
            labels = (f"{mode} scaling", drawn, "chips (v5e)", "efficiency, %")
            panels.append(Panel(*labels, log_x=True, y_limits=(0, 110)))
    return curves(panels)


@dataclass(frozen=True)
class Config:
    """Where the points are kept."""

    json: str | None = option(None, "file of the points; left out, the one beside this program")
    most: int = option(256, "chips of the largest slice")
    write: bool = option(False, "write table and figure from what the file has; compile nothing")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    jax.config.update("jax_platforms", "cpu")
    try:
        parsed = parse(Config, list(sys.argv if argv is None else argv))
        if parsed.help:
            print(describe(Config, __doc__, "scaling", needs_workdir=False, package="launch"))
            return 0
    except UsageError as error:
        print(f"scaling: error: {error}", file=sys.stderr)
        return 2
    config: Config = parsed.config
    file = ROWS if config.json is None else Path(config.json)
    rows = json.loads(file.read_text()) if file.is_file() else []
    done = [{key: one[key] for key in ("program", "mode", "chips")} for one in rows]
    for case in () if config.write else sorted(cases(), key=lambda case: ORDER[case.chips]):
        key = {"program": case.program, "mode": case.mode, "chips": case.chips}
        if key in done or case.chips > config.most:
            continue
        plan = make_plan(case.program, case.sizes, SLICES[case.chips], case.mesh)
        rows.append(row(case, plan))
        file.write_text(json.dumps(rows, indent=1) + "\n")
        print(f"{key}: {1e3 * max(plan.seconds[0], 0):.3g} ms, {size(plan.needed)}", flush=True)
    if config.write:
        write_between(PAGE, BEGIN, END, table(rows))
        FIGURE.write_text(figure(rows))
    return 0


if __name__ == "__main__":
    with told("scaling"):
        sys.exit(main())
