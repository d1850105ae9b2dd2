"""The rooms of the experiments: who imports whom, and that every one is found by its short name."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import experiments
from experiments import EXPERIMENTS, source
from experiments.__main__ import question
from tests.test_layering import imports

ROOT = Path(experiments.__file__).parent
SOURCES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)
ROOMS = ("language", "linear_attention", "regression", "tools")


def rooms(names):
    """The rooms that imported names lie in; ``experiments`` itself for its short names."""
    inside = [name.split(".") for name in names if name.split(".")[0] == "experiments"]
    return {parts[1] if len(parts) > 1 else "experiments" for parts in inside}


def test_every_file_is_in_a_room():
    assert {path.relative_to(ROOT).parts[0] for path in SOURCES} == set(ROOMS)
    assert sorted(path.name for path in ROOT.glob("*.py")) == ["__init__.py", "__main__.py"]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rooms_import_themselves_and_the_tools_and_the_tools_no_room(path):
    own = path.relative_to(ROOT).parts[0]
    assert rooms(imports(path.read_text())) <= {own, "tools"}


#: What the folder of an experiment may have: its run, the sides it compares, its report; and where
#: the run gets long, what it measures and the record of that.
FILES = {"__init__.py", "run.py", "sides.py", "report.py", "measure.py", "arrays.py"}
#: And what is in a folder beside them.
FURTHER = {
    "checkpoint": {"export.py": "weights on disk", "layers.py": "one by one", "tiny.py": "a model"},
    "composition": {"facts.py": "what texts say"},
    "demonstrations": {"learned.py": "what is chosen by", "prompts.py": "what is asked"},
    "kept": {"pairs.py": "of a task", "tasks.py": "what is asked"},
    "prompt_page": {"page.py": "a page to click on", "page.js": "its program"},
    "real": {"prompts.py": "what is asked"},
    "sorting": {"model.py": "by hand", "page.py": "a page to click on", "page.js": "its program"},
}
FOLDERS = sorted(path.parent for path in ROOT.glob("*/*/run.py"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_folder_of_an_experiment_has_the_usual_files(folder):
    assert folder / "run.py" in {source(name) for name in EXPERIMENTS}
    files = {path.name for path in folder.iterdir() if path.is_file()}
    assert {"__init__.py", "run.py"} <= files <= FILES | set(FURTHER.get(folder.name, {}))


def test_no_further_file_is_listed_that_is_not_there():
    there = {(folder.name, path.name) for folder in FOLDERS for path in folder.iterdir()}
    assert {(name, file) for name, files in FURTHER.items() for file in files} <= there


LAUNCH = sorted((ROOT.parent / "launch").rglob("*.py"))
#: What can be planned is named in one file, so one file changes with a room.
DOOR = ROOT.parent / "launch/programs.py"


@pytest.mark.parametrize("path", LAUNCH, ids=lambda path: str(path.relative_to(ROOT.parent)))
def test_launch_imports_rooms_through_one_door(path):
    room = {"regression"} if path == DOOR else set()
    assert rooms(imports(path.read_text())) <= {"tools"} | room


def test_an_import_of_another_room_is_seen():
    text = "from experiments.regression.learner import embed\nfrom experiments import descent\n"
    assert rooms(imports(text)) == {"regression", "experiments", "descent"}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_named_once_and_asked_for_by_that_name(name):
    module = importlib.import_module(EXPERIMENTS[name])
    assert importlib.import_module(f"experiments.{name}") is module
    assert Path(module.__file__) == source(name)
    assert f"python -m experiments.{name} " in module.__doc__
    launched = [
        ast.unparse(node)
        for node in ast.parse(source(name).read_text()).body
        if "__main__" in ast.unparse(node)
    ]
    assert len(launched) == 1 and "launch(Config, run, __doc__" in launched[0]


def run(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT.parent
    )


def test_the_list_has_every_experiment_with_its_question():
    shown = run("-m", "experiments").stdout
    for name in EXPERIMENTS:
        assert re.search(rf"^{name} ", shown, re.MULTILINE)
        assert question(name)[:20] in shown


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_asks_and_its_commands_fit_a_terminal(name):
    assert question(name).endswith("?")
    doc = ast.get_docstring(ast.parse(source(name).read_text())) or ""
    for line in doc.splitlines():
        assert len(line) <= 78 or not line.startswith(" "), line


@pytest.mark.parametrize("path", [*SOURCES, *LAUNCH], ids=str)
def test_every_section_of_a_report_says_what_was_found(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Section":
            assert "verdict" in [one.arg for one in node.keywords], f"line {node.lineno}"


def test_an_experiment_in_a_folder_runs_under_its_short_name():
    done = run("-m", "experiments.descent", "--help")
    assert "Usage: python -m experiments.descent [flags]" in done.stdout, done.stderr
    done = run("-m", "experiments.garg", "--seeed=1", "--workdir=x")
    assert done.returncode == 2 and done.stderr.startswith("garg: error: unknown flag --seeed.")


def test_a_name_that_is_no_experiment_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="experiments.descend"):
        importlib.import_module("experiments.descend")
