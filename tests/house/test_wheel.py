"""What an installation holds: the library alone, its types, its licence and its description."""

import ast
import email
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

import icl_jax

ROOT = Path(__file__).parents[2]
BUILD = "import sys; from setuptools import build_meta; print(build_meta.build_wheel(sys.argv[1]))"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout, built in a copy of it: building leaves folders behind."""
    folder = tmp_path_factory.mktemp("wheel")
    ignore = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "runs", "venv")
    shutil.copytree(ROOT, folder / "checkout", ignore=ignore)
    command = [sys.executable, "-c", BUILD, str(folder)]
    subprocess.run(command, cwd=folder / "checkout", check=True, capture_output=True, timeout=120)
    (built,) = folder.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        yield archive


def test_the_wheel_holds_the_library_and_nothing_else(wheel):
    names = set(wheel.namelist())
    library = {f"icl_jax/{p.relative_to(ROOT / 'icl_jax')}" for p in ROOT.glob("icl_jax/**/*.py")}
    assert library | {"icl_jax/py.typed", "icl_jax/__init__.pyi"} == {
        name for name in names if not re.match(r"icl_jax-[\w.]+\.dist-info/", name)
    }
    tops = wheel.read(next(n for n in names if n.endswith("top_level.txt"))).decode().split()
    assert tops == ["icl_jax"]


def test_its_metadata_says_what_it_is(wheel):
    (path,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    about = email.message_from_bytes(wheel.read(path))
    assert about["Version"] == icl_jax.__version__
    assert about["License-Expression"] == "Apache-2.0"
    assert "Programming Language :: Python :: 3.13" in about.get_all("Classifier")
    assert all("https://arxiv.org/abs/" in url for url in about.get_all("Project-URL"))
    licence = path.replace("METADATA", "licenses/LICENSE")
    assert b"Apache License\n" in wheel.read(licence)


#: Where a module is of a distribution with another name.
DISTRIBUTIONS = {"absl": "absl-py", "orbax": "orbax-checkpoint", "sklearn": "scikit-learn"}


def imported():
    """The modules of others that the library imports, whenever it does."""
    found = set()
    for path in ROOT.glob("icl_jax/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return found - {"icl_jax"} - set(sys.stdlib_module_names)


def test_everything_that_is_imported_is_declared():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *extras["experiments"], *extras["huggingface"]]
    declared = {re.match(r"[\w-]+", line)[0] for line in lines}
    wanted = {DISTRIBUTIONS.get(name, name) for name in imported()}
    assert {"jax", "treescope"} <= wanted
    assert not wanted - declared


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == icl_jax.__version__
    assert (
        cited["license"]
        == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license"]
    )
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


def test_the_changes_begin_with_what_is_not_released_or_with_this_version():
    first = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first[1] == "Unreleased" or first[1].startswith(icl_jax.__version__)
