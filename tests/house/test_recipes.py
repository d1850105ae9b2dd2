"""CONTRIBUTING.md: the files it names are there, and a dummy of each kind works as it says.

The dummies are files in ``dummies``, and go where the recipes say: into the folder of their kind
(which is made longer by theirs), the registries, the stub and README's tables. Then the tests that
a recipe names are called on them.
"""

import doctest
import importlib
import inspect
import json
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import experiments
import icl_jax
from experiments import EXPERIMENTS
from experiments import __main__ as listing
from experiments.tools import comparisons
from experiments.tools.flags import UsageError, launch, parse
from icl_jax.blocks import config as designs
from icl_jax.blocks.stack import functional
from icl_jax.interop.huggingface import load, make_tiny
from icl_jax.kernels.product import api, few_rows
from icl_jax.patches.extraction import patched_forward, stack_patches
from icl_jax.sharding import names as sharded
from icl_jax.stack.run import forward
from tests import helpers, test_layering, test_readme
from tests.blocks import test_layers
from tests.browser import reports, test_reports
from tests.docs import test_examples
from tests.experiments import small, test_counts, test_mesh, test_rooms
from tests.house import test_keys, test_names
from tests.interop import test_exactness, test_family_options, test_parity, test_registry
from tests.kernels.product import test_product
from tests.measures import test_arguments
from tests.patches import test_bank
from tests.sharding import test_table

ROOT = Path(__file__).parents[2]
DUMMIES = Path(__file__).parent / "dummies"
RECIPES = (ROOT / "CONTRIBUTING.md").read_text()


@pytest.fixture
def put(monkeypatch):
    """Puts the dummies of a folder into a package; gives back the dummy that is asked for."""

    def put(package: str, folder: str, name: str) -> ModuleType:
        parent = importlib.import_module(package)
        monkeypatch.setattr(parent, "__path__", [*parent.__path__, str(DUMMIES / folder)])
        found = importlib.import_module(f"{package}.{name}")
        monkeypatch.delitem(sys.modules, found.__name__)  # At the end it is put back, and then:
        monkeypatch.setitem(sys.modules, found.__name__, found)
        return found

    return put


def public(monkeypatch, module, name, group):
    """A line among the imports of the stub, and one of its group; then the tests of names."""
    line = f"from {module.__name__} import {name}\n"
    stub = test_names.STUB.replace("\n__all__ = [", f"{line}\n__all__ = [", 1)
    start = stub.index(f"    # {group}")
    end = re.compile(r"^(    # |\])", re.MULTILINE).search(stub, start + 6).start()
    head, *names = stub[start:end].splitlines(keepends=True)
    names = sorted([*names, f'    "{name}",\n'], key=str.lower)
    stub = stub[:start] + "".join([head, *names]) + stub[end:]
    monkeypatch.setattr(test_names, "STUB", stub)
    monkeypatch.setattr(icl_jax, "__all__", [*icl_jax.__all__, name])
    monkeypatch.setitem(icl_jax._MODULES, name, module.__name__)
    monkeypatch.setattr(icl_jax, name, getattr(module, name), raising=False)
    test_names.test_every_name_of_the_stub_is_public_once_and_is_there()
    test_names.test_names_stand_in_groups_and_sorted_in_each()
    described = getattr(module, name)
    path = f"{module.__name__}.{name}"
    monkeypatch.setitem(test_examples.REFERENCE, path, described)
    test_examples.test_what_the_reference_describes_has_an_example(path)
    known = {one: getattr(icl_jax, one) for one in test_names.imported()}
    globs = {**known, "jax": jax, "jnp": jnp, name: described}
    ran = [
        doctest.DocTestRunner().run(example)
        for example in doctest.DocTestFinder(recurse=False).find(described, name, globs=globs)
    ]
    assert ran and all(one.attempted and not one.failed for one in ran)
    test_keys.test_no_public_function_that_draws_is_left_out()
    test_arguments.test_every_function_of_updates_is_among_them()


def keeps_the_arrows(monkeypatch, module, part):
    """The tests of a file of icl_jax, as one of the folder that it is put into."""
    monkeypatch.setattr(test_layering, "part_of", lambda path: part)
    found = [
        test
        for test in vars(test_layering).values()
        if inspect.isfunction(test) and list(inspect.signature(test).parameters) == ["source"]
        and test.__name__.startswith("test_")
    ]  # fmt: skip
    assert len(found) >= 6
    for test in found:
        test(Path(module.__file__))


def test_every_file_that_is_named_is_there():
    named = set(re.findall(r"`((?:icl_jax|experiments|tests)/[\w./]+)`", RECIPES))
    named = {path for path in named if "NAME" not in path and "/OP/" not in path}
    assert len(named) > 20
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert not missing


