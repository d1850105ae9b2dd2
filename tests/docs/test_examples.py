"""The examples of docstrings: every ``>>>`` of the library runs and gives what it shows."""

import ast
import doctest
import importlib
import inspect
import re
import tempfile
from pathlib import Path

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
#: Further names that have an example: the algebra of updates, and what is set beside patches.
CENTRAL = set(
    """
    input_factor token_update apply_factor kernel_update conditioning outer add subtract scale mean
    compose frobenius_norm frobenius_inner dense_inner singular_values truncate as_matrix
    apply_update from_matrix LowRank bias_patch down_patch balanced_patch exact_patch ridge_patch
    covariance_patch cheap_patch thought_vector query_sums stack_patches Bank Layers fold forward
    first_layers anchored_trajectory peel_off_trajectory Trajectory attention_contributions
    load_static observed_generate observe gradient_steps descent_prediction preconditioned_steps
    gd_plus_plus one_step_weights preconditioned_step_weights optimal_linear_attention finetune
    descend fleet layer_causal_loss tune_learning_rate rate_grid new_adapters with_adapters select
    prefix_predictions sample_prompts prompt_tokens build_stack OptimizerConfig cosine alignment
    norm_ratio principal_angles leading_angles effective_rank relative_error squared_error
    prediction_difference model_difference sensitivity sensitivity_cosine implicit_linear_weights
    ilwd kl_divergence total_variation same_top1 top_k_overlap kendall_tau update_similarity
    attention_similarity vector_cosine bootstrap_mean compare_with_nulls as_summary random_update
    random_vector another_prompts shuffled_labels shapley_values greedy update_statistics
    """.split()
)


def mentioned(page):
    """The public names that the code of a page uses, and those that its prose has between ticks."""
    text = page.read_text()
    found = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", re.sub(r"(?s)```.*?```", "", text)))
    for code in re.findall(r"(?ms)^```python\n(.*?)^```", text):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("icl_jax"):
                found |= {alias.name for alias in node.names}
            # By the package's name or by the one that the pages give it.
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                found |= {node.attr} if node.value.id in ("icl", "icl_jax") else set()
    return found & set(icl_jax.__all__)


#: Those that are described: a table such as ``ORACLES`` has no docstring.
NAMES = sorted(
    name
    for name in CENTRAL.union(*map(mentioned, PAGES))
    if inspect.isroutine(getattr(icl_jax, name)) or inspect.isclass(getattr(icl_jax, name))
)


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
    found = doctest.testmod(module, globs={**known, "jax": jax, "jnp": jnp, "np": np})
    assert found.attempted and not found.failed


def test_a_page_mentions_what_it_imports_what_it_calls_and_what_it_names(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "Call `forward(layers, stream)`, or `not_a_name`; `load`.\n\n"
        "```python\nimport icl_jax as icl\nfrom icl_jax import cosine\n"
        "icl.outer(1, 2)\nmean = 0\n```\n"
    )
    assert mentioned(page) == {"forward", "load", "cosine", "outer"}
    assert all(mentioned(page) for page in PAGES if page.stem != "sweep")


@pytest.mark.parametrize("name", NAMES)
def test_a_central_name_has_an_example(name):
    documented = inspect.getdoc(getattr(icl_jax, name))
    assert "Examples:\n" in documented and ">>> " in documented
