"""No report goes unseen: the browser is given one of every experiment that needs no download."""

import importlib
import re
from pathlib import Path

import pytest

from experiments import EXPERIMENTS
from experiments.regression import paper
from experiments.tools.flags import parse
from tests.browser import reports

README = (Path(__file__).parents[2] / "README.md").read_text()
#: They ask for two real trained models, which pip brings (extra parity).
DOWNLOADS = set(re.findall(r"^\| `(\w+)` \|.*Needs `\[parity\]`", README, re.MULTILINE))
COMMANDS = reports.commands(Path("folder"))


def test_every_experiment_without_a_download_has_a_report_to_look_at():
    joined = set(paper.plan(paper.Config.quick())) & set(EXPERIMENTS)
    assert DOWNLOADS and len(joined) > 5
    assert set(COMMANDS) | joined == set(EXPERIMENTS) - DOWNLOADS


@pytest.mark.parametrize("name", COMMANDS)
def test_its_command_can_be_typed(name):
    module, *arguments = COMMANDS[name]
    assert module == f"experiments.{name}"
    parsed = parse(importlib.import_module(module).Config, [name, *arguments])
    assert parsed.workdir == Path("folder") / name
