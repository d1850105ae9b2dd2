"""All prefixes in one pass against one run per prefix."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.block import Block
from icl_jax.blocks.wiring import WIRINGS
from icl_jax.dynamics.prefixes import (
    PrefixPass,
    lone_midpoints,
    prefix_outputs_by_reruns,
    prefix_pass,
    suffix_midpoints,
)
from icl_jax.patches.block import block_patches
from icl_jax.stack.block import Midpoint, apply_block
from icl_jax.stack.run import forward
from tests.helpers import (
    LAYERS,
    MLPS,
    assert_close,
    assert_trees_close,
    compiled,
    make_model,
    normal,
    relative_error,
    seeds,
)

CAUSAL = sorted(name for name, layer in LAYERS.items() if layer.causal)
BIDIRECTIONAL = sorted(name for name, layer in LAYERS.items() if not layer.causal)


def model_of(layer, *, wiring="pre_norm", depth=1, seed=0, mlp="dense_bias"):
    return make_model(Block(LAYERS[layer], MLPS[mlp], wiring, "layer"), depth, seed=seed)


def run_of(model):
    return (model.layers,)


def separately(run, context_ND, query_D):
    """The definition: the stack on ``c_1..c_i, x`` for each i, with no padding at all."""
    return jnp.stack(
        [
            forward(*run, jnp.concatenate([context_ND[:i], query_D[None]]))[-1]
            for i in range(len(context_ND) + 1)
        ]
    )


class TestPrefixPass:
    @given(
        st.sampled_from(CAUSAL),
        st.sampled_from(tuple(WIRINGS)),
        st.sampled_from((1, 2, 3)),
        seeds(),
    )
    def test_equals_a_run_per_prefix(self, layer, wiring, depth, seed):
        model = model_of(layer, wiring=wiring, depth=depth, seed=seed)
        stream_TD = model.embed(normal(seed, 4, 3))
        arguments = (*run_of(model), stream_TD[:-1], stream_TD[-1])
        got_MD = prefix_pass(*arguments).output_MD
        want_MD = separately(run_of(model), *arguments[1:])
        assert_close(got_MD, want_MD, 40 * depth, condition=10)
        assert_close(prefix_outputs_by_reruns(*arguments), want_MD, 40 * depth, condition=10)
        # It is a fact about prefixes: each of them gives something else.
        for i in range(3):
            assert relative_error(got_MD[i], got_MD[i + 1]) > 1e-3

    @pytest.mark.wide(2)
    @pytest.mark.parametrize("layer", BIDIRECTIONAL)
    def test_one_bidirectional_block_works(self, layer):
        model = model_of(layer)
        stream_TD = model.embed(normal(1, 5, 3))
        arguments = (*run_of(model), stream_TD[:-1], stream_TD[-1])
        want_MD = separately(run_of(model), *arguments[1:])
        assert_close(prefix_pass(*arguments).output_MD, want_MD, 40)

    def test_reruns_serve_bidirectional_stacks(self):
        model = model_of("attention_bidirectional", depth=2)
        stream_TD = model.embed(normal(1, 5, 3))
        arguments = (*run_of(model), stream_TD[:-1], stream_TD[-1])
        want_MD = separately(run_of(model), *arguments[1:])
        assert_close(prefix_outputs_by_reruns(*arguments), want_MD, 80, condition=10)

    @pytest.mark.wide(2)
    @pytest.mark.parametrize("layer", ("attention_rotary", "state_space"))
    def test_full_midpoints_are_those_of_the_query_after_each_prefix(self, layer):
        model = model_of(layer, depth=2)
        stream_TD = model.embed(normal(2, 4, 3))
        passed = prefix_pass(*run_of(model), stream_TD[:-1], stream_TD[-1])
        for i in range(4):
            sequence_TD = jnp.concatenate([stream_TD[:i], stream_TD[-1:]])
            for layer_index, (block, params) in enumerate(model.layers):
                midpoint = block.contextual(params, sequence_TD)
                got = jax.tree.map(lambda rows, i=i: rows[i], passed.full[layer_index])
                want = jax.tree.map(lambda rows: rows[-1], midpoint)
                assert_trees_close(got, want, 80, condition=10)
                sequence_TD = apply_block(block, params, midpoint)

    @pytest.mark.wide(18)
    @pytest.mark.parametrize(
        "layer, mlp", (("attention_rotary", "gated"), ("recurrent", "deep_bias"))
    )
    @pytest.mark.parametrize("wiring", WIRINGS)
    def test_its_midpoints_are_all_that_the_patches_need(self, layer, wiring, mlp):
        model = model_of(layer, wiring=wiring, depth=2, mlp=mlp)
        stream_TD = model.embed(normal(3, 4, 3))
        passed = prefix_pass(*run_of(model), stream_TD[:-1], stream_TD[-1])
        # Every probe alone, a sequence of one token, through the blocks with its patches.
        probes_MD = jnp.tile(stream_TD[-1], (4, 1))
        positions_M = jnp.arange(4, dtype=jnp.int32)
        condition = 10.0
        for (block, params), full, kept in zip(model.layers, passed.full, passed.kept, strict=True):
            patch, numbers = block_patches(block, params, full, kept)
            alone = lone_midpoints(block, params, probes_MD, positions_M)
            probes_MD = apply_block(block, params, alone, patch)
            condition *= 1 + float(jnp.max(numbers.relative_change))
        assert_close(probes_MD, passed.output_MD, 80, condition=condition)

    def test_the_empty_prefix_is_the_query_alone(self):
        model = model_of("attention", depth=2)
        stream_TD = model.embed(normal(3, 4, 3))
        passed = prefix_pass(*run_of(model), stream_TD[:-1], stream_TD[-1])
        assert_close(passed.output_MD[:1], forward(*run_of(model), stream_TD[-1:]), 80)
        first = [jax.tree.map(lambda rows: rows[:, 0], half) for half in (passed.full, passed.kept)]
        assert_trees_close(*first, 80)

    @pytest.mark.wide(4)
    @pytest.mark.parametrize("layer", CAUSAL)
    def test_an_empty_context_has_one_prefix(self, layer):
        model = model_of(layer, depth=1)
        query_D = model.embed(normal(3, 1, 3))[0]
        passed = prefix_pass(*run_of(model), jnp.zeros((0, 8)), query_D)
        assert_close(passed.output_MD, forward(*run_of(model), query_D[None]), 80)

    def test_vmap_is_a_loop_and_neighbours_do_not_matter_and_it_traces_once(self):
        model = model_of("attention_rotary", depth=2)
        stream_BTD = jax.vmap(model.embed)(normal(4, 3, 5, 3))
        chex.clear_trace_counter()

        @chex.assert_max_traces(n=1)
        def passes(context_BND, query_BD):
            return jax.vmap(lambda c, q: prefix_pass(*run_of(model), c, q))(context_BND, query_BD)

        batched = compiled(passes)
        together = batched(stream_BTD[:, :-1], stream_BTD[:, -1])
        alone = [prefix_pass(*run_of(model), h[:-1], h[-1]) for h in stream_BTD]
        assert_trees_close(
            together, jax.tree.map(lambda *rows: jnp.stack(rows), *alone), 80, condition=10
        )
        spoilt_BTD = stream_BTD.at[1:].set(jnp.nan)
        spoilt = batched(spoilt_BTD[:, :-1], spoilt_BTD[:, -1])
        np.testing.assert_array_equal(spoilt.output_MD[0], together.output_MD[0])

    def test_gradients_are_those_of_the_reruns(self):
        model = model_of("attention", depth=2)
        stream_TD = model.embed(normal(4, 4, 3))

        def loss(stream_TD, outputs):
            return jnp.sum(jnp.sin(outputs(*run_of(model), stream_TD[:-1], stream_TD[-1])))

        gradient = compiled(jax.grad(loss), static_argnums=1)
        got = gradient(stream_TD, lambda *arguments: prefix_pass(*arguments).output_MD)
        assert_close(got, gradient(stream_TD, prefix_outputs_by_reruns), 80, condition=100)

    def test_a_bidirectional_stack_is_refused(self):
        model = model_of("attention_bidirectional", depth=2)
        with pytest.raises(ValueError, match="needs causal contextual layers.*prefix_outputs_by_r"):
            prefix_pass(*run_of(model), normal(0, 4, 8), normal(1, 8))

    def test_errors_name_the_argument(self):
        run = run_of(model_of("attention"))
        with pytest.raises(ValueError, match=r"prefix_pass: context_ND must have 2 axes \(N, D\)"):
            prefix_pass(*run, normal(0, 2, 4, 8), normal(1, 8))
        with pytest.raises(ValueError, match=r"prefix_pass: query_D must have 1 axes \(D\), got 2"):
            prefix_pass(*run, normal(0, 4, 8), normal(1, 1, 8))
        with pytest.raises(ValueError, match="prefix_pass: axis 0 of query_D must have 8 entries"):
            prefix_pass(*run, normal(0, 4, 8), normal(1, 7))

    def test_the_pass_is_a_pytree(self):
        model = model_of("attention", wiring="no_skip")
        passed = prefix_pass(*run_of(model), normal(0, 4, 8), normal(1, 8))
        assert isinstance(jax.tree.map(lambda rows: rows, passed), PrefixPass)
        assert passed.full[0].residual_TD is None and isinstance(passed.full[0], Midpoint)


class TestSuffixes:
    @pytest.mark.wide(16)
    @pytest.mark.parametrize("layer", LAYERS)
    def test_equal_separate_runs(self, layer):
        model = model_of(layer, wiring="post_norm")
        block, params = model.blocks[0], model.block_params[0]
        stream_TD = model.embed(normal(5, 5, 3))
        got = suffix_midpoints(block, params, stream_TD[:-1], stream_TD[-1])
        positions_T = jnp.arange(5, dtype=jnp.int32)
        for i in range(5):
            alone = block.contextual(params, stream_TD[i:], positions_T=positions_T[i:])
            assert_trees_close(
                jax.tree.map(lambda rows, i=i: rows[i], got),
                jax.tree.map(lambda rows: rows[-1], alone),
                40,
            )

    def test_errors_name_the_argument(self):
        model = model_of("attention")
        block, params = model.blocks[0], model.block_params[0]
        with pytest.raises(ValueError, match="suffix_midpoints: context_ND must have 2 axes"):
            suffix_midpoints(block, params, normal(0, 8), normal(1, 8))
        with pytest.raises(ValueError, match="suffix_midpoints: query_D must have 1 axes"):
            suffix_midpoints(block, params, normal(0, 4, 8), normal(1, 1, 8))
