"""Static patches of a stack: what they fit they fit, in every wiring, whichever way sums come."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from icl_jax.blocks.block import Block
from icl_jax.patches.calibration import Queries
from icl_jax.patches.fit import Fit
from icl_jax.patches.ladder import fit_static
from icl_jax.patches.ladder_sums import solve_static, static_sums
from icl_jax.patches.low_rank import as_matrix
from icl_jax.patches.static import cheap_patch, merge_sums, query_sums
from icl_jax.patches.static_patch import (
    StaticPatch,
    combine_static,
    ranked,
    scale_static,
    static_forward,
)
from icl_jax.stack.run import forward
from tests.helpers import LAYERS, MLPS, WIDTH, eps, make_model, normal, relative_error

#: No norm on the MLP's output, which a down kernel can serve to first order only.
PLAIN = ("skip", "pre_norm", "post_norm", "parallel")
NORMED = ("sandwich", "reordered_norm")


def model(wiring="pre_norm", mlp="gated", depth=2, norm="rms", layer="attention", dtype="float32"):
    made = make_model(Block(LAYERS[layer], MLPS[mlp], wiring, norm), depth)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), made.layers.params)
    return dataclasses.replace(made.layers, params=params)


def queries(count, context=5, kept=1, dtype="float32", anchored=False, seed=0, first=0):
    """Queries (``kept`` tokens each) behind one context; their first token is in front of it."""
    lead_1D = normal(seed + 5, 1, WIDTH, dtype=dtype)[:anchored]
    context_ND = normal(seed, context, WIDTH, dtype=dtype)
    asked_BKD = normal(seed + 9, first + count, kept, WIDTH, dtype=dtype)[first:]

    def stream(*parts):
        whole = [jnp.broadcast_to(one, (count, *one.shape[-2:])) for one in parts]
        return jnp.concatenate(whole, axis=1)

    rows_K = [0] * anchored + list(range(anchored + context, anchored + context + kept))
    fitted_K = [False] * anchored + [True] * kept
    return Queries(
        stream(lead_1D, context_ND, asked_BKD),
        stream(lead_1D, asked_BKD),
        jnp.tile(jnp.array(rows_K, jnp.int32), (count, 1)),
        jnp.tile(jnp.array(fitted_K), (count, 1)),
        anchored=anchored,
    )


def gap(layers, asked, patches):
    """The error of the fitted rows' outputs, in units of the error without a patch."""
    full_BTD = jax.vmap(lambda stream_TD: forward(layers, stream_TD))(asked.full_BTD)
    want = jnp.take_along_axis(full_BTD, asked.rows_BK[..., None], axis=1)
    alone = jax.vmap(lambda stream_TD: forward(layers, stream_TD))(asked.kept_BKD)
    got = jax.vmap(lambda stream_TD: static_forward(layers, stream_TD, patches))(asked.kept_BKD)
    fitted = asked.fitted_BK
    return relative_error(got[fitted], want[fitted]) / relative_error(alone[fitted], want[fitted])


@pytest.mark.wide(8)
@pytest.mark.parametrize("wiring", PLAIN)
@pytest.mark.parametrize("mlp", ["gated", "dense_bias"])
def test_the_exact_patch_of_a_stack_does_what_the_context_does_to_its_queries(wiring, mlp):
    layers, asked = model(wiring, mlp, norm="rms" if wiring != "post_norm" else "layer"), queries(4)
    assert gap(layers, asked, fit_static(layers, asked, Fit("exact"))) < 1e-4
    if wiring != "parallel":
        # One side alone leaves the other's part; of a rank too low a part of both.
        assert gap(layers, asked, fit_static(layers, asked, Fit("exact", side="input"))) > 1e-2
    assert gap(layers, asked, fit_static(layers, asked, Fit("exact", rank=2))) > 1e-3


@pytest.mark.slow
def test_for_one_query_it_is_exact_at_rank_one():
    layers, asked = model(), queries(1)
    patches = fit_static(layers, asked, Fit("exact"))
    assert ranked(patches) == {"input": 1, "down": 1}
    assert gap(layers, asked, patches) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["state_space", "linear_attention", "attention_bidirectional"])
def test_nothing_in_it_is_of_attention(layer):
    layers, asked = model(layer=layer), queries(3)
    assert gap(layers, asked, fit_static(layers, asked, Fit("exact"))) < 1e-4


