"""Stacks, the way from Flax to pure functions, and configurations."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.block import Block
from icl_jax.blocks.config import GROWING, StackConfig, build_stack
from icl_jax.blocks.config import LAYERS as LAYER_NAMES
from icl_jax.blocks.functional import cast, first_layers, functional, layer_params, with_layers
from icl_jax.blocks.stack import Stack, repeat
from icl_jax.blocks.wiring import WIRINGS
from icl_jax.stack.run import forward
from tests.helpers import LAYERS, MLPS, assert_close, compiled, make_model, normal, random_params

BLOCK = Block(LAYERS["attention"], MLPS["dense_bias"], "pre_norm")
TOKENS_TC = normal(1, 6, 3)


class TestStack:
    @pytest.mark.parametrize("layer", ("attention_rotary", "recurrent"))
    def test_is_embedding_blocks_norm_and_readout(self, layer):
        model = make_model(Block(LAYERS[layer], MLPS["dense_bias"], "post_norm"), depth=3)
        variables = {"params": model.params}
        present_T = jnp.array([True, False, True, True, True, True])
        positions_T = jnp.array([1, 2, 4, 7, 8, 9])
        want = model.stack.apply(variables, TOKENS_TC, positions_T=positions_T, present_T=present_T)
        stream_TD = forward(
            model.layers,
            model.embed(TOKENS_TC),
            positions_T=positions_T,
            present_T=present_T,
        )
        got = model.stack.apply(variables, stream_TD, method="readout")
        assert got.shape == (6, 2)
        assert_close(got, want, 90)

    def test_float32_parameters_run_in_float64(self):
        model = make_model(BLOCK, depth=2)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(model.params))
        got = model.stack.apply({"params": model.params}, TOKENS_TC)
        wide = cast(model.params, jnp.float64)
        assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(wide))
        assert_close(got, model.stack.apply({"params": wide}, TOKENS_TC), 90)

    def test_jit_is_eager_and_vmap_is_a_loop_and_neighbours_do_not_matter(self):
        model = make_model(BLOCK, depth=2)
        tokens_BTC = normal(2, 3, 6, 3)

        def run(tokens_TC):
            return model.stack.apply({"params": model.params}, tokens_TC)

        batched = compiled(jax.vmap(run))
        got = batched(tokens_BTC)
        assert_close(got, jnp.stack([run(tokens_TC) for tokens_TC in tokens_BTC]), 90)
        spoilt = batched(tokens_BTC.at[1:].set(jnp.nan))
        np.testing.assert_array_equal(spoilt[0], got[0])

    def test_may_mix_layers(self):
        blocks = (
            Block(LAYERS["state_space"], MLPS["gated"], "pre_norm", "rms"),
            Block(LAYERS["attention"], MLPS["dense"], "parallel"),
        )
        stack = Stack(blocks, width=8)
        params = random_params(stack, 0, TOKENS_TC)
        stream_TD = stack.apply({"params": params}, TOKENS_TC, method="embed")
        stream_TD = forward(functional(stack, params), stream_TD)
        got = stack.apply({"params": params}, stream_TD, method="readout")
        assert_close(got, stack.apply({"params": params}, TOKENS_TC), 90)

    def test_errors_say_what_is_missing(self):
        def init(stack):
            return stack.init(jax.random.key(0), TOKENS_TC)

        with pytest.raises(ValueError, match="Stack: blocks is empty; a stack has at least one"):
            init(Stack((), width=8))
        with pytest.raises(ValueError, match="Stack: width must be an integer of at least 1"):
            init(Stack((BLOCK,), width=0))
        with pytest.raises(ValueError, match="Stack: output_width must be an integer of at least"):
            init(Stack((BLOCK,), width=8, output_width=0))
        with pytest.raises(ValueError, match="kind must be one of 'layer', .*'none', got 'b"):
            init(Stack((BLOCK,), width=8, final_norm="batch"))


class TestRepeat:
    def test_every_layer_has_parameters_of_its_own(self):
        stack = Stack(repeat(BLOCK, 3), width=8)
        params = stack.init(jax.random.key(0), TOKENS_TC)["params"]
        assert {"embedding", "head", "norm", "layers_0_0"} >= set(params)
        assert {leaf.shape[0] for leaf in jax.tree.leaves(params["layers_0_0"])} == {3}
        first, second, _ = (layer_params(stack, params, i) for i in range(3))
        assert jax.tree.structure(first) == jax.tree.structure(second)
        assert np.any(first["mlp"]["down"]["kernel"] != second["mlp"]["down"]["kernel"])
        heads = [layer_params(stack, params, i)["contextual_layer"]["query"] for i in range(3)]
        assert np.any(heads[0] != heads[1]) and np.any(heads[1] != heads[2])

    @pytest.mark.parametrize("depth", (0, -1, 1.5))
    def test_the_depth_is_a_positive_integer(self, depth):
        with pytest.raises(ValueError, match="repeat: depth must be an integer of at least 1"):
            repeat(BLOCK, depth)


class TestFunctional:
    def test_the_wrong_tree_is_refused(self):
        model = make_model(BLOCK, depth=2)
        with pytest.raises(ValueError, match="functional: params has no layers_0_0; pass"):
            functional(model.stack, {"params": model.params})
        mixed = Stack((BLOCK, replace_norm(BLOCK)), width=8)
        params = random_params(mixed, 0, TOKENS_TC)
        with pytest.raises(ValueError, match="functional: params has no layers_0_0, layers_1_0; p"):
            functional(mixed, {"params": params})
        with pytest.raises(ValueError, match="functional: params has no layers_1_0; pass"):
            functional(mixed, {"layers_0_0": params["layers_0_0"]})

    @pytest.mark.wide(3)
    @pytest.mark.parametrize("names", ("AAAA", "AABAAB", "ABCA"))
    def test_the_first_layers_are_a_model_of_their_own(self, names):
        kinds = {"A": BLOCK, "B": replace_norm(BLOCK), "C": BLOCK.clone(wiring="parallel")}
        whole = Stack(tuple(kinds[name] for name in names), width=8)
        params = random_params(whole, 0, TOKENS_TC)
        stream_TD = normal(4, 5, 8)
        for depth in range(1, len(names) + 1):
            stack, kept = first_layers(whole, params, depth)
            assert set(kept) == set(random_params(stack, 0, TOKENS_TC))
            want_TD = forward(functional(whole, params)[:depth], stream_TD)
            np.testing.assert_array_equal(forward(functional(stack, kept), stream_TD), want_TD)
        for depth in (0, len(names) + 1):
            with pytest.raises(ValueError, match=f"first_layers: depth must be 1 to {len(names)}"):
                first_layers(whole, params, depth)

    def test_parameters_of_another_depth_are_refused(self):
        """A loop walks over as many layers as it is given: it used to answer with all of them."""
        model = make_model(BLOCK, depth=4)
        for depth in (3, 5):
            other = Stack(repeat(BLOCK, depth), width=8)
            with pytest.raises(
                ValueError, match=f"holds 4 layers, and the model has {depth} there"
            ):
                functional(other, model.params)

    def test_layers_of_equal_stacks_are_equal_static_values(self):
        first, second = make_model(BLOCK, depth=2), make_model(BLOCK, depth=2, seed=1)
        assert first.blocks == second.blocks and hash(first.blocks) == hash(second.blocks)
        other = make_model(replace_norm(BLOCK), depth=2)
        assert first.blocks != other.blocks

    def test_a_layer_is_read_and_put_back(self):
        blocks = (BLOCK, BLOCK.clone(wiring="parallel"), BLOCK, BLOCK.clone(wiring="parallel"))
        stack = Stack(blocks, width=8)
        params = random_params(stack, 0, TOKENS_TC)
        layers = functional(stack, params)
        assert [block.module.wiring for block in layers.blocks] == ["pre_norm", "parallel"] * 2
        assert layers.params.repeats == (2,)
        for layer, (_, of_layer) in enumerate(layers):
            assert_same(layer_params(stack, params, layer), of_layer)
            batched = jax.tree.map(lambda leaf: jnp.stack([leaf + 1, leaf]), params)
            row = layer_params(stack, batched, layer, axis=1)
            assert_same(jax.tree.map(lambda leaf: leaf[1], row), of_layer)
        doubled = [jax.tree.map(lambda leaf: 2 * leaf, one) for one in layers.params]
        changed = with_layers(params, layers.params.rebuilt([*doubled[:3], layers.params[3]]))
        assert set(changed) == set(params)
        for name in ("embedding", "head"):
            assert_same(changed[name], params[name])
        for layer, one in enumerate(layers.params):
            want = one if layer == 3 else doubled[layer]
            assert_same(layer_params(stack, changed, layer), want)


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for pair in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_array_equal(*pair)


def replace_norm(block):
    return block.clone(norm="rms")


class TestConfig:
    @pytest.mark.parametrize("wiring", WIRINGS)
    def test_builds_the_stack_it_describes(self, wiring):
        config = StackConfig(
            layer="linear_attention",
            num_heads=2,
            causal=False,
            width=8,
            mlp="gated",
            hidden_widths=(5,),
            activation="silu",
            use_bias=False,
            wiring=wiring,
            norm="rms",
            depth=2,
        )
        stack = build_stack(config, output_width=3)
        assert len(stack.blocks) == 2 and stack.output_width == 3
        block = stack.blocks[0]
        assert block.wiring == wiring and block.norm == "rms"
        assert block.contextual_layer == LAYERS["linear_bidirectional"].clone(use_bias=False)
        assert block.mlp == MLPS["gated"].clone(hidden_width=5)
        assert stack.final_norm == ("rms" if wiring in GROWING else "none")

    @pytest.mark.parametrize("layer", LAYER_NAMES)
    def test_every_layer_runs(self, layer):
        stack = build_stack(StackConfig(layer=layer, num_heads=2, width=8, hidden_widths=(4,)))
        shape = jax.eval_shape(
            lambda tokens_TC: stack.init_with_output(jax.random.key(0), tokens_TC)[0], TOKENS_TC
        )
        assert shape.shape == (6, 1) and shape.dtype == jnp.float64

    def test_the_defaults_are_the_block_of_the_paper(self):
        config = StackConfig()
        assert (config.width, config.num_heads, config.hidden_widths) == (32, 8, (128,))
        assert (config.wiring, config.depth, config.layer) == ("no_skip", 1, "attention")

    @pytest.mark.parametrize(
        "field, value",
        (
            ("layer", "convolution"),
            ("mlp", "mixture"),
            ("activation", "sine"),
            ("wiring", "cross"),
            ("norm", "batch"),
        ),
    )
    def test_unknown_names_are_refused(self, field, value):
        with pytest.raises(ValueError, match=f"StackConfig: {field} must be one of .*'{value}'"):
            replace(StackConfig(), **{field: value})

    @pytest.mark.parametrize("field", ("num_heads", "width", "depth"))
    def test_sizes_are_positive_integers(self, field):
        with pytest.raises(ValueError, match=f"StackConfig: {field} must be an integer of at lea"):
            replace(StackConfig(), **{field: 0})

    def test_sizes_that_do_not_go_together_are_refused(self):
        with pytest.raises(ValueError, match="num_heads=5 does not divide width=32; choose a div"):
            StackConfig(num_heads=5)
        StackConfig(layer="state_space", num_heads=5)
        with pytest.raises(ValueError, match="a gated MLP has one hidden width"):
            StackConfig(mlp="gated", hidden_widths=(3, 4))
        with pytest.raises(ValueError, match="hidden_widths must be an integer of at least 1"):
            StackConfig(hidden_widths=(3, 0))
