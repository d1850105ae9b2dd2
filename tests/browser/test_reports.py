"""No report goes unseen: the browser is given one of every experiment, and one of a sweep."""

import importlib
import json
from pathlib import Path

import pytest

from experiments import EXPERIMENTS
from experiments.regression import paper
from experiments.tools.flags import parse
from tests.browser import records, reports

#: It makes the checkpoints of others, and has no report.
MAKES = {"real_models"}
COMMANDS = reports.commands(Path("folder"))


def test_every_experiment_has_a_report_to_look_at():
    joined = set(paper.plan(paper.Config.quick())) & set(EXPERIMENTS)
    assert len(joined) > 5
    assert set(COMMANDS) | set(reports.RECORDED) | joined == (set(EXPERIMENTS) - MAKES) | {"sweep"}


@pytest.mark.browser  # Drawn, which takes seconds each; no browser is asked.
@pytest.mark.parametrize("name", reports.RECORDED)
def test_what_is_made_of_records_is_a_whole_report(name, tmp_path):
    reports.main(tmp_path, [name])
    page = (tmp_path / name / "report.html").read_text()
    assert page.count("<section") == page.count('<p class="verdict">') > 1
    assert page.count("<svg") > 0 and "<footer>" in page and ">Configuration<" in page


@pytest.mark.browser
def test_the_records_of_real_are_as_wide_as_what_was_measured(tmp_path):
    reports.main(tmp_path, ["real"])
    made = json.loads((tmp_path / "real" / "summary.json").read_text())["models"]
    for name, found in records.MEASURED.items():
        assert made[name]["exactness"] == found["exactness"]
        assert made[name]["tasks"] == found["tasks"]
        assert made[name]["growth"] == found["growth"]


@pytest.mark.parametrize("name", COMMANDS)
def test_its_command_can_be_typed(name):
    module, *arguments = COMMANDS[name]
    assert module == f"experiments.{name}"
    parsed = parse(importlib.import_module(module).Config, [name, *arguments])
    assert parsed.workdir == Path("folder") / name