def test_a_family_is_one_file_its_golden_numbers_and_a_name_in_the_readme(
    put, tmp_path, monkeypatch
):
    put("icl_jax.interop.families", "families", "dummy")
    made = make_tiny("dummy", tmp_path / "model", jax.random.key(0))
    again = load(tmp_path / "model")
    assert again.family == "dummy"
    for mine, theirs in zip(*map(jax.tree.leaves, (made.params, again.params)), strict=True):
        np.testing.assert_array_equal(mine, theirs)

    # transformers' numbers for it are those of Mistral, which it is.
    with pytest.raises(AssertionError):
        test_parity.test_no_family_is_left_out()
    golden = tmp_path / "golden" / "dummy"
    shutil.copytree(test_parity.GOLDEN / "mistral", golden)
    config = json.loads((golden / "config.json").read_text())
    config |= {"architectures": ["DummyForCausalLM"], "model_type": "dummy"}
    (golden / "config.json").write_text(json.dumps(config))
    for tests in (test_parity, test_exactness):
        monkeypatch.setattr(tests, "GOLDEN", golden.parent)
    monkeypatch.setattr(test_parity, "FAMILIES", sorted([*test_parity.FAMILIES, "dummy"]))
    test_parity.test_no_family_is_left_out()
    test_parity.test_logits_are_those_of_transformers("dummy", "float64")
    test_exactness.test_the_logits_of_all_kept_positions("dummy", "float32", 1e-5)

    with pytest.raises(AssertionError):
        test_registry.test_the_readmes_table_names_every_family_and_no_other()
    head = "| family | |\n|---|---|\n| "
    readme = test_registry.README.read_text().replace(head, f"{head}Dummy, ", 1)
    (tmp_path / "README.md").write_text(readme)
    monkeypatch.setattr(test_registry, "README", tmp_path / "README.md")
    monkeypatch.setitem(test_registry.README_NAMES, "Dummy", ("dummy",))
    test_registry.test_the_readmes_table_names_every_family_and_no_other()
    for name in ("DummyForCausalLM", "dummy"):
        test_registry.test_every_architecture_and_model_type_finds_its_family("dummy", name)
    test_registry.test_a_tiny_configuration_is_of_its_family_by_either_name("dummy")
    test_registry.test_no_name_is_of_two_families()
    monkeypatch.setattr(test_family_options, "GOLDEN", golden.parent)
    test_family_options.test_another_option_is_another_model("dummy", "rms_norm_eps", 0.1)


def with_layer(name, module, made):
    """``config.py`` with the three lines of the recipe, as a module."""
    text = Path(designs.__file__).read_text()
    for old, new in (
        ('LayerName = Literal["attention",', f'LayerName = Literal["{name}", "attention",'),
        ('LAYERS: tuple[LayerName, ...] = (', f'LAYERS: tuple[LayerName, ...] = ("{name}", '),
        (
            "    assert_never(config.layer)",
            f'    if config.layer == "{name}":\n        return {made}()\n'
            "    assert_never(config.layer)",
        ),
        (
            "from icl_jax.blocks.recurrent",
            f"from {module} import {made}\nfrom icl_jax.blocks.recurrent",
        ),
    ):  # fmt: skip
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    found = ModuleType("icl_jax.blocks.config")
    sys.modules[found.__name__] = found  # Where dataclasses look their annotations up.
    try:
        exec(compile(text, designs.__file__, "exec"), vars(found))
    finally:
        sys.modules[found.__name__] = designs
    return found


