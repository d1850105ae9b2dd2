"""No product is left to the precision of the device: on a TPU that is not float32."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for folder in ("icl_jax", "experiments") for path in (ROOT / folder).rglob("*.py")
)
PRODUCTS = {"dot", "matmul", "einsum", "tensordot", "vdot", "inner", "dot_general", "vecdot"}
#: Who multiplies arrays of JAX; NumPy does it in full.
JAX = {"jnp", "lax", "jax.numpy", "jax.lax"}


def unsaid(tree):
    """Lines with a product of JAX that does not say its precision, or an ``@`` of anything."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            yield node.lineno
        if isinstance(node, ast.Call):
            called = node.func
            arguments = [called, *node.args] if "partial" in ast.unparse(called) else [called]
            named = any(
                isinstance(one, ast.Attribute)
                and one.attr in PRODUCTS
                and ast.unparse(one.value) in JAX
                for one in arguments
            )
            if named and not any(keyword.arg in ("precision", None) for keyword in node.keywords):
                yield node.lineno


def test_every_product_says_its_precision():
    assert len(FILES) > 100
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in FILES
        for line in unsaid(ast.parse(path.read_text()))
    ]
    assert not found


def test_the_reader_sees_products():
    source = "a @ b\njnp.matmul(a, b)\njnp.matmul(a, b, precision=p)\nnp.matmul(a, b)\n"
    source += "functools.partial(jnp.einsum, 'i,i')\njax.lax.dot_general(a, b, c, **more)\n"
    assert sorted(unsaid(ast.parse(source))) == [1, 2, 5]
