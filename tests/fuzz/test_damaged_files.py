"""Two hundred damaged checkpoints, tokenizers, templates and prompt files: refused in time.

Each is read in one of two processes of its own (``tests.fuzz.cases``), which tell what came of it,
how much processor time it took, and the most memory that they or the processes they began ever had.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.cases import COUNT

pytestmark = pytest.mark.fuzz

ROOT = Path(__file__).parents[2]
SEED = os.environ.get("FUZZ_SEED", "0")
BORDERS = (0, COUNT // 2, COUNT)


@pytest.fixture(scope="module")
def outcomes():
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.fuzz.cases", str(first), str(last), SEED],
            cwd=ROOT,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )
        for first, last in zip(BORDERS, BORDERS[1:], strict=False)
    ]
    try:
        texts = [process.communicate(timeout=600)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0]
    return [json.loads(line) for text in texts for line in text.splitlines()]


def test_every_damage_is_refused_by_name_or_changes_nothing(outcomes):
    assert [one["case"] for one in outcomes] == list(range(COUNT)) and COUNT >= 200
    wrong = [f"{one['damage']}: {one['outcome']}" for one in outcomes if not one["good"]]
    assert not wrong, "\n".join(wrong)
    # Most damage is noticed; what is harmless is a byte that nobody reads.
    assert sum(one["outcome"] == "the same" for one in outcomes) < 10


def test_no_damage_takes_ten_seconds_of_a_processor(outcomes):
    slowest = max(outcomes, key=lambda one: one["seconds"])
    assert slowest["seconds"] < 10, slowest


def test_no_damage_takes_a_gigabyte(outcomes):
    largest = max(outcomes, key=lambda one: one["kilobytes"])
    assert largest["kilobytes"] < 10**6, largest
