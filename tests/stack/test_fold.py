"""One walk over the layers: it is the loop over them, and its program does not grow with them."""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given as hypothesis_given
from hypothesis import strategies as st

from icl_jax.blocks.block import Block
from icl_jax.blocks.feedforward import Gated
from icl_jax.blocks.functional import cast, functional
from icl_jax.blocks.rotary import Rotary
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.stack import Stack, repeat
from icl_jax.patches.extraction import closed_step, patched_forward, stack_patches
from icl_jax.stack.block import apply_block
from icl_jax.stack.fold import fold
from icl_jax.stack.layers import stack_layers
from icl_jax.stack.run import forward
from tests.helpers import (
    LAYERS,
    MLPS,
    WIDTH,
    assert_close,
    assert_trees_close,
    counted,
    make_model,
    normal,
    random_params,
    relative_error,
)

PATTERNS = ("AAAA", "AABAABA", "ABCA", "A")


@dataclass(frozen=True)
class Scaled:
    """A layer with a number of its own, the same for all of its kind."""

    factor: float


def layers_of(names):
    kinds = {"A": 1.0, "B": -2.0, "C": 0.5}
    trees = [{"w": normal(layer, 4, 4) / 2} for layer in range(len(names))]
    return stack_layers([Scaled(kinds[name]) for name in names], trees)


def step(block, params, state, given):
    """Something that depends on block, parameters, state and what is given."""
    drive_D = state["x"] @ params["w"]
    if given is not None:
        drive_D = drive_D + given["shift"]
    x_D = jnp.tanh(block.factor * drive_D)
    return {"x": x_D, "count": state["count"] + 1}, (x_D.sum(), state["count"])


def by_hand(layers, state, given=None):
    found = []
    for layer, (block, params) in enumerate(layers):
        state, one = step(block, params, state, None if given is None else given[layer])
        found.append(one)
    return state, found


def begin(x_D):
    return {"x": x_D, "count": jnp.int32(0)}


def start():
    return begin(normal(50, 4))


def shifts_of(layers):
    trees = [{"shift": normal(60 + layer, 4)} for layer in range(len(layers))]
    return layers.params.rebuilt(trees)


class TestIsALoop:
    @hypothesis_given(st.sampled_from(PATTERNS), st.booleans(), st.booleans(), st.booleans())
    def test_over_the_layers_from_below(self, names, with_given, remat, jit):
        layers = layers_of(names)
        given = shifts_of(layers) if with_given else None

        def run(layers, state, given):
            return fold(layers, step, state, given, remat=remat)

        state, found = (jax.jit(run) if jit else run)(layers, start(), given)
        want_state, want_found = by_hand(layers, start(), given)
        assert_trees_close(state, want_state, 40)
        assert len(found) == len(names) and found.repeats == layers.params.repeats
        for got, want in zip(found, want_found, strict=True):
            assert_trees_close(got, want, 40)
        np.testing.assert_array_equal(found.map(lambda one: one[1]).joined(), np.arange(len(names)))

    @pytest.mark.parametrize("names", PATTERNS)
    def test_what_was_found_can_be_given_to_another_walk(self, names):
        layers = layers_of(names)

        def keep(block, params, state, given):
            return state, params["w"] * block.factor

        def add(block, params, state, given):
            return state + given.sum(), None

        _, kernels = fold(layers, keep, ())
        total, nothing = fold(layers, add, jnp.zeros((), jnp.float64), kernels)
        want = sum(block.factor * params["w"].sum() for block, params in layers)
        assert_close(total, want, 16 * len(names), condition=10)
        assert jax.tree.leaves(nothing) == [] and len(nothing) == len(names)

    @pytest.mark.parametrize("names", PATTERNS)
    def test_recomputed_gradients_are_the_same(self, names):
        layers = layers_of(names)

        def loss(remat, layers, x_D, given):
            state, found = fold(layers, step, begin(x_D), given, remat=remat)
            return jnp.sum(state["x"] ** 2) + jnp.sum(found.map(lambda one: one[0]).joined())

        arguments = (layers, start()["x"], shifts_of(layers))
        kept, again = (
            jax.jit(jax.grad(lambda *a, r=r: loss(r, *a), argnums=(0, 1, 2)))(*arguments)
            for r in (False, True)
        )
        assert_trees_close(again, kept, 40)

        def hand(layers, x_D, given):
            state, found = by_hand(layers, begin(x_D), given)
            return jnp.sum(state["x"] ** 2) + sum(one for one, _ in found)

        assert_trees_close(again, jax.grad(hand, argnums=(0, 1, 2))(*arguments), 40, condition=10)
        assert "remat" in counted(jax.make_jaxpr(lambda *a: loss(True, *a))(*arguments))
        assert "remat" not in counted(jax.make_jaxpr(lambda *a: loss(False, *a))(*arguments))

    def test_what_belongs_to_another_stack_is_refused(self):
        layers = layers_of("AABAABA")
        for other in ("AAAAAAA", "AABAAB", "ABABABA"):
            with pytest.raises(ValueError, match="Use what was made with this stack"):
                fold(layers, step, start(), shifts_of(layers_of(other)))


