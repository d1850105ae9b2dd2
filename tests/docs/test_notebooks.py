"""The notebooks: they run, and their words are those that are stored (extra notebooks)."""

import json
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))
#: Seconds for a cell, of a busy machine.
PATIENCE = 600
#: A number of any kind; a seed gives other digits on another machine.
NUMBER = re.compile(r"[-+]?\d[\d,]*(?:\.\d*)?(?:e[-+]?\d+)?")


def words(cell):
    """What a cell printed, without its numbers."""
    texts = [
        "".join(one["text"])
        for one in cell["outputs"]
        if one["output_type"] == "stream" and one["name"] == "stdout"
    ]
    return " ".join(NUMBER.sub("#", "".join(texts)).split())


def pictures(cell):
    return sum("image/png" in one.get("data", {}) for one in cell["outputs"])


def test_there_are_three():
    assert len(NOTEBOOKS) == 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_opens_in_colab_installs_itself_and_is_small(path):
    notebook = json.loads(path.read_text())
    first, second, *_ = notebook["cells"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    # Once the project has an address, the link opens the notebook itself.
    address = project["urls"].get("Repository", "").removeprefix("https://github.com/")
    place = f"github/{address}/blob/main/docs/notebooks/{path.name}" if address else "#upload=true"
    assert f"(https://colab.research.google.com/{place})" in "".join(first["source"])
    assert "%pip install" in "".join(second["source"])
    assert path.stat().st_size < 300_000
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert any("VERDICT" in words(cell) for cell in code) and any(map(pictures, code))
    assert all(cell["execution_count"] is None for cell in code)
    assert not re.search(r"/(home|root|work|tmp)/", path.read_text())


@pytest.mark.notebooks
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_says_what_is_stored(path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(fresh, timeout=PATIENCE, resources=resources)
    client.execute()
    for number, (old, new) in enumerate(zip(stored.cells, fresh.cells, strict=True)):
        if old.cell_type == "code":
            assert words(new) == words(old), f"cell {number}"
            assert pictures(new) == pictures(old), f"cell {number}"
