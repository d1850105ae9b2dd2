"""Plans: what is read of a compiled program, and what is said of one that does not fit."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console

from experiments import EXPERIMENTS
from experiments.tools.conduct import provenance
from experiments.tools.flags import UsageError, parse
from icl_jax.sharding import make_mesh
from launch import plan, plan_table
from launch.chips import CHIPS, chip_of, chip_of_kind, devices_of
from launch.costs import collectives, flops, traffic
from launch.hlo import Program, Shape
from launch.programs import PROGRAMS, Sizes
from launch.shapes import MODELS, model_of, weights_of

MESH = {"data": 4, "model": 2}


def compiled(function, *arguments, mesh=None):
    with jax.set_mesh(make_mesh(mesh or {"data": 1})):
        return jax.jit(function).lower(*arguments).compile()


def arrays(*shapes):
    return [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]


def test_products_in_a_loop_count_as_often_as_it_turns():
    def layers(x_TD, kernels_LDD):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x_TD, kernels_LDD)[0]

    text = compiled(layers, *arrays((64, 32), (5, 32, 32))).as_text()
    assert flops(Program(text)) == 5 * 2 * 64 * 32 * 32
    twice = compiled(layers, *arrays((64, 32), (10, 32, 32))).as_text()
    assert flops(Program(twice)) == 2 * flops(Program(text))


def test_a_batched_product_has_its_contraction_counted_once():
    def products(x_BTD, y_BDH):
        return jnp.einsum("btd,bdh->bth", x_BTD, y_BDH)

    text = compiled(products, *arrays((3, 40, 32), (3, 32, 48))).as_text()
    assert flops(Program(text)) == 3 * 2 * 40 * 32 * 48


#: As the TPU's compiler writes a product over a batch, and one of heads.
CONVOLUTIONS = """HloModule m, num_partitions=4