#: Blocks whose steps XLA could fuse in more ways than one.
BLOCKS = {
    "pre_norm": ("attention_rotary", "gated", "pre_norm", "rms"),
    "sandwich": ("attention_grouped", "gated", "sandwich", "rms"),
    "post_norm": ("linear_attention", "dense_bias", "post_norm", "layer"),
    "recurrent": ("recurrent", "deep_bias", "pre_norm", "layer"),
    "parallel": ("attention_rotary", "dense_bias", "parallel", "layer"),
}


def closed_loop(layers, stream_TD, kept_K):
    """The states of both runs of the closed loop after the last layer, and its patches."""

    def step(block, params, state, _):
        full_TD, kept_KD = state
        full = block.contextual(params, full_TD)
        kept = block.contextual(params, kept_KD, positions_T=kept_K)
        return closed_step(block, params, full, kept, kept_K, "auto")

    return fold(layers, step, (stream_TD, stream_TD[kept_K]))


@pytest.mark.wide(27)
@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
@pytest.mark.parametrize("level", (0, 3), ids=("not_optimised", "optimised"))
def test_the_patched_run_repeats_the_closed_loop_bit_for_bit(name, dtype, level):
    layer, mlp, wiring, norm = BLOCKS[name]
    model = make_model(Block(LAYERS[layer], MLPS[mlp], wiring, norm), depth=4)
    layers = functional(model.stack, cast(model.params, dtype))
    stream_TD = normal(3, 9, WIDTH, dtype=dtype)
    kept_K = jnp.array([0, 4, 7, 8], jnp.int32)

    def jitted(function):
        return jax.jit(function, compiler_options={"xla_backend_optimization_level": level})

    def both(layers, stream_TD):
        (full_TD, kept_KD), _ = closed_loop(layers, stream_TD, kept_K)
        bank = stack_patches(layers, stream_TD, kept_K)
        return full_TD, kept_KD, patched_forward(layers, stream_TD, bank), bank

    full_TD, want_KD, inside_KD, bank = jitted(both)(layers, stream_TD)
    assert want_KD.dtype == dtype
    across_KD = jitted(patched_forward)(layers, stream_TD, bank)
    for got_KD in (inside_KD, across_KD):
        if dtype == "bfloat16":
            np.testing.assert_array_equal(got_KD, want_KD)
        else:  # Programs may still add in another order; in bfloat16 that is rounded away.
            assert_close(got_KD, want_KD, 60)
    # What is repeated is one layer's rounding away from the run with everything, no more.
    assert_close(want_KD, full_TD[kept_K], 60)
    alone_KD = jitted(forward)(layers, stream_TD[kept_K], positions_T=kept_K)
    assert relative_error(alone_KD, full_TD[kept_K]) > 5e-2


@pytest.mark.wide(2)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_a_product_that_ends_a_step_is_rounded_before_the_next_step_adds_to_it(dtype):
    """The gain of a norm and the patch behind it used to be one fused multiply-add, or not."""
    attention = SoftmaxAttention(num_heads=4, num_kv_heads=2, rotary=Rotary(1e4), use_bias=False)
    mlp = Gated(hidden_width=64, activation="silu", use_bias=False)
    stack = Stack(repeat(Block(attention, mlp, "pre_norm", "rms"), 3), width=32)
    tokens_TC = normal(0, 29, 3)
    params = stack.init(jax.random.key(1), tokens_TC)["params"]
    # Gains of other than 1: no product is nothing.
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * normal(5, *leaf.shape, dtype=leaf.dtype), params
    )
    params, tokens_TC = cast(params, dtype), tokens_TC.astype(dtype)
    layers, kept_K = functional(stack, params), jnp.arange(25, 29, dtype=jnp.int32)
    stream_TD = stack.apply({"params": params}, tokens_TC, method="embed")
    # As outside of the tests, where the compiler is asked for less.
    options = {"xla_backend_optimization_level": 3}
    if jax.__version__.startswith("0.10."):
        options["xla_cpu_use_fusion_emitters"] = True
    jitted = functools.partial(jax.jit, compiler_options=options)
    (_, want_KD), _ = jitted(closed_loop)(layers, stream_TD, kept_K)
    bank = jitted(stack_patches)(layers, stream_TD, kept_K)
    got_KD = jitted(patched_forward)(layers, stream_TD, bank)
    np.testing.assert_array_equal(got_KD, want_KD)


def test_a_layer_stands_between_its_neighbours():
    # The order of the walk is that of the list, period by period.
    kinds = {
        "L": Block(LAYERS["attention_grouped"], MLPS["gated"], "sandwich", "rms"),
        "G": Block(LAYERS["attention_rotary"], MLPS["gated"], "sandwich", "rms"),
    }
    stack = Stack(tuple(kinds[kind].clone() for kind in "LLLLLGLLLLLGLL"), width=WIDTH)
    layers = functional(stack, random_params(stack, 0, jnp.zeros((2, 3), jnp.float32)))
    start_TD = normal(1, 6, WIDTH, dtype="float32")

    def walked(order):
        stream_TD = start_TD
        for block, params in order:
            stream_TD = apply_block(block, params, block.contextual(params, stream_TD))
        return stream_TD

    first, second, *others = layers
    assert_close(forward(layers, start_TD), walked(layers), 14 * 30)
    assert relative_error(walked([second, first, *others]), walked(layers)) > 1e-2
