"""Every ``python -m ...`` that a reader can copy: the module is there, and knows every flag."""

import ast
import importlib
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from experiments import EXPERIMENTS, source
from experiments.tools.flags import UsageError, parse

ROOT = Path(__file__).parents[2]
WRITTEN = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    + [
        page
        for folder in ("docs", "launch", "benchmarks")
        for page in (ROOT / folder).rglob("*.md")
    ]
)
PROGRAMS = sorted(
    [source(name) for name in EXPERIMENTS]
    + [file for folder in ("launch", "benchmarks") for file in (ROOT / folder).glob("*.py")]
)
#: A command up to the end of its line or of its span of code; quotes and backslashes go on.
COMMAND = re.compile(r"""python3? -m ((?:"[^"]*"|'[^']*'|\\\n|[^"'\n&|;#`\\])+)""")
#: Modules of other packages: of pyproject.toml or of Python itself.
OTHERS = {"pytest", "mkdocs", "venv", "pip"}
MARKS = {
    mark.partition(":")[0]
    for mark in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"][
        "ini_options"
    ]["markers"]
}


def commands(text):
    """The words of every command, without those that have an ellipsis."""
    found = [shlex.split(one.replace("\\\n", " ")) for one in COMMAND.findall(text)]
    return [[word for word in words if "..." not in word] for words in found]


def wrong(words):
    """What is wrong with a command, in words; None for nothing."""
    module, *arguments = words
    if module == "pytest":
        return wrong_tests(arguments)
    if module in OTHERS or module.isupper():  # A word in capitals stands for any module.
        return None
    # One that stands for all of its kind.
    module = {
        "experiments.NAME": "experiments.paper",
        "benchmarks.NAME": "benchmarks.prefixes",
    }.get(module, module)
    name = module.removeprefix("experiments.")
    module = EXPERIMENTS.get(name, module)
    if importlib.util.find_spec(module) is None:
        return f"there is no module {module}"
    if module.startswith("benchmarks."):
        unknown = {one.partition("=")[0] for one in arguments} - flags_of(module)
        return f"{module} has no {', '.join(sorted(unknown))}" if unknown else None
    config = getattr(importlib.import_module(module), "Config", None)
    if config is None:
        return None
    try:
        parse(config, [name, *arguments])
    except UsageError as error:
        return str(error)
    return None


def wrong_tests(arguments):
    """Marks that nothing has, and files that are not there."""
    expression = " ".join(
        after for before, after in zip(arguments, arguments[1:], strict=False) if before == "-m"
    )
    unknown = set(re.findall(r"\w+", expression)) - MARKS - {"and", "or", "not"}
    missing = [
        one for one in arguments if "/" in one and not list(ROOT.glob(one.partition("::")[0]))
    ]
    return f"no mark {unknown} or file {missing}" if unknown or missing else None


def flags_of(module):
    """The flags that a benchmark and its harness define, read from their files."""
    found = set()
    for file in (module, "benchmarks.harness"):
        tree = ast.parse(ROOT.joinpath(*file.split(".")).with_suffix(".py").read_text())
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("flags.DEFINE_"):
                found.add(f"--{ast.literal_eval(node.args[0])}")
    return found


def test_commands_are_found_in_text_in_code_and_over_lines():
    text = "`python -m one.two --a=1` and\n```bash\npython3 -m three \\\n  --b='c d' # why\n```\n"
    assert commands(text) == [["one.two", "--a=1"], ["three", "--b=c d"]]


@pytest.mark.parametrize(
    "command",
    [
        "experiments.not_there --workdir=runs",
        "experiments.descent --workdir=runs --learner.tusk=tree",
        "experiments.descent --workdir=runs --learner.task=no_such_task",
        "launch.plan --no_such_flag",
        "benchmarks.prefixes --no_such_flag=1",
        "pytest -m no_such_mark",
        "pytest tests/no_such_file.py",
    ],
)
def test_a_command_that_would_fail_is_told(command):
    assert wrong(command.split())


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_of_a_page_can_be_typed(page):
    problems = {" ".join(words): wrong(words) for words in commands(page.read_text())}
    assert not {command: problem for command, problem in problems.items() if problem}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_command_of_a_programs_docstring_can_be_typed(program):
    documented = ast.get_docstring(ast.parse(program.read_text())) or ""
    problems = {" ".join(words): wrong(words) for words in commands(documented)}
    assert not {command: problem for command, problem in problems.items() if problem}
