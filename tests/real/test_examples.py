"""What README, how-to page and notebook say of a real model, they do with a real model."""

import contextlib
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.language.real_models import PROMPTS
from tests.docs.pages import blocks

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(models):
    return models("smollm2")


def printed(codes):
    """What some blocks of code print, run in one namespace."""
    namespace, text = {"__name__": "__main__"}, io.StringIO()
    with contextlib.redirect_stdout(text):
        for code in codes:
            exec(code, namespace)
    return text.getvalue()


def test_the_first_lines_of_the_readme(folder):
    code = next(b.code for b in blocks((ROOT / "README.md").read_text()) if "make_tiny" in b.code)
    made = re.compile(r"^make_tiny\(.*\n^save_tokenizer\(.*\n", re.MULTILINE)
    real, count = made.subn(f"folder = {str(folder)!r}\n", code)
    assert count == 1
    text = printed([real])
    (patched,) = re.findall(r"patched, without: '(.*?)'", text)
    (without,) = re.findall(r" without:  +'(.*?)'", text)
    assert text.startswith("True\n") and "(100% of the tokens)" in text
    assert "Tamsin" in patched and "Tamsin" not in without


def test_the_page_of_a_real_checkpoint(folder):
    page = (ROOT / "docs/how_to/checkpoint.md").read_text()
    first, *rest = [block.code for block in blocks(page)]
    made = re.compile(r"^made = make_tiny\(.*\n^save_tokenizer\(.*\n", re.MULTILINE)
    real, count = made.subn("", first.replace('Path(tempfile.mkdtemp()) / "tiny"', repr(folder)))
    assert count == 1
    text = printed(["from pathlib import PosixPath", real, *rest])
    assert "llama 30 layers" in text and "the same six tokens: True" in text
    patched, alone = re.search(r"patched (\S+), alone (\S+)", text).groups()
    assert float(patched) < 1e-6 < 0.1 < float(alone)


def test_the_notebook(folder, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("ICL_JAX_CHECKPOINT", str(folder))
    path = ROOT / "docs/notebooks/real_model_forgets.ipynb"
    fresh = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(fresh, timeout=900, resources=resources).execute()
    text = "".join(
        one["text"]
        for cell in fresh.cells
        if cell.cell_type == "code"
        for one in cell["outputs"]
        if one["output_type"] == "stream"
    )
    assert "with context" in text  # What only a real model says.
    assert re.findall(r"prompt \d: (\d+) of 12 tokens", text) == ["12"] * 3


def test_the_experiment_of_the_readme(folder, tmp_path):
    readme = (ROOT / "README.md").read_text()
    (command,) = re.findall(r"python -m (experiments\.checkpoint .*runs/models/smollm2 .*)", readme)
    assert f"--prompts=runs/models/{PROMPTS}" in command
    run("experiments.real_models", f"--workdir={folder.parent}", "--models=smollm2")
    command = command.replace("runs/models", str(folder.parent)).replace("runs/", f"{tmp_path}/")
    run(*command.split(), "--max_prompts=2")
    summary = json.loads((tmp_path / "smollm2/summary.json").read_text())
    for found in summary["prompts"].values():
        error, written = found["relative_error"], found["generation"]
        assert error["patched"] < 1e-6 < 0.1 < min(error["unpatched"], error["shuffled"])
        assert written["agreement"] == 1 > written["unpatched_agreement"]


def run(*arguments):
    command = [sys.executable, "-m", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