def test_a_layer_is_a_class_with_a_call_its_name_its_axes_and_its_line(put, monkeypatch):
    module = put("icl_jax.blocks", "blocks", "running_mean")
    keeps_the_arrows(monkeypatch, module, "blocks")

    edited = with_layer("running_mean", module.__name__, "RunningMean")
    flags = ["x", "--layer=running_mean", "--wiring=pre_norm", "--width=8", "--depth=2"]
    with pytest.raises(UsageError, match="--layer=running_mean"):
        parse(designs.StackConfig, flags)
    stack = edited.build_stack(parse(edited.StackConfig, flags).config)
    assert isinstance(stack.blocks[1].contextual_layer, module.RunningMean)

    params = stack.init(jax.random.key(0), jnp.zeros((6, 3)))["params"]
    blend = ("layers_0_0", "contextual_layer", "blend")
    assert test_table.specs_of(params)[blend] == PartitionSpec()
    monkeypatch.setitem(sharded.PARAMETERS, "contextual_layer/blend", "DH")
    assert test_table.specs_of(params)[blend] == PartitionSpec(None, None, "model")
    public(monkeypatch, module, "RunningMean", "The blocks that read it")

    monkeypatch.setitem(helpers.LAYERS, "running_mean", module.RunningMean())
    every = test_layers.TestEveryLayer()
    every.test_absent_is_removed("running_mean")
    every.test_a_causal_layer_reads_backwards_only("running_mean")
    every.test_prefixes_equal_one_run_per_prefix("running_mean")
    every.test_float32_parameters_compute_in_the_dtype_of_the_input("running_mean")
    test_layers.test_a_mask_of_numbers_is_refused_by_every_layer("running_mean")
    case = helpers.Case(
        layer="running_mean", mlp="dense_bias", wiring="pre_norm", norm="layer", depth=2,
        length=6, kept=(0, 5), seed=0, dtype="float64",
    )  # fmt: skip
    exact = test_bank.TestPatchedEqualsFull.test_in_float32_and_float64.hypothesis.inner_test
    exact(test_bank.TestPatchedEqualsFull(), case, "closed", "auto")

    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)
    tokens_TC = jax.random.normal(jax.random.key(1), (6, 3), jnp.float64)
    stream_TD = stack.apply({"params": params}, tokens_TC, method="embed")
    layers = functional(stack, params)
    bank = stack_patches(layers, stream_TD, jnp.array([5], jnp.int32))
    full_TD = forward(layers, stream_TD)
    np.testing.assert_allclose(patched_forward(layers, stream_TD, bank), full_TD[5:], rtol=1e-10)


def test_a_measure_is_a_function_its_description_and_its_line(put, monkeypatch):
    module = put("icl_jax.measures", "measures", "strangeness")
    keeps_the_arrows(monkeypatch, module, "measures")
    first_BQ, second_BQ, null_BQ = (
        jax.random.normal(key, (8, 5), jnp.float64)
        for key in jax.random.split(jax.random.key(0), 3)
    )
    first_BQ = second_BQ + 0.1 * first_BQ

    # The property, an oracle, and its edge cases.
    assert module.strangeness(first_BQ, first_BQ) == 0
    np.testing.assert_allclose(module.strangeness(first_BQ, -first_BQ), 1.0, rtol=1e-12)
    pairs = [(abs(a - b), abs(a) + abs(b)) for a, b in zip(first_BQ[0], second_BQ[0], strict=True)]
    want = sum(float(apart) for apart, _ in pairs) / sum(float(sizes) for _, sizes in pairs)
    np.testing.assert_allclose(module.strangeness(first_BQ[0], second_BQ[0]), want, rtol=1e-12)
    assert jnp.isnan(module.strangeness(jnp.zeros(3), jnp.zeros(3)))
    with pytest.raises(ValueError, match="strangeness: .*shape"):
        module.strangeness(first_BQ, first_BQ[:2])

    value = {"strangeness": jax.vmap(module.strangeness)(first_BQ, second_BQ)}
    nulls = {"random": {"strangeness": jax.vmap(module.strangeness)(null_BQ, second_BQ)}}
    with pytest.raises(ValueError, match="with_nulls: strangeness: not among"):
        comparisons.with_nulls(value, nulls)
    described = comparisons.Measure("strangeness (shares)", larger_is_closer=False)
    monkeypatch.setitem(comparisons.MEASURES, "strangeness", described)
    found = comparisons.compared(jax.random.key(0), comparisons.with_nulls(value, nulls))
    assert comparisons.verdict(found).startswith("Closer than every null: strangeness (shares)")
    assert comparisons.table(found, "").rows[0][0] == "strangeness (shares)"
    public(monkeypatch, module, "strangeness", "How two of them compare")


