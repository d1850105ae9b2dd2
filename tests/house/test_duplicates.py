"""No two places of more than twelve lines hold the same logic, whatever they call its variables."""

import ast
import itertools
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("icl_jax", "experiments", "launch", "benchmarks", "tests")
#: Lines that two places may share: a call with its arguments, a loop over a table.
MOST = 12


class Shape(ast.NodeTransformer):
    """Local names become what they are by order; texts and numbers of a statement, nothing."""

    def __init__(self, local):
        self.local, self.seen = local, {}

    def visit_Name(self, node):
        if node.id not in self.local:
            return node
        return ast.Name(self.seen.setdefault(node.id, f"name{len(self.seen)}"), ast.Load())

    def visit_Constant(self, node):
        return ast.Constant(type(node.value).__name__)


def local_names(function):
    stored = {
        node.id
        for node in ast.walk(function)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    return stored | {node.arg for node in ast.walk(function) if isinstance(node, ast.arg)}


def shape(statements, local):
    """What is compared: the statements as a tree, without what they call their variables."""
    copies = [ast.parse(ast.unparse(one)) for one in statements]
    shaper = Shape(local)
    return tuple(ast.dump(shaper.visit(one)) for one in copies)


def lines_of(statements):
    """How many lines of code they are, as they are written."""
    return statements[-1].end_lineno - statements[0].lineno + 1


def bodies(function):
    """All blocks of statements in it, docstrings left out."""
    for node in ast.walk(function):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block:
                documented = isinstance(block[0], ast.Expr) and isinstance(
                    block[0].value, ast.Constant
                )
                yield block[1:] if documented else block


def runs(function):
    """Runs of statements just longer than ``MOST`` lines: every longer one begins with one."""
    for block in bodies(function):
        for start in range(len(block)):
            for end in range(start + 1, len(block) + 1):
                if lines_of(block[start:end]) > MOST:
                    yield block[start:end]
                    break


def repeated(texts):
    """Pairs of places, as (file, line), that hold the same logic."""
    places = defaultdict(dict)
    for file, text in texts.items():
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, ast.FunctionDef):
                local = local_names(function)
                for statements in runs(function):
                    places[shape(statements, local)][file, statements[0].lineno] = None
    return [pair for found in places.values() for pair in itertools.combinations(found, 2)]


def test_the_same_logic_stands_in_one_place():
    texts = {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
    }
    assert len(texts) > 500
    assert repeated(texts) == []


def body(names, lines):
    first, second = names
    rows = [f"    {first} = step({second}, {number})" for number in range(lines)]
    return "\n".join([f"def run({second}):", '    """Text."""', *rows, f"    return {first}", ""])


def test_other_names_and_numbers_are_no_other_logic():
    one, other = body("ab", MOST), body("xy", MOST).replace("step(y, 3)", "step(y, 33)")
    assert repeated({"one.py": one, "other.py": other}) == [(("one.py", 3), ("other.py", 3))]
    assert repeated({"one.py": one, "other.py": one.replace("step(b, 3)", "leap(b, 3)")}) == []
    assert repeated({"one.py": body("ab", MOST - 1), "other.py": body("ab", MOST - 1)}) == []