@pytest.mark.wide(2)
@pytest.mark.parametrize("wiring", NORMED)
def test_behind_a_norm_on_the_output_most_of_it_is_kept(wiring):
    layers, asked = model(wiring), queries(4)
    both = gap(layers, asked, fit_static(layers, asked, Fit("exact")))
    assert both < 0.9 * gap(layers, asked, fit_static(layers, asked, Fit("exact", side="input")))


@pytest.mark.wide(2)
@pytest.mark.parametrize("rung", ["covariance", "ridge"])
def test_solutions_from_sums_close_a_part_of_the_gap_of_more_queries_than_dimensions(rung):
    layers, asked = model(dtype="float64"), queries(24, dtype="float64")
    ordinary = static_sums(layers, queries(64, dtype="float64", seed=70))
    patches = fit_static(layers, asked, Fit(rung), weight=1e-3, ordinary=ordinary)
    assert gap(layers, asked, patches) < 0.9


def outputs(layers, asked, patches):
    """What the fitted tokens have with everything and, patched, without."""
    full_BTD = jax.vmap(lambda stream_TD: forward(layers, stream_TD))(asked.full_BTD)
    got = jax.vmap(lambda stream_TD: static_forward(layers, stream_TD, patches))(asked.kept_BKD)
    return full_BTD[:, -1], got[:, -1]


def test_a_thought_vector_takes_the_mean_change_and_nothing_else():
    layers, asked = model(depth=3, dtype="float64"), queries(24, dtype="float64")
    want_BD, got_BD = outputs(layers, asked, fit_static(layers, asked, Fit("thought")))
    off_BD = got_BD - want_BD
    assert jnp.linalg.norm(off_BD.mean(axis=0)) < 1e-12 * jnp.linalg.norm(off_BD)


@pytest.mark.slow
def test_the_cheap_form_is_the_sum_of_the_token_patches_in_every_layer():
    layers, asked = model(depth=1, dtype="float64"), queries(24, dtype="float64")
    block, params = layers[0]
    kept, full = (
        jax.vmap(lambda stream_TD: block.contextual(params, stream_TD).mlp_input_TD[-1])(each)
        for each in (asked.kept_BKD, asked.full_BTD)
    )
    want_DD = cheap_patch(query_sums(kept, full - kept))
    got = fit_static(layers, asked, Fit("cheap"))[0]
    assert relative_error(as_matrix(got.input), want_DD) < 1e-12


def test_a_small_ridge_is_exact_for_few_queries_and_a_rank_is_the_best_of_it():
    layers, asked = model(dtype="float64"), queries(4, dtype="float64")
    gaps = [
        gap(layers, asked, fit_static(layers, asked, Fit(rank=rank), weight=1e-12))
        for rank in (1, 2, 4)
    ]
    assert gaps[2] < 1e-6 < gaps[1] < gaps[0]


def test_in_order_repairs_what_earlier_layers_have_left():
    layers, asked = model(depth=4, dtype="float64"), queries(12, dtype="float64")
    found = {
        order: gap(layers, asked, fit_static(layers, asked, Fit(rank=4, order=order), weight=1e-3))
        for order in ("in_order", "at_once")
    }
    # 0.07 and 0.97 are measured: at once, what one layer leaves grows in the next.
    assert found["in_order"] < 0.2 * found["at_once"]


@pytest.mark.slow
def test_one_pass_after_another_over_sums_comes_to_the_patches_in_order():
    layers, asked = model(dtype="float64"), queries(12, dtype="float64")
    want = fit_static(layers, asked, Fit(), weight=1e-2)
    patches, found = None, []
    for _ in range(2 * len(layers)):  # A pass puts one more of two sides of L layers right.
        sums = static_sums(layers, asked, patches=patches)
        patches = solve_static(layers, sums, Fit(), weight=1e-2)
        got, wanted = (
            jnp.concatenate([as_matrix(one).ravel() for p in each for one in (p.input, p.down)])
            for each in (patches, want)
        )
        found.append(relative_error(got, wanted))
    assert found[-1] < 1e-9 < found[0]


def both_halves(asked):
    half = asked.full_BTD.shape[0] // 2
    first = jax.tree.map(lambda leaf: leaf[:half], asked)
    return first, jax.tree.map(lambda leaf: leaf[half:], asked)


