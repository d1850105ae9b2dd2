"""Scaling on paper: what is compared, and that the page shows what was compiled."""

import json

import pytest

from launch import scaling
from launch.chips import grid_of
from launch.programs import PROGRAMS
from launch.scaling import cases, efficiency


def entry(chips, seconds, flops, mode="weak", fits=True):
    return {
        "mode": mode,
        "chips": chips,
        "fits": fits,
        "flops": flops,
        "compute": seconds,
        "memory": 0.0,
        "network": seconds / 2,
    }


def test_efficiency_is_work_per_chip_and_second_against_the_smallest_that_fits():
    weak = [entry(1, 1.0, 10.0), entry(4, 2.0, 10.0)]
    assert efficiency(weak) == {1: 1.0, 4: 0.5}
    # Four chips that each do a half of the work do it twice: that is none.
    strong = [entry(1, 1.0, 10.0, "strong"), entry(4, 0.5, 5.0, "strong")]
    assert efficiency(strong) == {1: 1.0, 4: 0.5}
    lost = [entry(1, 1.0, 10.0, fits=False), entry(4, 1.0, 10.0), entry(16, 1.0, 10.0)]
    assert efficiency(lost) == {4: 1.0, 16: 1.0}
    assert efficiency([entry(1, 1.0, 1.0, fits=False)]) == {}


def test_every_point_is_a_program_on_a_mesh_of_its_slice():
    seen = set()
    for case in cases():
        chips = 1
        for part in case.mesh.split(","):
            chips *= int(part.partition(":")[2])
        grid = grid_of(scaling.SLICES[case.chips])
        assert chips == case.chips == grid[0] * grid[1] and case.program in PROGRAMS
        seen.add((case.program, case.mode, case.chips))
    assert {(name, mode) for name, mode, _ in seen} == {
        (name, mode) for name in ("patches", "prefixes", "fleet") for mode in ("weak", "strong")
    }
    assert len(seen) == len(list(cases()))


def test_every_point_is_compiled():
    rows = json.loads(scaling.ROWS.read_text())
    points = {(row["program"], row["mode"], row["chips"]) for row in rows}
    assert points == {(case.program, case.mode, case.chips) for case in cases()}
    assert len(rows) == len(points)


@pytest.mark.parametrize("part", ("table", "figure"))
def test_the_page_shows_what_was_compiled(part):
    rows = json.loads(scaling.ROWS.read_text())
    if part == "table":
        page = scaling.PAGE.read_text()
        shown = page.partition(scaling.BEGIN)[2].partition(scaling.END)[0].strip()
        assert shown == scaling.table(rows)
    else:
        drawn = scaling.FIGURE.read_text()
        assert drawn.startswith("<svg") and "patches" in drawn
