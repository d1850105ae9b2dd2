"""CONTRIBUTING.md: the files it names are there, and a dummy of each kind works as it says."""

import importlib
import json
import re
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import experiments.regression
from experiments import EXPERIMENTS
from experiments.tools import comparisons
from experiments.tools.flags import launch
from icl_jax.blocks.block import Block
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.feedforward import Dense
from icl_jax.blocks.stack import Stack, functional
from icl_jax.interop import families as package
from icl_jax.interop.huggingface import load, make_tiny
from icl_jax.kernels import product as operation
from icl_jax.kernels.product import api
from icl_jax.patches.extraction import patched_forward, stack_patches
from icl_jax.stack.run import forward

ROOT = Path(__file__).parents[2]
RECIPES = (ROOT / "CONTRIBUTING.md").read_text()


def test_every_file_that_is_named_is_there():
    named = set(re.findall(r"`((?:icl_jax|experiments|tests)/[\w./]+)`", RECIPES))
    named = {path for path in named if "NAME" not in path and "/OP/" not in path}
    assert len(named) > 20
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert not missing


def test_a_family_is_one_file(tmp_path, monkeypatch):
    (tmp_path / "dummy.py").write_text(
        "from icl_jax.interop.families import mistral\n"
        "ARCHITECTURES = ('DummyForCausalLM', 'dummy')\n"
        "build, table = mistral.build, mistral.table\n"
        "def tiny():\n"
        "    names = {'architectures': ['DummyForCausalLM'], 'model_type': 'dummy'}\n"
        "    return {**mistral.tiny(), **names}\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    made = make_tiny("dummy", tmp_path / "model", jax.random.key(0))
    again = load(tmp_path / "model")
    assert again.family == "dummy"
    for mine, theirs in zip(*map(jax.tree.leaves, (made.params, again.params)), strict=True):
        np.testing.assert_array_equal(mine, theirs)


class RunningMean(ContextualLayer):
    """The mean of what has been read: a layer with ``__call__`` alone."""

    def __call__(self, stream_TD, *, positions_T=None, present_T=None):
        here_T = jnp.ones(stream_TD.shape[0], bool) if present_T is None else present_T
        here_T1 = here_T[:, None].astype(stream_TD.dtype)
        return jnp.cumsum(here_T1 * stream_TD, axis=0) / jnp.maximum(jnp.cumsum(here_T1, axis=0), 1)


def test_a_layer_is_a_class_with_a_call():
    block = Block(RunningMean(), Dense(hidden_widths=(16,)), wiring="pre_norm")
    stack = Stack((block, block), width=8)
    tokens_TC = jax.random.normal(jax.random.key(0), (6, 3), jnp.float64)
    params = stack.init(jax.random.key(1), tokens_TC)["params"]
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    stream_TD = stack.apply({"params": params}, tokens_TC, method="embed")
    layers = functional(stack, params)
    kept_K = jnp.asarray([5], jnp.int32)
    bank = stack_patches(layers, stream_TD, kept_K)
    np.testing.assert_allclose(
        patched_forward(layers, stream_TD, bank), forward(layers, stream_TD)[5:], rtol=1e-10
    )


def test_a_measure_is_a_description_and_its_values(monkeypatch):
    described = comparisons.Measure("strangeness (dummies)", larger_is_closer=True)
    monkeypatch.setitem(comparisons.MEASURES, "strangeness", described)
    value_B = jnp.linspace(0.9, 1.0, 8)
    measured = comparisons.with_nulls(
        {"strangeness": value_B}, {"random": {"strangeness": value_B - 0.5}}
    )
    found = comparisons.compared(jax.random.key(0), measured)
    assert comparisons.verdict(found).startswith("Closer than every null: strangeness (dummies)")


EXPERIMENT = '''
"""Is a number what it was asked to be?

    python -m experiments.dummy --workdir=runs/dummy
"""

from dataclasses import dataclass

import numpy as np

from experiments.tools.conduct import Outcome, finish, measured, start
from experiments.tools.flags import launch, option
from icl_jax.report.page import Section


@dataclass(frozen=True)
class Config:
    """The number."""

    number: float = option(2.0, "that is asked for")


@dataclass(frozen=True)
class Arrays:
    """What was found."""

    number: np.ndarray


def run(config, workdir):
    """Measures and reports."""
    record = start(workdir, "dummy", config)
    arrays = measured(record, Arrays, lambda: Arrays(np.array(config.number)))
    section = Section("The number", "Words.", verdict=f"It is {arrays.number}.")
    outcome = Outcome({"number": float(arrays.number)}, [section])
    return finish(record, "A number", __doc__, outcome)


if __name__ == "__main__":
    launch(Config, run, __doc__)
'''


def test_an_experiment_is_a_file_of_a_room_and_its_name(tmp_path, monkeypatch):
    (tmp_path / "dummy.py").write_text(textwrap.dedent(EXPERIMENT).lstrip())
    room = experiments.regression
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    monkeypatch.setitem(EXPERIMENTS, "dummy", "experiments.regression.dummy")
    module = importlib.import_module(EXPERIMENTS["dummy"])
    workdir = tmp_path / "run"
    command = ["dummy", f"--workdir={workdir}", "--number=3"]
    launch(module.Config, module.run, module.__doc__, argv=command)
    assert json.loads((workdir / "summary.json").read_text()) == {"number": 3.0}
    page = (workdir / "report.html").read_text()
    assert "It is 3.0." in page and f"experiments.dummy --workdir={workdir} --number=3.0" in page


KERNEL = '''
"""The same product, one column of the kernel after the other."""

import jax
import jax.numpy as jnp


def product(rows, kernel_DH):
    """One sum per column."""
    return jnp.moveaxis(jax.lax.map(lambda column: rows @ column, kernel_DH.T), 0, -1)
'''


def test_a_kernel_is_a_file_and_its_name(tmp_path, monkeypatch):
    (tmp_path / "by_column.py").write_text(textwrap.dedent(KERNEL).lstrip())
    monkeypatch.setattr(operation, "__path__", [*operation.__path__, str(tmp_path)])
    dummy = importlib.import_module("icl_jax.kernels.product.by_column")
    monkeypatch.setitem(api._KINDS, "by_column", dummy.product)
    monkeypatch.setattr(api, "IMPLEMENTATIONS", tuple(api._KINDS))
    rows, kernel = (
        jax.random.normal(key, shape, jnp.float64)
        for key, shape in zip(jax.random.split(jax.random.key(0)), [(3, 4), (4, 5)], strict=True)
    )

    def run(implementation):
        def loss(rows, kernel):
            return jnp.sum(jnp.sin(api.product(rows, kernel, implementation=implementation)))

        return jax.value_and_grad(loss, argnums=(0, 1))(rows, kernel)

    for mine, theirs in zip(
        *map(jax.tree.leaves, map(run, ("by_column", "reference"))), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


@pytest.mark.parametrize(
    "kind", ["family of models", "contextual layer", "measure", "kernel", "experiment"]
)
def test_every_kind_has_a_recipe_with_its_tests(kind):
    recipe = re.search(rf"^## An? {kind}$(.*?)(?=^## |\Z)", RECIPES, re.MULTILINE | re.DOTALL)[1]
    assert "Must pass: `tests/" in recipe and "\n1. " in recipe
