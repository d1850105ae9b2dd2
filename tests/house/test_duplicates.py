"""No two places of more than twelve lines hold the same logic, whatever they call its variables."""

import ast
import itertools
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("icl_jax", "experiments", "launch", "benchmarks", "docs", "tests")
#: Lines of code that two functions may share: a call with its arguments, a loop over a table.
MOST = 12


class Shape(ast.NodeTransformer):
    """Local names become their numbers by order; texts and numbers become their kinds."""

    def __init__(self, local):
        self.local, self.seen = local, {}

    def named(self, name):
        return self.seen.setdefault(name, f"name{len(self.seen)}") if name in self.local else name

    def visit_Name(self, node):
        return ast.Name(self.named(node.id), ast.Load())

    def visit_arg(self, node):
        return ast.arg(self.named(node.arg))

    def visit_Constant(self, node):
        return ast.Constant(type(node.value).__name__)


def local_names(function):
    nodes = list(ast.walk(function))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {node.arg for node in nodes if isinstance(node, ast.arg)}


def shape(statements, local):
    """What is compared: the statements as a tree, without what they call their variables."""
    shaper = Shape(local)
    return tuple(ast.dump(shaper.visit(ast.parse(ast.unparse(one)))) for one in statements)


def bodies(function):
    """All blocks of statements in it, docstrings left out."""
    for node in ast.walk(function):
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list) and block:
                first = block[0]
                told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
                yield block[1:] if told else block


def lines_of(statement):
    """Lines of code, comments left out, with one for a call however it is written."""
    return len(ast.unparse(statement).splitlines())


def runs(function):
    """Runs of statements just longer than ``MOST`` lines: every longer one begins with one."""
    for block in bodies(function):
        lines = [lines_of(one) for one in block]
        for start in range(len(block)):
            ends = itertools.accumulate(lines[start:])
            long = next((end for end, total in enumerate(ends, start + 1) if total > MOST), None)
            if long is not None:
                yield block[start:long]


def repeated(texts):
    """Pairs of places, as (file, line), that hold the same logic."""
    places = defaultdict(dict)
    for file, text in texts.items():
        for function in ast.walk(ast.parse(text)):
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                local = local_names(function)
                for found in runs(function):
                    place = file, found[0].lineno
                    places[shape(found, local)][place] = found[-1].end_lineno
    return [
        (one, other)
        for ends in places.values()
        for one, other in itertools.combinations(ends, 2)
        # A table of equal rows is not a copy of itself.
        if one[0] != other[0] or other[1] > ends[one]
    ]


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
    one = body("ab", MOST)
    other = body("xy", MOST).replace("step(y, 3)", "step(  # as ever\n        y, 33\n    )")
    assert repeated({"one.py": one, "other.py": other}) == [(("one.py", 3), ("other.py", 3))]
    assert repeated({"one.py": one, "other.py": one.replace("step(b, 3)", "leap(b, 3)")}) == []
    assert repeated({"one.py": body("ab", MOST - 1), "other.py": body("ab", MOST - 1)}) == []
    assert repeated({"one.py": body("ab", 3 * MOST)}) != []
    assert repeated({"one.py": body("ab", MOST + 2)}) == []