@pytest.mark.wide(2)
@pytest.mark.parametrize("anchored", [True, False])
def test_sums_of_batches_add_up_to_those_of_all(anchored):
    layers, asked = model(), queries(16, anchored=anchored)
    whole = solve_static(layers, static_sums(layers, asked), Fit(rank=3))
    parts = merge_sums(*(static_sums(layers, part) for part in both_halves(asked)))
    halves = solve_static(layers, parts, Fit(rank=3))
    once = fit_static(layers, asked, Fit(rank=3, order="at_once"))
    for other in (halves, once):
        for one, two in zip(whole, other, strict=True):
            for side in ("input", "down"):
                want, got = as_matrix(getattr(one, side)), as_matrix(getattr(two, side))
                assert relative_error(got, want) < 1e-4


def test_sums_over_eight_devices_are_those_of_one():
    layers, asked = model(), queries(16)
    mesh = jax.make_mesh((8,), ("queries",), axis_types=(AxisType.Auto,))

    def part(full, kept, rows, fitted):
        sums = static_sums(layers, Queries(full, kept, rows, fitted))
        return jax.lax.psum(sums, "queries")

    fields = (asked.full_BTD, asked.kept_BKD, asked.rows_BK, asked.fitted_BK)
    with jax.set_mesh(mesh):
        spread = jax.jit(jax.shard_map(part, in_specs=P("queries"), out_specs=P()))(*fields)
    got = solve_static(layers, jax.device_get(spread), Fit())
    want = solve_static(layers, static_sums(layers, asked), Fit())
    for one, two in zip(want, got, strict=True):
        for side in ("input", "down"):
            want_DO = as_matrix(getattr(one, side))
            assert relative_error(as_matrix(getattr(two, side)), want_DO) < 1e-5


@pytest.mark.wide(3)
@pytest.mark.parametrize("rung", ["ridge", "exact", "covariance"])
def test_a_token_in_front_of_the_context_is_left_alone(rung):
    layers, asked = model(), queries(6, anchored=True)
    ordinary = static_sums(layers, queries(64, seed=70))
    patches = fit_static(layers, asked, Fit(rung), weight=1e-3, ordinary=ordinary)
    got = static_forward(layers, asked.kept_BKD[0], patches)[0]
    assert relative_error(got, forward(layers, asked.kept_BKD[0])[0]) < 1e-5
    if rung == "exact":
        assert gap(layers, asked, patches) < 1e-4
    free = fit_static(layers, dataclasses.replace(asked, anchored=False), Fit(rung), weight=1e-3,
                      ordinary=ordinary)  # fmt: skip
    moved = static_forward(layers, asked.kept_BKD[0], free)[0]
    assert relative_error(moved, got) > 1e-3


def test_rows_that_are_not_fitted_are_never_read():
    layers, asked = model(), queries(5)
    more = queries(6)
    keep = jnp.arange(6) < 5
    spoilt = dataclasses.replace(
        more,
        full_BTD=jnp.where(keep[:, None, None], more.full_BTD, jnp.nan),
        kept_BKD=jnp.where(keep[:, None, None], more.kept_BKD, 7.0),
        fitted_BK=keep[:, None],
    )
    want, got = (fit_static(layers, each, Fit(), weight=1e-2) for each in (asked, spoilt))
    for one, two in zip(want, got, strict=True):
        assert relative_error(as_matrix(two.down), as_matrix(one.down)) < 1e-4


def test_strength_dials_from_the_plain_model_and_patches_add_up():
    layers, asked = model(), queries(4)
    patches = fit_static(layers, asked, Fit("exact"))
    stream_KD = asked.kept_BKD[0]
    plain = forward(layers, stream_KD)
    np.testing.assert_array_equal(
        static_forward(layers, stream_KD, scale_static(patches, 0.0)), plain
    )
    whole = static_forward(layers, stream_KD, patches)
    halves = combine_static(scale_static(patches, 0.5), scale_static(patches, 0.5))
    assert ranked(halves) == {"input": 8, "down": 8}
    assert relative_error(static_forward(layers, stream_KD, halves), whole) < eps("float32", 600)
    thought = fit_static(layers, asked, Fit("thought"))
    mixed = static_forward(layers, stream_KD, combine_static(patches, scale_static(thought, 0.0)))
    assert relative_error(mixed, whole) < eps("float32", 600)


