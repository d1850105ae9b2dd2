"""The pages: their links lead somewhere, and their code gives what they show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import icl_jax
from tests.docs import pages

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
#: Everything a reader opens, on the site or in the repository.
WRITTEN = sorted(
    [*ROOT.glob("*.md")]
    + [
        page
        for folder in ("docs", "launch", "benchmarks", "icl_jax")
        for page in (ROOT / folder).rglob("*.md")
    ]
)
#: What the reference has an anchor for: public names, and what its pages ask for by path.
REFERENCE = {f"{module}.{name}" for name, module in icl_jax._MODULES.items()}
REFERENCE |= {
    path
    for page in DOCS.glob("api/*.md")
    for path in re.findall(r"^::: ([\w.]+)", page.read_text(), re.MULTILINE)
}
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


@pytest.mark.parametrize("page", WRITTEN, ids=named)
def test_links_into_the_reference_lead_to_public_names(page):
    linked = set(re.findall(r"\]\([^)\s]*#(icl_jax\.[\w.]+)\)", page.read_text()))
    # An attribute of a class has an anchor, too.
    assert {one for one in linked if not {one, one.rpartition(".")[0]} & REFERENCE} == set()


def test_every_room_is_on_the_map_and_in_its_picture():
    rooms = {path.parent.name for path in (ROOT / "icl_jax").glob("*/__init__.py")}
    assert len(rooms) > 15
    table = set(re.findall(r"^\| `(\w+)/` \|", (DOCS / "map.md").read_text(), re.MULTILINE))
    picture = (DOCS / "map.svg").read_text()
    drawn = set(re.findall(r'class="name"[^>]*>(\w+)<', picture))
    assert table == rooms and drawn == rooms | {"experiments", "launch", "benchmarks"}


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


def test_every_section_of_the_theory_has_a_link_into_the_reference_and_a_number():
    text = (DOCS / "theory.md").read_text()
    found = re.findall(r"(?ms)^(#{2,3}) ([^\n]+)\n(.*?)(?=^#{2,3} |\Z)", text)
    assert len(found) > 12
    for (level, title, body), (below, *_) in zip(found, [*found[1:], ("",)], strict=True):
        if len(below) > len(level):
            continue  # An introduction to the sections below it.
        assert "](api/" in body, title
        assert any(block.output for block in pages.blocks(body)), title


LINK = re.compile(r"\[`(\w+)`\]\(api/[^)\s]*#icl_jax\.")


def beside_formulas(body):
    """The functions that are linked right before or behind a display formula, or in its row."""
    prose = pages.BLOCK.sub("\n\ncode\n\n", body)
    parts = re.split(r"\n\s*\n", prose)
    formula = [part.lstrip().startswith("$$") for part in parts]
    near = {
        place + step
        for place, is_one in enumerate(formula)
        if is_one
        for step in (-1, 0, 1)
        if 0 <= place + step < len(parts)
    }
    rows = re.findall(r"^\|.*\$.*\|$", prose, re.MULTILINE)
    linked = {
        name for part in [*(parts[one] for one in near), *rows] for name in LINK.findall(part)
    }
    return {name for name in linked if name.islower()}


def test_every_function_beside_a_formula_of_the_theory_is_run_in_its_section():
    text = (DOCS / "theory.md").read_text()
    found = set()
    for body in re.split(r"(?m)^#{2,3} ", text):
        code = "\n".join(block.code for block in pages.blocks(body))
        wanted = beside_formulas(body)
        missing = {name for name in wanted if not re.search(rf"\b{name}\(", code)}
        assert not missing, (body.partition("\n")[0], missing)
        found |= wanted
    assert {"frobenius_inner", "covariance_patch", "preconditioned_step_weights"} <= found
    assert len(found) > 20


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


@pytest.mark.slow
def test_the_commands_of_the_sweep_do_what_the_page_says(tmp_path):
    page = (DOCS / "how_to/sweep.md").read_text()
    (tmp_path / "my_sweeps.py").write_text(pages.blocks(page)[0].code.split("\n\nruns =")[0])
    (commands,) = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    dry, run, collect = commands.strip().splitlines()
    for command in (dry, run, collect):
        words = command.replace("python", sys.executable, 1).split()
        done = subprocess.run(
            words,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        if command == dry:
            assert done.stdout.count("launch.worker") == 6
            assert not (tmp_path / "runs").exists()
    folder = tmp_path / "runs/depths"
    assert len(list((folder / "results").glob("*.json"))) == 6
    assert (folder / "table.csv").is_file() and (folder / "report.html").is_file()