def test_an_experiment_is_a_file_of_a_room_its_name_and_two_rows(put, tmp_path, monkeypatch):
    path = DUMMIES / "regression" / "dummy.py"
    monkeypatch.setitem(EXPERIMENTS, "dummy", "experiments.regression.dummy")
    for module in (experiments, listing, test_rooms):
        monkeypatch.setattr(module, "source", lambda name: path)
    module = put("experiments.regression", "regression", "dummy")
    monkeypatch.delitem(sys.modules, "experiments.dummy", raising=False)

    # As many of them as the test asks for.
    monkeypatch.setattr(test_counts, "programs", lambda: dict.fromkeys(range(11), module))
    test_counts.test_no_experiment_takes_a_count_that_it_cannot_run()
    test_rooms.test_an_experiment_is_named_once_and_asked_for_by_that_name("dummy")
    test_rooms.test_an_experiment_asks_and_its_commands_fit_a_terminal("dummy")
    test_rooms.test_every_section_of_a_report_says_what_was_found(path)
    monkeypatch.setattr(test_rooms, "ROOT", DUMMIES)
    test_rooms.test_rooms_import_themselves_and_the_tools_and_the_tools_no_room(path)
    sys.modules.pop("experiments.dummy", None)

    with pytest.raises(AssertionError):
        test_readme.test_every_experiment_of_the_table_exists()
    row = "| `training` |"
    readme = test_readme.README.replace(row, f"| `dummy` | {listing.question('dummy')} |\n{row}", 1)
    monkeypatch.setattr(test_readme, "README", readme)
    test_readme.test_every_experiment_of_the_table_exists()
    with pytest.raises(AssertionError):
        test_reports.test_every_experiment_has_a_report_to_look_at()
    monkeypatch.setitem(reports.QUICK, "dummy", ["--quick"])
    monkeypatch.setattr(test_reports, "COMMANDS", reports.commands(Path("folder")))
    test_reports.test_every_experiment_has_a_report_to_look_at()
    test_reports.test_its_command_can_be_typed("dummy")

    with pytest.raises(AssertionError):
        test_mesh.test_every_experiment_is_run_or_named_with_a_reason()
    runs = small.experiments
    quick = module, module.Config(num_tries=2)
    monkeypatch.setattr(small, "experiments", lambda folder: {**runs(folder), "dummy": quick})
    monkeypatch.setattr(small, "NAMES", tuple(small.experiments(tmp_path)))
    test_mesh.test_every_experiment_is_run_or_named_with_a_reason()
    small.run("dummy", tmp_path, tmp_path / "one")
    other = test_mesh.unmeasured(tmp_path / "one", tmp_path / "again")
    small.run("dummy", tmp_path, other)
    (name,) = (str(path.relative_to(other)) for path in test_mesh.files(other))
    arrays = [test_mesh.arrays(folder, name) for folder in (tmp_path / "one", other)]
    test_mesh.assert_equal(name, *arrays)

    workdir = tmp_path / "run"
    command = ["dummy", f"--workdir={workdir}", "--quick", "--number=3"]
    launch(module.Config, module.run, module.__doc__, argv=command)
    summary = json.loads((workdir / "summary.json").read_text())
    assert summary["num_draws"] == 100 and 0 < summary["errors"]["mean"] < summary["errors"]["one"]
    page = (workdir / "report.html").read_text()
    assert "The mean, off by" in page and "is better than one draw" in page and "<svg" in page
    assert f"experiments.dummy --workdir={workdir} --quick --number=3.0" in page
    monkeypatch.setattr(module, "measure", None)  # The report again, of what is there.
    launch(module.Config, module.run, module.__doc__, argv=command)
    assert json.loads((workdir / "summary.json").read_text()) == summary


def test_a_kernel_is_a_file_and_its_name(put, monkeypatch):
    dummy = put("icl_jax.kernels.product", "kernels", "by_column")
    keeps_the_arrows(monkeypatch, dummy, "kernels")
    monkeypatch.setitem(api._KINDS, "by_column", dummy.product)
    monkeypatch.setattr(api, "IMPLEMENTATIONS", tuple(api._KINDS))

    # The tests of another implementation, asked for this one: numbers, batches, derivatives.
    def product(rows, kernel_DH, *, implementation):
        name = "by_column" if implementation == "few_rows" else implementation
        return api.product(rows, kernel_DH, implementation=name)

    assert few_rows.product is not dummy.product
    monkeypatch.setattr(test_product, "product", product)
    for dtype in ("float64", "bfloat16"):
        test_product.test_it_is_numpys_product(2, dtype)
    test_product.test_derivatives_are_those_of_the_plain_product()
    x, kernel = test_product.operands(12)
    got = jax.vmap(test_product.in_pieces, in_axes=(0, None))(x[:, None], kernel)
    helpers.assert_close(got[:, 0], x @ kernel, test_product.WIDTH)

    def run(implementation):
        def loss(rows, kernel):
            return jnp.sum(jnp.sin(api.product(rows, kernel, implementation=implementation)))

        return jax.tree.leaves(jax.value_and_grad(loss, argnums=(0, 1))(*few))

    few = x[:3, :4], kernel[:4, :5]
    for mine, theirs in zip(run("by_column"), run("reference"), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-12)


@pytest.mark.parametrize(
    "kind", ["family of models", "contextual layer", "measure", "kernel", "experiment"]
)
def test_every_kind_has_a_recipe_with_its_tests(kind):
    recipe = re.search(rf"^## An? {kind}$(.*?)(?=^## |\Z)", RECIPES, re.MULTILINE | re.DOTALL)[1]
    assert "Must pass: `tests/" in recipe and "\n1. " in recipe
