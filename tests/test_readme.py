"""The README's examples work when pasted."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments import EXPERIMENTS

README = (Path(__file__).parent.parent / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_readme_has_its_four_examples():
    assert len(EXAMPLES) == 4


@pytest.mark.docs
@pytest.mark.parametrize("example", EXAMPLES, ids=["functional", "stack", "text", "checkpoint"])
def test_a_pasted_example_prints_true(example):
    done = subprocess.run(
        [sys.executable, "-c", example], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.startswith("True"), done.stdout


def test_every_experiment_of_the_table_exists():
    table = README.split("| `python -m experiments.NAME", 1)[1].split("\n\n", 1)[0]
    names = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(names) == sorted(EXPERIMENTS)


def test_every_image_of_the_readme_is_there():
    images = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert images
    for image in images:
        assert (Path(__file__).parent.parent / image).is_file(), image