@pytest.mark.slow
@pytest.mark.parametrize("wiring", NORMED)
def test_a_bias_and_a_down_kernel_go_together_behind_a_norm(wiring):
    layers, asked = model(wiring, depth=1), queries(2)
    down = fit_static(layers, asked, Fit("ridge"))
    thought = fit_static(layers, asked, Fit("thought"))
    both = static_forward(layers, asked.kept_BKD[0], combine_static(down, thought))
    want = static_forward(layers, asked.kept_BKD[0], down) + thought[0].bias_D[None]
    assert relative_error(both, want) < eps("float32", 60)


def test_experts_share_the_input_side_and_refuse_the_down_kernel():
    layers, asked = model(mlp="experts"), queries(4)
    assert gap(layers, asked, fit_static(layers, asked, Fit("exact", side="input"))) < 1
    with pytest.raises(ValueError, match=r"block 0 of segment 0 has experts.*Use side='input'"):
        fit_static(layers, asked, Fit())
    fit_static(layers, asked, Fit("thought"))


def test_what_cannot_be_is_refused_with_the_reason():
    asked = queries(4)
    with pytest.raises(ValueError, match="side='input' changes nothing in block 0.*side='down'"):
        fit_static(model("parallel"), asked, Fit(side="input"))
    with pytest.raises(ValueError, match="has a layer norm on its MLP's output"):
        fit_static(model("sandwich", norm="layer"), asked, Fit())
    with pytest.raises(ValueError, match="needs ordinary, the sums of ordinary text"):
        fit_static(model(), asked, Fit("covariance"))
    with pytest.raises(ValueError, match=f"serves up to D={WIDTH} rows, got {WIDTH + 1}"):
        fit_static(model(), queries(WIDTH + 1), Fit("exact"))
    with pytest.raises(ValueError, match="rung='exact' is fitted in order"):
        fit_static(model(), asked, Fit("exact", order="at_once"))
    with pytest.raises(ValueError, match="rung='thought' is fitted layer by layer"):
        solve_static(model(), static_sums(model(), asked), Fit("thought"))
    with pytest.raises(ValueError, match="inside jit nobody can"):
        layers = model()
        jax.jit(lambda one: fit_static(layers, one, Fit("exact")))(asked)
    with pytest.raises(ValueError, match=r"queries.fitted_BK must have shape \(4, 1\)"):
        fit_static(model(), dataclasses.replace(asked, fitted_BK=asked.fitted_BK[:3]), Fit())
    nothing = dataclasses.replace(asked, fitted_BK=jnp.zeros((4, 1), bool))
    with pytest.raises(ValueError, match="False everywhere: there is no row to fit"):
        fit_static(model(), nothing, Fit())
    with pytest.raises(ValueError, match="rank must be an integer of at least 1, got 0"):
        Fit(rank=0)
    with pytest.raises(ValueError, match="side must be one of 'input', 'down', 'both'"):
        Fit(side="up")
    patches = fit_static(model(), asked, Fit())
    with pytest.raises(ValueError, match="Combine patches of one model"):
        combine_static(patches, fit_static(model(depth=3), asked, Fit()))
    with pytest.raises(ValueError, match="given holds one tree for each of 2 layers"):
        static_forward(model(depth=3), asked.kept_BKD[0], patches)


def test_inside_jit_it_is_the_same_and_one_program_at_any_depth():
    asked = queries(4)
    sizes = []
    for depth in (2, 5):
        layers = model(depth=depth)
        run = jax.make_jaxpr(lambda one, layers=layers: fit_static(layers, one, Fit(rank=2)))
        sizes.append(len(str(run(asked)).splitlines()))
    assert sizes[0] == sizes[1]
    layers = model()
    got = jax.jit(lambda one: fit_static(layers, one, Fit(rank=2)))(asked)
    want = fit_static(layers, asked, Fit(rank=2))
    assert relative_error(as_matrix(got[1].down), as_matrix(want[1].down)) < 1e-4


def test_patches_show_themselves_in_a_line():
    patches = fit_static(model(), queries(2), Fit("exact"))
    assert "StaticPatch" in repr(patches) and "input=LowRank" in repr(patches[0])
    assert isinstance(patches[0], StaticPatch)