ENTRY %main (a: bf16[2,8,16], b: bf16[16,4,6]) -> bf16[2,8,4,6] {
  %a = bf16[2,8,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = bf16[16,4,6]{2,1,0:T(8,128)(2,1)} parameter(1)
  %c.1 = bf16[2,8,4,6]{3,2,1,0} convolution(%a, %b), window={size=1x4 pad=0_0x3_3 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f
  %k = bf16[2,8,4,6]{3,2,1,0} custom-call(%c.1), backend_config={"cost_estimate":{"flops":"1000"}}
  ROOT %r = bf16[2,8,4,6]{3,2,1,0:S(1)} all-reduce(%c.1), replica_groups=[2,2]<=[4], to_apply=%add
}
"""  # noqa: E501


def _goes_on(name, target):
    """A fusion of a chain; the collective stands in each, and the target says where it is."""
    gather = (
        "  %g = bf16[32,8]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4], "
        'dimensions={0}, frontend_attributes={chain_id="0"}\n'
    )
    mark = f'custom-call(%g), custom_call_target="{target}"' if target else "copy(%g)"
    return (
        f"%{name} (p: bf16[8,8]) -> bf16[32,8] {{\n  %p = bf16[8,8]{{1,0}} parameter(0)\n{gather}"
        f"  ROOT %r = bf16[32,8]{{1,0}} {mark}\n}}\n\n"
    )


#: As the TPU's compiler writes a gather that goes on beside products; and one without a chain.
BESIDE = (
    "HloModule m, num_partitions=4\n\n"
    + _goes_on("begins", "AsyncCollectiveStart")
    + _goes_on("meanwhile", "")
    + _goes_on("ends", "AsyncCollectiveDone")
    + _goes_on("whole", "").replace(', frontend_attributes={chain_id="0"}', "")
    + """ENTRY %main (a: bf16[8,8]) -> bf16[32,8] {
  %a = bf16[8,8]{1,0} parameter(0)
  %f.1 = bf16[32,8]{1,0} fusion(%a), kind=kCustom, calls=%begins
  %f.2 = bf16[32,8]{1,0} fusion(%a), kind=kCustom, calls=%meanwhile
  %f.3 = bf16[32,8]{1,0} fusion(%a), kind=kCustom, calls=%whole
  ROOT %r = bf16[32,8]{1,0} fusion(%a), kind=kCustom, calls=%ends
}
"""
)


def test_a_message_beside_products_counts_where_it_starts():
    (gather,) = collectives(Program(BESIDE))
    assert str(gather) == "2 x all-gather of bf16[32,8] among 4"
    assert gather.sent == 3 / 4 * 32 * 8 * 2


def test_products_written_as_convolutions_count_what_meets():
    text = CONVOLUTIONS.replace("bf16[2,8,16]", "bf16[2,8,16,1]").replace(
        "bf16[16,4,6]", "bf16[4,6,16,1]"
    )
    read = Program(text)
    assert flops(read) == 2 * 2 * 8 * 4 * 6 * 16 + 1000
    (message,) = collectives(read)
    assert str(message) == "1 x all-reduce of bf16[2,8,4,6] among 2"
    assert message.sent == message.nbytes == 2 * 2 * 8 * 4 * 6
    assert Shape("bf16", (3, 5)).nbytes == 30


def test_messages_in_a_loop_are_counted_and_their_group_is_read():
    def layers(x_BD, kernels_LDD):
        def step(x_BD, kernel_DD):
            wide = jax.lax.with_sharding_constraint(x_BD @ kernel_DD, jax.P("data", "model"))
            return jax.lax.with_sharding_constraint(jnp.tanh(wide), jax.P("data")), None

        return jax.lax.scan(step, x_BD, kernels_LDD)[0]

    mesh = make_mesh(MESH)
    x, kernels = arrays((8, 32), (3, 32, 32))
    spec = jax.NamedSharding(mesh, jax.P(None, None, "model"))
    kernels = jax.ShapeDtypeStruct(kernels.shape, kernels.dtype, sharding=spec)
    found = collectives(Program(compiled(layers, x, kernels, mesh=MESH).as_text()))
    assert [str(one) for one in found] == ["3 x all-gather of f32[2,32] among 2"]
    assert found[0].sent == 2 * 32 * 4 / 2


def test_a_slice_of_a_stack_is_read_and_not_the_stack():
    def layers(x_TD, kernels_LDD):
        return jax.lax.scan(lambda x, kernel: (x @ kernel, None), x_TD, kernels_LDD)[0]

    short, long = (
        traffic(Program(compiled(layers, *arrays((8, 64), (n, 64, 64))).as_text())) for n in (8, 64)
    )
    # Eight times the layers move eight times as much; whole stacks would be 64 times as much.
    assert long < 9 * short


def test_the_compilers_word_for_too_much_is_read():
    text = "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
    assert plan._needed(text + "hbm. Used 23.50G of 15.75G hbm. Exceeded") == int(23.5 * 2**30)
    text = (
        "RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory "
        "required for HLO temporaries (38.15G) exceeds available HBM (15.75G)."
    )
    assert plan._needed(text) == int(38.15 * 2**30)
    assert plan._needed("INVALID_ARGUMENT: something else") is None
    # What a kernel has on the chip itself is another memory.
    vmem = "Ran out of memory in memory space vmem. Used 20.50M of 16.00M vmem."
    assert plan._needed(vmem) is None
    assert plan._needed(f"{vmem} Used 17.00G of 15.75G hbm.") == 17 * 2**30
    assert plan._needed("out of memory: (20.5M) exceeds available VMEM (16M)") is None


def test_a_plan_that_does_not_fit_says_what_to_change():
    sizes = Sizes(prompts=4, length=2048)
    big = plan.Plan("training", "v5e:2x2", "data:2,model:2", sizes, False, 20 * 2**30, {})
    text = plan.advice(big)
    assert "'model'" in text and "'data'" in text and "--length=1024" in text and "--remat" in text
    console = rich.console.Console(record=True, width=200)
    plan.show(big, CHIPS["v5e"], 0.0, console)
    assert "does NOT fit. 20 GiB of 16 GiB per chip" in console.export_text()


def test_the_search_tries_other_meshes_remat_shorter_buckets_and_fewer_prompts():
    config = plan.Config(experiment="training", prompts=4, length=2048)
    changes = [change for _, _, change in plan.alternatives(config, "data:2,model:2")]
    assert changes == ["--mesh=data:4", "--mesh=model:4", "--remat", "--length=1024", "--prompts=2"]


def test_chips_without_a_prompt_share_the_positions_of_one():
    def changes(mesh, **options):
        return [c for _, _, c in plan.alternatives(plan.Config(**options), mesh) if "mesh" in c]

    long = {"experiment": "patches", "length": 8192}
    assert changes("data:4", **long) == [
        "--mesh=context:4",
        "--mesh=context:2,model:2",
        "--mesh=model:4",
    ]
    assert changes("model:8", **long, prompts=2)[:2] == [
        "--mesh=data:2,context:4",
        "--mesh=data:2,context:2,model:2",
    ]
    # Texts of a training are drawn on every chip, and a fleet's tasks are on all axes anyway.
    assert changes("data:4", experiment="training") == ["--mesh=model:4"]
    assert changes("data:4", experiment="fleet", prompts=4) == []


def test_a_fleet_is_not_told_to_divide_weights_that_are_whole():
    fleet = plan.Plan("fleet", "v5e:2x2", "data:4", Sizes(prompts=8), False, 20 * 2**30, {})
    assert "model" not in plan.advice(fleet) and "--rates" in plan.advice(fleet)
    config = plan.Config(experiment="fleet", prompts=8, rates=8)
    assert [c for _, _, c in plan.alternatives(config, "data:4")] == ["--rates=4", "--prompts=4"]


def searched(monkeypatch, needed, **options):
    """What a search prints and makes, where ``needed(sizes, axes)`` says GiB; 1 s for 2^11 tokens.

    None of ``needed``: the compiler cannot do it.
    """

    def fake(program, sizes, topology, mesh):
        gibibytes = needed(sizes, plan.mesh_axes(mesh))
        if gibibytes is None:
            raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: not yet")
        nbytes = int(gibibytes * 2**30)
        seconds = sizes.prompts * sizes.length / 2**11 * (1.3 if sizes.remat else 1.0)
        parts = {"arguments": nbytes}
        fits = nbytes <= CHIPS["v5e"].capacity
        numbers = {"compute": seconds, "network": 9.0 * ("model" in mesh)}
        return plan.Plan(program, topology, mesh, sizes, fits, nbytes, parts, **numbers)

    monkeypatch.setattr(plan, "make_plan", fake)
    config = plan.Config(topology="v5e:2x2", **options)
    console = rich.console.Console(record=True, width=200)
    first = fake(config.program, config.sizes, config.topology, "data:4")
    found = plan.search(config, first, console)
    keys = [plan._key(one.sizes, one.mesh) for one in (first, *found)]
    assert len(set(keys)) == len(keys)
    return console.export_text()


TRAINED = {"experiment": "training", "prompts": 4, "length": 2048}


def test_the_search_goes_on_from_what_lacked_least(monkeypatch):
    def needed(sizes, axes):
        return 40 / axes.get("model", 1) ** 0.5 - 8 * sizes.remat

    shown = searched(monkeypatch, needed, **TRAINED)
    assert "--mesh=model:4 --remat" in shown and "12 GiB of 16 GiB" in shown
    assert "Quickest that fits: --mesh=model:4 --prompts=4 --length=2048 --remat." in shown


def test_what_does_all_that_was_asked_for_comes_before_what_is_quicker_and_does_less(monkeypatch):
    # Everything fits: the plan that was asked for is the quickest, though half of it is quicker.
    shown = searched(monkeypatch, lambda sizes, axes: 1, **TRAINED)
    assert "Quickest that fits: --mesh=data:4 --prompts=4 --length=2048." in shown
    # Only half of it fits.
    shown = searched(monkeypatch, lambda sizes, axes: sizes.length / 100, **TRAINED)
    assert "Quickest that fits: --mesh=data:4 --prompts=4 --length=1024." in shown


def test_a_search_that_finds_nothing_says_so_and_what_cannot_be_compiled_hides_nothing(monkeypatch):
    def needed(sizes, axes):
        return None if "context" in axes else 100

    shown = searched(monkeypatch, needed, experiment="patches", length=8192)
    assert "None of these fits." in shown and "Quickest" not in shown
    assert "not compiled: UNIMPLEMENTED: not yet" in shown and "--mesh=model:4" in shown


def test_the_cost_is_that_of_all_chips_for_as_long_as_it_takes_at_least():
    numbers = {"compute": 1.8, "memory": 0.4}
    sizes = Sizes(prompts=4)
    made = plan.Plan("full", "v5e:2x2", "data:4", sizes, True, 1, {"arguments": 1}, **numbers)
    console = rich.console.Console(record=True, width=200)
    # 1,000 runs of 1.8 s are half an hour, on four chips at 1.20 an hour.
    plan.show(made, CHIPS["v5e"], 1.20, console)
    assert "at least 2.4 " in console.export_text(clear=False)
    plan.show(made, CHIPS["v5e"], 0.0, console)
    assert console.export_text().count("cost of 1,000 runs") == 1


def test_what_cannot_be_planned_is_refused_with_what_to_write():
    for text in ("v5e", "v9:2x2", "v5e:2x2x1", "v5e:ax2"):
        with pytest.raises(UsageError, match="--topology="):
            chip_of(text)
    with pytest.raises(UsageError, match="experiment must be one of full, patches"):
        parse(plan.Config, ["plan", "--experiment=nothing"])
    with pytest.raises(UsageError, match=r"real \(patches\), got 'garg'. Of another, name the"):
        parse(plan.Config, ["plan", "--experiment=garg"])
    with pytest.raises(UsageError, match="prompts must be 1 with prefixes, .* got 4"):
        parse(plan.Config, ["plan", "--experiment=prefixes", "--prompts=4"])
    with pytest.raises(UsageError, match="--model=nothing: must be one of gemma-3-1b"):
        model_of("nothing")
    assert plan.Config(experiment="experiments.checkpoint").program == "patches"


def test_the_page_names_every_experiment_that_can_be_planned():
    (told,) = [
        line for line in plan_table.PAGE.read_text().splitlines() if "in one of them:" in line
    ]
    named = told.partition("in one of them:")[2].partition(". ")[0]
    assert set(re.findall("`([a-z_]+)`", named)) == set(plan.OF_EXPERIMENTS)
    assert plan.OF_EXPERIMENTS.keys() <= EXPERIMENTS.keys()
    assert set(plan.OF_EXPERIMENTS.values()) <= PROGRAMS.keys()


@pytest.mark.parametrize(("name", "billions"), [("gemma-3-1b", 1.0), ("gemma-3-27b", 27.0)])
def test_shapes_are_those_of_the_published_models(name, billions):
    leaves = jax.tree.leaves(weights_of(model_of(name), "bfloat16"))
    count = sum(np.prod(leaf.shape, dtype=np.int64) for leaf in leaves)
    assert abs(count / 1e9 - billions) < 0.05 * billions
    assert not any(isinstance(leaf, jax.Array) for leaf in leaves)


TINY = {
    **MODELS["llama-3.2-1b"],
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.tpu
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_compiles_for_a_slice(program, tmp_path):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install icl_jax[tpu]")
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    sizes = Sizes(model=str(tmp_path), prompts=4, length=1024, kept=8, rates=2, steps=3)
    found = plan.make_plan(program, sizes, "v5e:2x2", "data:2,model:2")
    assert found.fits and found.parts["arguments"] > 0 and found.flops > 0
    assert found.seconds[0] > 0
    # Nothing is said between the tasks of a fleet; layers that are divided add up what they give.
    assert (found.sent == 0) == (program == "fleet")


@pytest.mark.tpu
@pytest.mark.parametrize(
    ("name", "topology"), [("v5e", "v5e:2x2"), ("v5p", "v5p:2x2x1"), ("v6e", "v6e:2x2")]
)
def test_a_device_of_a_slice_is_known_by_its_kind(name, topology):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install icl_jax[tpu]")
    assert chip_of_kind(devices_of(topology)[0].device_kind) == CHIPS[name]


@pytest.mark.tpu
def test_what_does_not_fit_is_told_by_the_compiler(tmp_path):
    pytest.importorskip("libtpu", reason="libtpu is not installed: pip install icl_jax[tpu]")
    (tmp_path / "config.json").write_text(json.dumps({**TINY, "vocab_size": 8_000_000}))
    sizes = Sizes(model=str(tmp_path), prompts=4, length=1024, kept=1024, dtype="float32")
    found = plan.make_plan("full", sizes, "v5e:2x2", "data:4")
    assert not found.fits and found.needed > CHIPS["v5e"].capacity


def test_a_plan_says_what_it_was_made_with_and_the_table_how_many_say_so():
    noted = plan.made_with()
    assert list(noted) == ["commit", "jax", "jaxlib", "libtpu"]
    assert noted["jax"] == jax.__version__ and noted["commit"] == provenance()["commit"]
    now, old = {"made_with": {"commit": "1a2b", "jax": "0.10.2"}}, {}
    assert plan.compilers([now, old, old]) == (
        "Compiled with commit 1a2b, jax 0.10.2 (1 of 3); versions that were not noted (2 of 3)."
    )


def test_the_json_of_a_plan_that_does_not_fit_has_it_too(monkeypatch, tmp_path):
    def refuse(call, mesh):
        raise jax.errors.JaxRuntimeError("Ran out of memory. Used 23.50G of 15.75G hbm.")

    monkeypatch.setattr(plan, "devices_of", lambda topology: jax.devices()[:4])
    monkeypatch.setattr(plan, "compile_and_read", refuse)
    monkeypatch.setitem(plan.PROGRAMS, "full", lambda sizes, mesh: None)
    flags = ["--experiment=full", "--topology=v5e:2x2", f"--json={tmp_path / 'plan.json'}"]
    assert plan.main(["plan", *flags]) == plan.DOES_NOT_FIT
    (told,) = json.loads((tmp_path / "plan.json").read_text())
    assert told["made_with"] == plan.made_with() and not told["fits"]


def test_the_table_of_plans_is_what_the_compiler_said():
    plans = json.loads(plan_table.PLANS.read_text())
    page = plan_table.PAGE.read_text()
    shown = page.partition(plan_table.BEGIN)[2].partition(plan_table.END)[0].strip()
    assert shown == plan_table.table(plans)
    for one in plans:
        assert sum(one["parts"].values()) == one["needed"] or not one["fits"]
