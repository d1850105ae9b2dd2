"""The examples of docstrings: every ``>>>`` of the library runs and gives what it shows."""

import doctest
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import icl_jax

ROOT = Path(icl_jax.__file__).parent
FILES = [path for path in sorted(ROOT.rglob("*.py")) if ">>> " in path.read_text()]
#: Names that a reader meets first: each has an example.
CENTRAL = """
    input_factor token_update apply_factor conditioning outer add compose frobenius_norm
    frobenius_inner truncate down_patch balanced_patch exact_patch ridge_patch stack_patches
    anchored_trajectory peel_off_trajectory attention_contributions cosine relative_error
    kl_divergence compare_with_nulls gradient_steps prefix_predictions finetune tune_learning_rate
    select sample_prompts prompt_tokens build_stack OptimizerConfig
""".split()


@pytest.fixture
def as_a_reader():
    """JAX as it comes, not as the tests set it."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_examples_give_what_they_show(path, as_a_reader):
    name = ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)
    module = importlib.import_module(name)
    known = {public: getattr(icl_jax, public) for public in icl_jax.__all__}
    found = doctest.testmod(module, extraglobs={**known, "jax": jax, "jnp": jnp})
    assert found.attempted and not found.failed


@pytest.mark.parametrize("name", CENTRAL)
def test_a_central_name_has_an_example(name):
    assert ">>> " in getattr(icl_jax, name).__doc__
