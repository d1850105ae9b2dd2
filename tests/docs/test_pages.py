"""The pages: their links lead somewhere, and their code gives what they show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs import pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Everything a reader opens, on the site or in the repository.
WRITTEN = sorted([*DOCS.rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
WITH_CODE = [page for page in sorted(DOCS.rglob("*.md")) if pages.blocks(page.read_text())]


def named(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_links_between_files_lead_to_files(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    files = [one.partition("#")[0] for one in targets if "://" not in one]
    missing = [one for one in files if one and not (page.parent / one).exists()]
    assert not missing


@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_every_block_of_code_compiles_and_every_output_belongs_to_one(page):
    found = pages.blocks(page.read_text())
    for block in found:
        compile(block.code, named(page), "exec")
    assert any(block.output for block in found)


def test_outputs_are_compared_by_words_whole_numbers_and_fractions_up_to_rounding():
    assert pages.same("patched 3e-07, plain 1.41\n", "patched 8e-08, plain 1.44")
    assert not pages.same("patched 3e-07", "patched 3e-04")
    assert not pages.same("plain 1.41", "plain 2.41")
    assert not pages.same("5 of 12", "6 of 12")
    assert not pages.same("VERDICT: exact", "VERDICT: not exact")


@pytest.mark.docs
@pytest.mark.parametrize("page", WITH_CODE, ids=named)
def test_a_page_prints_what_it_shows(page, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.docs.pages", str(page)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
