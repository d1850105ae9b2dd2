"""The examples of docstrings: every ``>>>`` of the library runs and gives what it shows."""

import ast
import doctest
import importlib
import inspect
import re
import tempfile
from pathlib import Path
from runpy import run_path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icl_jax

ROOT = Path(icl_jax.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text()]
DOCS = ROOT.parent / "docs"
#: What a reader opens first.
PAGES = [ROOT.parent / "README.md", DOCS / "tour.md", *sorted((DOCS / "how_to").glob("*.md"))]


def found(path):
    """What stands at a dotted path."""
    module, name = path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


#: All that the reference describes, by its dotted path.
REFERENCE = {path: found(path) for path in run_path(DOCS / "building/names.py")["in_reference"]()}
#: Its functions and classes; a table such as ``ORACLES`` has no docstring.
DESCRIBED = [
    path for path, one in REFERENCE.items() if inspect.isroutine(one) or inspect.isclass(one)
]


def imported(page):
    """The dotted paths of what the code of a page imports from the library."""
    paths = set()
    for code in re.findall(r"(?ms)^```python\n(.*?)^```", page.read_text()):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("icl_jax"):
                public = icl_jax._MODULES if node.module == "icl_jax" else {}
                for alias in node.names:
                    paths.add(f"{public.get(alias.name, node.module)}.{alias.name}")
    return paths


@pytest.fixture
def as_a_reader(monkeypatch, tmp_path):
    """JAX as it comes, not as the tests set it; what is written goes when the test does."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.docs
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_give_what_they_show(path, as_a_reader):
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    module = importlib.import_module(name)
    # What a reader has, and not what the module has.
    known = {public: getattr(icl_jax, public) for public in icl_jax.__all__}
    ran = doctest.testmod(module, globs={**known, "jax": jax, "jnp": jnp, "np": np})
    assert ran.attempted and not ran.failed


def test_what_a_page_imports_is_found_where_it_is_defined(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport icl_jax as icl\nfrom icl_jax import cosine\n"
        "from icl_jax.interop.peft import save_adapter\nfrom pathlib import Path\n```\n"
        "```text\nfrom icl_jax import mean\n```\n"
    )
    assert imported(page) == {
        "icl_jax.measures.weight_space.cosine",
        "icl_jax.interop.peft.save_adapter",
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_imports_is_in_the_reference(page):
    assert imported(page) <= set(REFERENCE)
    assert any(map(imported, PAGES))


def test_the_reference_has_every_public_name_and_what_its_pages_ask_for_themselves():
    public = {f"{module}.{name}" for name, module in icl_jax._MODULES.items()}
    assert len(public) == len(icl_jax.__all__) and public <= set(REFERENCE)
    interop = [path for path in DESCRIBED if ".interop." in path and path not in public]
    assert len(interop) >= 14 and "icl_jax.interop.peft.save_static_adapter" in interop
    # What a public function returns, too.
    assert "icl_jax.dynamics.prefixes.PrefixPass" in DESCRIBED


@pytest.mark.parametrize("path", DESCRIBED)
def test_what_the_reference_describes_has_an_example(path):
    documented = inspect.getdoc(REFERENCE[path])
    assert "Examples:\n" in documented and ">>> " in documented
