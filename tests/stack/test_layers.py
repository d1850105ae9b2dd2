"""A stack as data: how it is cut, and that it reads like the list of layers it was made of."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.stack.layers import Layers, PerLayer, Place, periods, stack_layers
from tests.helpers import normal

GEMMA = "LLLLLGLLLLLGLL"


@dataclass(frozen=True)
class Named:
    """A block that is its name; nothing here runs it."""

    name: str


def params_of(layer, width=3):
    return {"w": normal(layer, width, 2), "b": jnp.full(2, layer, jnp.float32)}


def layers_of(names, widths=None):
    """A stack of named blocks, each with parameters of its own."""
    widths = [3] * len(names) if widths is None else widths
    trees = [params_of(layer, width) for layer, width in enumerate(widths)]
    return stack_layers([Named(name) for name in names], trees), trees


def times(factors_B, tree):
    return factors_B[:, None, None] * tree["w"][None]


def assert_same(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for pair in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert pair[0].dtype == pair[1].dtype
        np.testing.assert_array_equal(*pair)


class TestPeriods:
    @pytest.mark.parametrize(
        "kinds, cut",
        (
            (GEMMA, [(6, 2), (1, 2)]),
            ("LLLLLG" * 4 + "LL", [(6, 4), (1, 2)]),  # Gemma 3 1B.
            ("A", [(1, 1)]),
            ("AAAA", [(1, 4)]),
            ("ABABAB", [(2, 3)]),
            ("AABAAB", [(3, 2)]),
            (("A" * 9 + "B") * 2, [(1, 9), (1, 1)] * 2),  # Four programs, not ten.
            (("A" * 9 + "B") * 8, [(10, 8)]),
            ("ABCD", [(1, 1)] * 4),
            ("DAAAAA", [(1, 1), (1, 5)]),  # A dense layer before those with experts.
            ("ABABC", [(2, 2), (1, 1)]),
            ("", []),
        ),
    )
    def test_stacks_are_cut_into_short_periods(self, kinds, cut):
        assert periods(kinds) == cut

    @given(st.text("AB", max_size=12))
    def test_periods_and_their_repeats_are_the_sequence(self, kinds):
        start, again = 0, ""
        for length, repeats in periods(kinds):
            assert length >= 1 and repeats >= 1
            again += kinds[start : start + length] * repeats
            start += length * repeats
        assert again == kinds

    @given(st.text("AB", min_size=1, max_size=6), st.integers(2, 5))
    def test_repeating_a_pattern_costs_no_more_than_one_loop_over_it(self, pattern, times):
        cut = periods(pattern * times)
        assert sum(length + 1 for length, _ in cut) <= len(pattern) + 1


class TestStackLayers:
    def test_equal_layers_lie_on_top_of_each_other(self):
        layers, trees = layers_of("AAAA")
        assert layers.designs == ((Named("A"),),) and layers.params.repeats == (4,)
        (stacked,) = layers.params.segments[0]
        assert stacked["w"].shape == (4, 3, 2) and stacked["b"].shape == (4, 2)
        assert_same(stacked, jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees))

    def test_a_pattern_is_a_period(self):
        layers, _ = layers_of(GEMMA)
        assert layers.params.repeats == (2, 2)
        assert [len(period) for period in layers.designs] == [6, 1]
        assert "".join(block.name for block in layers.blocks) == GEMMA

    def test_equal_blocks_with_other_shapes_are_other_layers(self):
        layers, trees = layers_of("AAAA", (3, 3, 5, 5))
        assert layers.params.repeats == (2, 2) and len(layers.designs) == 2
        for layer, tree in enumerate(trees):
            assert_same(layers[layer][1], tree)

    def test_so_are_those_with_another_dtype(self):
        trees = [params_of(0), jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params_of(1))]
        assert stack_layers([Named("A")] * 2, trees).params.repeats == (1, 1)

    def test_the_blocks_are_static_and_the_parameters_are_data(self):
        layers, trees = layers_of("ABAB")
        assert len(jax.tree.leaves(layers)) == 4
        doubled = jax.tree.map(lambda leaf: 2 * leaf, layers)
        assert isinstance(doubled, Layers) and doubled.designs == layers.designs
        assert_same(doubled[3][1], jax.tree.map(lambda leaf: 2 * leaf, trees[3]))

    def test_as_many_parameters_as_blocks(self):
        with pytest.raises(ValueError, match="of each of the 2 blocks, got 1 trees"):
            stack_layers([Named("A")] * 2, [params_of(0)])

    def test_a_block_is_a_value_that_can_be_hashed(self):
        with pytest.raises(TypeError, match=r"block 1 \(dict\) cannot be hashed.*frozen dataclass"):
            stack_layers([Named("A"), {}], [params_of(0), params_of(1)])

    def test_no_layers_are_an_empty_stack(self):
        assert len(stack_layers((), ())) == 0


@pytest.mark.parametrize("names", ("AAAA", GEMMA, "ABCD", "ABABC"))
class TestReading:
    def test_a_stack_reads_like_a_list_of_layers(self, names):
        layers, trees = layers_of(names)
        assert len(layers) == len(layers.params) == len(names)
        assert layers.blocks == tuple(map(Named, names))
        for layer, (block, params) in enumerate(layers):
            assert block == layers[layer][0] == layers.block(layer) == Named(names[layer])
            assert_same(params, trees[layer])
            assert_same(layers.params[layer], trees[layer])
        for got, want in zip(layers.params, trees, strict=True):
            assert_same(got, want)

    def test_negative_numbers_count_from_the_end(self, names):
        layers, trees = layers_of(names)
        for layer in range(1, len(names) + 1):
            assert layers[-layer][0] == Named(names[-layer])
            assert_same(layers.params[-layer], trees[-layer])

    def test_there_are_no_others(self, names):
        layers, _ = layers_of(names)
        for layer in (len(names), -len(names) - 1):
            wording = f"layer {layer} of a stack of {len(names)} layers"
            with pytest.raises(IndexError, match=wording):
                layers[layer]
            with pytest.raises(IndexError, match=wording):
                layers.params[layer]

    def test_a_slice_is_a_stack(self, names):
        layers, trees = layers_of(names)
        for part in (slice(2), slice(1, None), slice(None, None, 2), slice(-2, None)):
            some = layers[part]
            assert isinstance(some, Layers) and some.blocks == tuple(map(Named, names[part]))
            for got, also, want in zip(some.params, layers.params[part], trees[part], strict=True):
                assert_same(got, want)
                assert_same(also, want)

    def test_places_count_the_layers_from_below(self, names):
        params = layers_of(names)[0].params
        places = params.places()
        assert len(set(places)) == len(places) == len(names)
        for layer, place in enumerate(places):
            assert params.place(layer) == params.place(layer - len(names)) == place
        # Period by period: repeats of a period are neighbours.
        assert places == tuple(sorted(places, key=lambda p: (p.segment, p.repeat, p.block)))
        assert places[0] == Place(0, 0, 0)

    def test_trees_of_another_kind_are_stacked_in_the_same_way(self, names):
        params = layers_of(names)[0].params
        trees = [(jnp.full(4, layer), jnp.int32(layer)) for layer in range(len(names))]
        again = params.rebuilt(trees)
        assert isinstance(again, PerLayer) and again.repeats == params.repeats
        for got, want in zip(again, trees, strict=True):
            assert_same(got, want)
        with pytest.raises(ValueError, match=f"one for each of {len(names)} layers, got 1"):
            params.rebuilt(trees[:1])

    def test_what_a_function_makes_of_stacked_trees_is_what_it_makes_of_each(self, names):
        params, trees = layers_of(names)
        got = params.params.map(lambda tree: {"sum": jnp.sum(tree["w"], axis=-1), "b": tree["b"]})
        for one, tree in zip(got, trees, strict=True):
            assert_same(one, {"sum": jnp.sum(tree["w"], axis=-1), "b": tree["b"]})

    def test_joined_all_layers_lie_along_one_axis(self, names):
        layers, trees = layers_of(names)
        assert_same(layers.params.joined(), jax.tree.map(lambda *rows: jnp.stack(rows), *trees))

    def test_mapped_axes_stand_in_front(self, names):
        layers, trees = layers_of(names)
        factors_B = jnp.array([1.0, -2.0, 0.5])

        def scaled(factor):
            # Inside vmap it reads as ever.
            params = layers.params.map(lambda tree: {"w": factor * tree["w"]})
            return params, params[-1]

        batched, last = jax.vmap(scaled)(factors_B)
        for layer, tree in enumerate(trees):
            want = {"w": times(factors_B, tree)}
            assert_same(batched.layer(layer, axis=1), want)
            assert_same(batched.layer(layer - len(names), axis=1), want)
        assert_same(last, {"w": times(factors_B, trees[-1])})
        want = jnp.stack([times(factors_B, tree) for tree in trees], axis=1)
        assert_same(batched.joined(axis=1), {"w": want})


def test_trees_of_unequal_shapes_cannot_be_joined_and_are_read_one_by_one():
    layers, trees = layers_of("AB", (3, 5))
    for got, want in zip(layers.params, trees, strict=True):
        assert_same(got, want)
    with pytest.raises((TypeError, ValueError)):
        layers.params.joined()
