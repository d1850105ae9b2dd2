"""The arrows between the folders: who imports whom, read from the source."""

import ast
from pathlib import Path

import pytest

import icl_jax

ROOT = Path(icl_jax.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

#: What a folder may import from icl_jax; folders that are not listed may import anything.
ALLOWED = {
    "dims": (),
    "checks": ("dims",),
    "records": (),
    "shown": (),
    "kernels": ("checks", "dims", "sharding"),
    "compilations": (),
    "sharding": (),
    "optimizers": ("checks", "dims"),
    "tasks": ("checks", "dims", "sharding"),
    "oracles": ("checks", "dims"),
    "stack": ("checks", "dims", "shown"),
    "patches": ("checks", "dims", "kernels", "sharding", "stack", "shown"),
    "dynamics": ("checks", "dims", "kernels", "patches", "sharding", "stack", "shown"),
    "measures": ("checks", "dims", "kernels", "patches", "dynamics", "stack", "shown"),
    "descent": (
        "checks",
        "dims",
        "optimizers",
        "oracles",
        "sharding",
        "stack",
        "patches",
        "dynamics",
        "measures",
        "shown",
    ),
    "blocks": ("checks", "dims", "kernels", "stack", "patches", "shown"),
    "language": (
        "checks",
        "dims",
        "sharding",
        "stack",
        "patches",
        "dynamics",
        "measures",
        "blocks",
        "shown",
    ),
    "interop": ("checks", "dims", "sharding", "stack", "patches", "blocks", "shown"),
    "pretrained": (
        "checks",
        "dims",
        "shown",
        "stack",
        "patches",
        "dynamics",
        "measures",
        "blocks",
        "language",
        "interop",
    ),
    "training": ("checks", "compilations", "dims", "optimizers", "records", "sharding"),
    "report": (),
}

#: Frameworks that the array-only half does not know.
ARRAY_ONLY = ("kernels", "stack", "patches", "dynamics", "measures", "oracles", "descent")


def imports(source: str) -> set[str]:
    """The dotted names that a file imports, wherever in the file it does."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not used here"
            # Both readings: `from icl_jax import checks` and `from icl_jax.checks import rank`.
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def reaches(names: set[str], *prefixes: str) -> set[str]:
    """Those of ``names`` that are, or lie under, one of the prefixes."""
    return {n for n in names for p in prefixes if n == p or n.startswith(p + ".")}


def part_of(path: Path) -> str:
    """The folder of icl_jax that a file belongs to, or its own name at the top."""
    relative = path.relative_to(ROOT)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def own_parts(names: set[str]) -> set[str]:
    """The parts of icl_jax among imported names."""
    parts = {name.split(".")[1] for name in names if name.startswith("icl_jax.")}
    return {part for part in parts if (ROOT / part).is_dir() or (ROOT / f"{part}.py").exists()}


@pytest.fixture(params=SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def source(request):
    return request.param


def test_the_reader_of_imports_sees_all_of_them():
    text = "import os.path\ndef f():\n    from icl_jax.blocks import stack as s, block\n"
    assert imports(text) == {
        "os.path",
        "icl_jax.blocks",
        "icl_jax.blocks.stack",
        "icl_jax.blocks.block",
    }
    assert own_parts(imports(text)) == {"blocks"}
    assert reaches({"flax.linen", "flaxen"}, "flax") == {"flax.linen"}
    assert {"blocks", "patches", "dynamics", "tasks"} <= {part_of(path) for path in SOURCES}


def test_arrows_between_the_folders_point_left(source):
    part = part_of(source)
    if part not in ALLOWED:
        pytest.skip(f"{part} may import anything")
    wrong = own_parts(imports(source.read_text())) - {part, *ALLOWED[part]}
    assert not wrong, f"{part} must not import {sorted(wrong)}"


def test_the_array_only_half_knows_no_framework(source):
    if part_of(source) in ARRAY_ONLY:
        names = imports(source.read_text())
        wrong = reaches(names, "flax", "equinox", "haiku", "icl_jax.blocks")
        assert not wrong


def test_records_know_jax_and_numpy_only(source):
    if part_of(source) == "records":
        names = imports(source.read_text())
        others = ("flax", "optax", "chex", "orbax", "absl", "rich", "matplotlib", "sklearn")
        assert not reaches(names, *others)
        assert own_parts(names) <= {"records"}


def test_nothing_imports_what_lies_outside_or_reads_flags_or_the_clock(source):
    names = imports(source.read_text())
    wrong = reaches(names, "experiments", "launch", "benchmarks", "tests", "absl", "argparse")
    assert not wrong | reaches(names, "time", "datetime")


def test_reports_are_drawn_from_records_without_jax(source):
    if part_of(source) == "report":
        assert not reaches(imports(source.read_text()), "jax", "jaxlib", "flax", "optax")


def test_nothing_reads_the_environment(source):
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            assert name not in ("os.environ", "os.getenv", "os.environb"), f"line {node.lineno}"
    assert not reaches(imports(source.read_text()), "os.environ", "os.getenv")


#: Methods that a framework names, calls and documents.
HOOKS = ("setup",)


def undocumented(source: str) -> list[str]:
    """Names of the public functions, classes and methods of a file that have no docstring."""
    tree = ast.parse(source)
    missing = [] if ast.get_docstring(tree) else ["the module"]
    nodes: list[tuple[str, ast.stmt]] = [("", node) for node in tree.body]
    while nodes:
        owner, node = nodes.pop()
        if not isinstance(node, ast.ClassDef | ast.FunctionDef) or node.name.startswith("_"):
            continue
        if owner and node.name in HOOKS:
            continue
        name = f"{owner}{node.name}"
        if not ast.get_docstring(node):
            missing.append(f"{name} (line {node.lineno})")
        if isinstance(node, ast.ClassDef):
            nodes.extend((f"{name}.", child) for child in node.body)
    return missing


def test_the_reader_of_docstrings_opens_classes_and_skips_what_is_private():
    text = (
        '"""M."""\nclass A:\n    """A."""\n    def f(self):\n        return 1\n'
        "    def _g(self):\n        def h(): ...\n"
        "class _B:\n    def f(self): ...\ndef c():\n    def d(): ...\n"
    )
    assert undocumented(text) == ["c (line 10)", "A.f (line 4)"]
    assert undocumented("x = 1") == ["the module"]


def test_every_public_function_class_and_method_has_a_docstring(source):
    assert not undocumented(source.read_text())
