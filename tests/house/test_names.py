"""The public names: complete, in groups, and imported when they are used."""

import ast
import inspect
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import icl_jax
from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.wiring import WIRINGS

STUB = Path(icl_jax.__file__).with_suffix(".pyi").read_text()
#: The names of the README's first example, which need arrays and nothing else.
FIRST = "from icl_jax import input_factor, apply_factor, token_update, frobenius_norm"


def imported():
    nodes = [node for node in ast.parse(STUB).body if isinstance(node, ast.ImportFrom)]
    return [alias.name for node in nodes for alias in node.names]


def test_every_name_of_the_stub_is_public_once_and_is_there():
    assert sorted(imported()) == sorted(icl_jax.__all__)
    assert len(set(icl_jax.__all__)) == len(icl_jax.__all__)
    for name in icl_jax.__all__:
        assert getattr(icl_jax, name) is not None


def test_names_stand_in_groups_and_sorted_in_each():
    groups = re.split(r"^    # .+\.$", STUB.split("__all__ = [")[1], flags=re.MULTILINE)
    assert not groups[0].strip() and len(groups) > 5
    for group in groups[1:]:
        names = re.findall(r'"(\w+)"', group)
        assert names and names == sorted(names, key=str.lower)


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'icl_jax' has no attribute 'patchs'"):
        _ = icl_jax.patchs
    assert "input_factor" in dir(icl_jax)


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout


def test_what_is_not_used_is_not_imported():
    shown = python(
        f"import sys, icl_jax\nprint('jax' in sys.modules)\n{FIRST}\nprint(*sys.modules)"
    )
    first, modules = shown.split("\n", 1)
    assert first == "False"
    heavy = {"flax", "optax", "orbax", "rich", "chex", "matplotlib", "absl.flags", "tokenizers"}
    assert not heavy & set(modules.split())


def test_folders_are_attributes_as_after_any_import():
    assert python("import icl_jax; print(icl_jax.patches.__name__)").strip() == "icl_jax.patches"


def processor_seconds():
    """Of the processes that were started and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_the_import_takes_little_more_than_that_of_jax():
    codes = {"jax": "import jax", "bare": "import jax, icl_jax", "first": f"import jax; {FIRST}"}
    seconds = {}
    for _ in range(3):  # Interleaved, and the best of each: other work only ever adds.
        for name, code in codes.items():
            start = processor_seconds()
            python(code)
            seconds[name] = min(processor_seconds() - start, seconds.get(name, float("inf")))
    assert seconds["bare"] < 1.3 * seconds["jax"]
    assert seconds["first"] < 1.3 * seconds["jax"]


ROOM = Path(icl_jax.__file__).parent
SOURCES = {path: path.read_text() for path in ROOM.rglob("*.py")}


def test_hidden_are_the_activations_of_an_mlp_and_nothing_else():
    named = [name for text in SOURCES.values() for name in re.findall(r"\bhidden_[A-Z]+\b", text)]
    assert len(named) > 100 and {name[-1] for name in named} == {"H"}


def test_an_output_norm_is_the_norm_behind_an_mlp_and_no_wiring():
    assert "output_norm" not in WIRINGS
    assert inspect.isfunction(FlaxBlock.output_norm)


def test_the_plain_forward_pass_does_not_live_in_the_bank():
    defined = [path for path, text in SOURCES.items() if re.search(r"^def forward\(", text, re.M)]
    assert [str(path.relative_to(ROOM)) for path in defined] == ["stack/run.py"]
    assert icl_jax.forward.__module__ == "icl_jax.stack.run"
    assert "stack.run" not in SOURCES[ROOM / "patches/bank.py"]


def classes_with(field):
    """The classes of the library and what stands around it that declare a field."""
    folders = [ROOM, *(ROOM.parent / name for name in ("experiments", "launch"))]
    return {
        node.name
        for folder in folders
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        for part in node.body
        if isinstance(part, ast.AnnAssign) and ast.unparse(part.target) == field
    }


@pytest.mark.parametrize("field", ["schedule", "warmup_steps", "gradient_clip"])
def test_an_optimiser_is_described_in_one_place(field):
    assert classes_with(field) == {"OptimizerConfig"}


def test_which_kernels_read_z_is_said_by_the_mlps_alone():
    mlps = {"blocks/feedforward.py", "blocks/experts.py"}
    # A block asks its MLP; another asks for any block that can say it.
    hand_on = {"blocks/flax_block.py", "descent/parameters.py"}
    defining, naming = set(), set()
    for path, text in SOURCES.items():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name == "input_kernels":
                defining.add(str(path.relative_to(ROOM)))
            if isinstance(node, ast.Tuple | ast.List | ast.Set):
                names = {one.value for one in node.elts if isinstance(one, ast.Constant)}
                if {"gate", "up"} <= names:
                    naming.add(str(path.relative_to(ROOM)))
    assert defining == mlps | hand_on and naming == mlps


def test_oracles_do_not_live_in_descent():
    named = re.compile(r"^def (\w*(?:ridge|least_squares|neighbours)\w*)", re.MULTILINE)

    def defined(room):
        found = [named.findall(text) for path, text in SOURCES.items() if path.parent.name == room]
        return {name for names in found for name in names}

    assert not defined("descent")
    assert {"ridge", "least_squares", "nearest_neighbours"} <= defined("oracles")


@pytest.mark.parametrize(
    "name", ["anchored_trajectory", "peel_off_trajectory", "finetune", "descend"]
)
def test_a_path_of_weights_is_a_trajectory_whoever_takes_it(name):
    told = inspect.signature(getattr(icl_jax, name)).return_annotation
    assert told in (icl_jax.Trajectory, "Trajectory")
