"""Layers are walked in one place: nothing but ``stack.fold`` applies block after block.

A loop in Python over the layers is compiled once per layer, and rounds otherwise than the fold.
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    path for part in ("icl_jax", "experiments", "launch") for path in (ROOT / part).rglob("*.py")
)
#: What one does with a block; a loop that does it applies layer after layer.
APPLIES = {"contextual", "prefixes", "suffixes", "hidden", "apply_block", "closed_step"}
APPLIES |= {"mixed", "extend_mixed", "feed", "joint_step"}
#: And what a list or a string does, too, with one argument.
OF_MORE = {"extend", "join"}
#: Loops that are no walks, how many a file has, and why.
EXCEPTIONS = {
    "icl_jax/blocks/attention_stack.py": (
        1,
        "attention without an MLP, whose layers may share their weights and are no blocks",
    ),
    "icl_jax/blocks/attention.py": (1, "one layer mixes over each of several memories"),
}
#: The loops of XLA; over ``segments`` the fold alone makes one.
COMPILED_LOOPS = {"scan", "fori_loop", "while_loop"}
FOLD = "icl_jax/stack/fold.py"

_LOOPS = (ast.For, ast.While, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def walks(text):
    """The lines of loops that apply blocks, or call what they loop over as a layer."""
    return sorted(
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, _LOOPS) and any(applies(call, node) for call in calls_in(node))
    )


def calls_in(loop):
    """The calls that are made at every turn."""
    if isinstance(loop, ast.For | ast.While):
        parts = loop.body
    else:
        first, *rest = loop.generators
        parts = [child for child in ast.iter_child_nodes(loop) if child not in loop.generators]
        parts += [*first.ifs, *rest]
    return [node for part in parts for node in ast.walk(part) if isinstance(node, ast.Call)]


def applies(call, loop):
    name = getattr(call.func, "attr", getattr(call.func, "id", None))
    if name in OF_MORE:
        return len(call.args) + len(call.keywords) > 1
    return name in APPLIES or isinstance(call.func, ast.Name) and name in layers_named(loop)


def layers_named(loop):
    """The variables of a loop over something that is called layers or blocks."""
    headers = [loop] if isinstance(loop, ast.For) else getattr(loop, "generators", [])
    names = set()
    for header in headers:
        read = {getattr(node, "attr", getattr(node, "id", "")) for node in ast.walk(header.iter)}
        if read & {"layers", "blocks"}:
            targets = ast.walk(header.target)
            names |= {node.id for node in targets if isinstance(node, ast.Name)}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_loop_applies_one_block_after_another(path):
    found = walks(path.read_text())
    count, _ = EXCEPTIONS.get(str(path.relative_to(ROOT)), (0, ""))
    if count:
        assert len(found) >= count, "this is no exception any more: take it off the list"
    assert len(found) <= count, f"walk the layers with stack.fold, not with a loop (lines {found})"


def scans_segments(text):
    """Whether a file makes a loop of XLA and reads the segments of a stack."""
    tree = list(ast.walk(ast.parse(text)))
    named = {getattr(node, "attr", getattr(node, "id", None)) for node in tree}
    called = {
        getattr(node.func, "attr", getattr(node.func, "id", None))
        for node in tree
        if isinstance(node, ast.Call)
    }
    return "segments" in named and bool(COMPILED_LOOPS & called)


def test_nothing_but_the_fold_loops_over_segments():
    found = [str(path.relative_to(ROOT)) for path in SOURCES if scans_segments(path.read_text())]
    assert found == [FOLD]
    assert not scans_segments("jax.lax.scan(step, start, rows)\nparts = bank.patches")
    assert scans_segments("for one in patches.segments:\n    z, _ = lax.scan(step, z, one)")


@pytest.mark.parametrize(
    "text",
    (
        "for block, params in layers:\n    z = block.contextual(params, z)",
        "for b, p in zip(blocks, params):\n    z = apply_block(b, p, z)",
        "for b in blocks:\n    def run(z):\n        return b.hidden(z, None)\n    z = run(z)",
        "for b in blocks:\n    out, memory = b.extend(params, new, memory, slots)",
        "for b, p in layers:\n    z = b.join(p, z, b.mixed(p, z))",
        "for b, p in layers:\n    z = b.join(p, z, given)",
        "for b, p in layers:\n    z, seen = feed(visit, b, p, midpoint, seen)",
        "for b, p in layers:\n    state, found = joint_step(b, p, full, kept, output)",
        "for b, p in layers:\n    (z,), (memory,) = b.extend_mixed(p, (z,), (memory,), slots)",
        "for layer in self.layers:\n    z = z + layer(z)",
        "for i, layer in enumerate(layers):\n    z = layer(z)",
        "while more:\n    z = blocks[i].prefixes(z)",
        "zs = [b.contextual(p, z) for b, p in layers]",
        "zs = [layer(z) for layer in self.layers]",
        "zs = [f(z) for b in blocks if b.suffixes(z)]",
        "for stack in stacks:\n    for b, p in stack:\n        z = extraction.closed_step(b, p, z)",
    ),
)
def test_the_reader_sees_walks(text):
    assert walks(text)


@pytest.mark.parametrize(
    "text",
    (
        "for block in blocks:\n    found.append(block.has_memory)",
        "for row in rows:\n    found.extend(row)",
        "for row in rows:\n    lines.append(', '.join(row))",
        "for layer, block in enumerate(blocks):\n    check(layer, block)",
        "kinds = [type(block).__name__ for block in blocks]",
        "def step(block, params, state, _):\n    return block.contextual(params, state), None",
        "for config in configs:\n    run(config)",
        "z = [kernel_of(params) for params in functional(model, tree).params]",
        "errors = [e for e in block.contextual(params, z)]",
    ),
)
def test_and_takes_nothing_else_for_one(text):
    assert not walks(text)
