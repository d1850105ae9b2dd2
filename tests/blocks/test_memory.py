"""A sequence continued with a memory says what it says in one run."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icl_jax.blocks.attention import Attention, LinearAttention, SoftmaxAttention
from icl_jax.blocks.block import Block
from icl_jax.blocks.functional import FlaxBlock
from icl_jax.blocks.memory import append, empty_memory
from icl_jax.blocks.rotary import Rotary, Scaling
from icl_jax.blocks.wiring import WIRINGS
from tests.helpers import (
    LAYERS,
    MLPS,
    WIDTH,
    assert_close,
    assert_trees_close,
    compiled,
    normal,
    random_params,
    relative_error,
    seeds,
)

HIDDEN_TD = normal(1, 6, WIDTH)
#: With a gap, and not from zero.
POSITIONS_T = jnp.array([2, 3, 5, 6, 7, 8], jnp.int32)

ATTENTIONS: dict[str, Attention] = {
    "plain": SoftmaxAttention(num_heads=2),
    "grouped": SoftmaxAttention(num_heads=4, num_kv_heads=2, use_bias=True),
    "windowed": SoftmaxAttention(num_heads=2, window=3),
    "rotary": SoftmaxAttention(num_heads=2, rotary=Rotary(50.0, scaling=Scaling("yarn", 4.0))),
    "soft_capped": SoftmaxAttention(num_heads=2, scale=2.0, soft_cap=0.5),
    "normed_heads": SoftmaxAttention(num_heads=4, num_kv_heads=1, qk_norm="head"),
    "everything": LAYERS["attention_grouped"],
    "linear": LinearAttention(num_heads=2, qk_norm="all", window=4, out_bias=True),
}


@functools.cache
def with_params(module, seed=0):
    """float64 parameters of a layer or block, and its methods as (compiled) functions."""
    params = random_params(module, seed, jnp.zeros((2, WIDTH), jnp.float32))
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), params)

    @functools.partial(compiled, static_argnames="method")
    def apply(params, *args, method, **kwargs):
        return module.apply({"params": params}, *args, method=method, **kwargs)

    def call(*args, method=None, **kwargs):
        return apply(params, *args, method=method, **kwargs)

    return params, call


def memory_for(layer, slots, dtype=jnp.float64):
    """An empty memory that fits an attention layer of width 8."""
    return empty_memory(
        slots, layer.num_kv_heads or layer.num_heads, WIDTH // layer.num_heads, dtype
    )


def in_chunks(call, memory, hidden_TD, sizes, present_T=None, positions_T=POSITIONS_T):
    """The outputs of chunks of these sizes, one after the other, and the memory at the end."""
    outputs, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        output_MD, memory = call(
            hidden_TD[rows],
            memory,
            positions_M=positions_T[rows],
            present_M=None if present_T is None else present_T[rows],
            method="extend",
        )
        outputs.append(output_MD)
        start += size
    return jax.tree.map(lambda *chunks: jnp.concatenate(chunks), *outputs), memory


@st.composite
def chunks(draw, length=6):
    """Sizes that add up to the length: one at a time, everything at once, or anything between."""
    cuts = draw(st.sets(st.integers(1, length - 1)))
    ends = [0, *sorted(cuts), length]
    return tuple(b - a for a, b in zip(ends[:-1], ends[1:], strict=True))


@st.composite
def presences(draw, length=6):
    """Which tokens are there: all without saying so, or any of them."""
    present = draw(st.one_of(st.none(), st.lists(st.booleans(), min_size=length, max_size=length)))
    return None if present is None else jnp.array(present)


class TestContinuedEqualsWhole:
    @pytest.mark.parametrize("name", ATTENTIONS)
    @pytest.mark.parametrize("sizes", ((1, 1, 1, 1, 1, 1), (4, 2)))
    def test_token_by_token_and_in_chunks(self, name, sizes):
        layer = ATTENTIONS[name]
        _, call = with_params(layer)
        want_TD = call(HIDDEN_TD, positions_T=POSITIONS_T)
        got_TD, memory = in_chunks(call, memory_for(layer, 6), HIDDEN_TD, sizes)
        assert_close(got_TD, want_TD, 60)
        assert int(memory.length) == 6
        # What the memory brings is not nothing: the last chunk by itself says something else.
        last = slice(6 - sizes[-1], 6)
        alone_TD = call(HIDDEN_TD[last], positions_T=POSITIONS_T[last])
        assert relative_error(alone_TD, want_TD[last]) > 1e-2

    @settings(max_examples=6)
    @given(
        st.sampled_from(sorted(ATTENTIONS)), chunks(), presences(), st.sampled_from((0, 3)), seeds()
    )
    def test_whatever_the_chunks_the_padding_and_the_room(self, name, sizes, present_T, free, seed):
        layer = ATTENTIONS[name]
        _, call = with_params(layer)
        hidden_TD = normal(seed, 6, WIDTH)
        want_TD = call(hidden_TD, positions_T=POSITIONS_T, present_T=present_T)
        memory = memory_for(layer, 6 + free)
        got_TD, memory = in_chunks(call, memory, hidden_TD, sizes, present_T)
        assert_close(got_TD, want_TD, 60)
        there_T = jnp.ones(6, bool) if present_T is None else present_T
        np.testing.assert_array_equal(memory.present_T[:6], there_T)
        assert not np.any(memory.present_T[6:]) and not np.any(memory.key_TGF[6:])

    @pytest.mark.parametrize("name", ATTENTIONS)
    def test_absent_tokens_are_read_by_nobody(self, name):
        layer = ATTENTIONS[name]
        _, call = with_params(layer)
        there = jnp.array([0, 2, 5])
        present_T = jnp.zeros(6, bool).at[there].set(True)
        spoilt_TD = jnp.where(present_T[:, None], HIDDEN_TD, 1e3)
        got_TD, _ = in_chunks(call, memory_for(layer, 6), spoilt_TD, (3, 2, 1), present_T)
        assert_close(got_TD[there], call(HIDDEN_TD[there], positions_T=POSITIONS_T[there]), 60)
        assert np.all(np.isfinite(got_TD))

    def test_padding_before_the_first_token_stays_finite(self):
        layer = ATTENTIONS["plain"]
        _, call = with_params(layer)
        present_T = jnp.array([False, False, True, True, True, True])
        got_TD, _ = in_chunks(call, memory_for(layer, 6), HIDDEN_TD, (1,) * 6, present_T)
        assert np.all(np.isfinite(got_TD))
        # A token that is not there reads itself alone.
        assert_close(got_TD[:1], call(HIDDEN_TD[:1]), 60)

    def test_position_ids_are_those_of_the_tokens_and_not_of_the_slots(self):
        layer = ATTENTIONS["everything"]
        _, call = with_params(layer)
        want_TD = call(HIDDEN_TD, positions_T=POSITIONS_T)
        slots_T = jnp.arange(6, dtype=jnp.int32)
        got_TD, _ = in_chunks(call, memory_for(layer, 6), HIDDEN_TD, (1,) * 6, positions_T=slots_T)
        assert relative_error(got_TD, want_TD) > 1e-2

    @pytest.mark.parametrize("name", ("windowed", "rotary"))
    def test_position_ids_may_be_wider_integers(self, name):
        layer = ATTENTIONS[name]
        _, call = with_params(layer)
        wide_T = POSITIONS_T.astype(jnp.int64)
        memory = memory_for(layer, 6)
        got_TD, memory = in_chunks(call, memory, HIDDEN_TD, (4, 2), positions_T=wide_T)
        assert_close(got_TD, call(HIDDEN_TD, positions_T=wide_T), 60)
        assert memory.positions_T.dtype == jnp.int32

    @pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
    def test_a_narrow_memory_serves_wider_arithmetic(self, dtype):
        layer = ATTENTIONS["rotary"]
        _, call = with_params(layer)
        memory = memory_for(layer, 6, jnp.dtype(dtype))
        got_TD, memory = in_chunks(call, memory, HIDDEN_TD, (4, 1, 1))
        assert memory.key_TGF.dtype == memory.value_TGF.dtype == dtype
        want_TD = call(HIDDEN_TD, positions_T=POSITIONS_T)
        assert got_TD.dtype == want_TD.dtype
        # Keys and values are rounded once.
        assert_close(got_TD.astype(dtype), want_TD.astype(dtype))

    def test_a_decoding_step_is_compiled_once(self):
        layer = ATTENTIONS["everything"]
        params, call = with_params(layer)
        chex.clear_trace_counter()

        @chex.assert_max_traces(n=1)
        def step(params, hidden_1D, memory, position_1):
            return layer.apply(
                {"params": params}, hidden_1D, memory, positions_M=position_1, method="extend"
            )

        jitted, memory, rows = compiled(step), memory_for(layer, 8), []
        for t in range(6):
            row, memory = jitted(params, HIDDEN_TD[t : t + 1], memory, POSITIONS_T[t : t + 1])
            rows.append(row)
        assert_close(jnp.concatenate(rows), call(HIDDEN_TD, positions_T=POSITIONS_T), 60)

    def test_prompts_of_a_batch_may_have_read_differently_many_tokens(self):
        layer = ATTENTIONS["everything"]
        params, call = with_params(layer)
        memories, want = [], []
        for length in (1, 4):
            _, memory = in_chunks(call, memory_for(layer, 6), HIDDEN_TD, (length,))
            memories.append(memory)
            want.append(
                in_chunks(call, memory, HIDDEN_TD[4:], (2,), positions_T=POSITIONS_T[4:])[0]
            )

        def continued(memory):
            return layer.apply(
                {"params": params},
                HIDDEN_TD[4:],
                memory,
                positions_M=POSITIONS_T[4:],
                method="extend",
            )

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *memories)
        got_BMD, after = compiled(jax.vmap(continued))(stacked)
        assert_close(got_BMD, jnp.stack(want), 60)
        np.testing.assert_array_equal(after.length, [3, 6])
        assert relative_error(got_BMD[0], want[1]) > 1e-2


class TestBlocks:
    @pytest.mark.parametrize("wiring", WIRINGS)
    def test_the_first_half_of_a_block_continued_equals_the_whole(self, wiring):
        layer = ATTENTIONS["everything"]
        block = Block(layer, MLPS["dense"], wiring, "rms")
        _, call = with_params(block)
        want = call(HIDDEN_TD, positions_T=POSITIONS_T, method="contextual")
        got, _ = in_chunks(call, memory_for(layer, 6), HIDDEN_TD, (4, 1, 1))
        assert_trees_close(got, want, 60)

    def test_a_flax_block_continues_as_a_pure_function_of_its_parameters(self):
        layer = ATTENTIONS["rotary"]
        block = Block(layer, MLPS["dense"], "pre_norm", "rms")
        params, call = with_params(block)
        want = call(HIDDEN_TD, positions_T=POSITIONS_T, method="contextual")
        got, memory = FlaxBlock(block).extend(
            params, HIDDEN_TD, memory_for(layer, 6), positions_M=POSITIONS_T
        )
        assert_trees_close(got, want, 60)
        assert int(memory.length) == 6

    @pytest.mark.parametrize("name", ("recurrent", "state_space"))
    def test_only_attention_has_keys_and_values(self, name):
        _, call = with_params(Block(LAYERS[name], MLPS["dense"]))
        memory = empty_memory(6, 2, 4, jnp.float64)
        wording = f"Block.extend: {type(LAYERS[name]).__name__} has no key-value memory; use a"
        with pytest.raises(TypeError, match=wording):
            call(HIDDEN_TD, memory, positions_M=POSITIONS_T, method="extend")

    def test_a_layer_that_reads_forwards_cannot_be_continued(self):
        for layer in (LAYERS["attention_bidirectional"], LAYERS["linear_bidirectional"]):
            _, call = with_params(layer)
            wording = f"{type(layer).__name__}.extend: a layer that reads forwards, too, cannot"
            with pytest.raises(ValueError, match=wording):
                call(HIDDEN_TD, memory_for(layer, 6), positions_M=POSITIONS_T, method="extend")


class TestAppend:
    @staticmethod
    def appended(memory, seed, num_new, present_M=None):
        key_MGF, value_MGF = normal(seed, num_new, 2, 3), normal(seed + 1, num_new, 2, 3)
        positions_M = jnp.arange(num_new) + 10 * seed
        return (key_MGF, value_MGF, positions_M), append(
            memory, key_MGF, value_MGF, positions_M, present_M
        )

    def test_an_empty_memory_holds_nothing(self):
        memory = empty_memory(5, 2, 3, jnp.bfloat16)
        assert memory.key_TGF.shape == memory.value_TGF.shape == (5, 2, 3)
        assert memory.key_TGF.dtype == memory.value_TGF.dtype == jnp.bfloat16
        assert memory.positions_T.dtype == memory.length.dtype == jnp.int32
        assert memory.present_T.dtype == bool
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(memory))

    def test_new_tokens_go_into_the_next_free_slots(self):
        memory = empty_memory(5, 2, 3, jnp.float64)
        first, (memory, _) = self.appended(memory, 1, 2)
        second, (memory, _) = self.appended(memory, 2, 2, jnp.array([True, False]))
        for got, *pieces in zip(
            (memory.key_TGF, memory.value_TGF, memory.positions_T), first, second, strict=True
        ):
            np.testing.assert_array_equal(got[:4], jnp.concatenate(pieces))
            assert not np.any(got[4:])
        np.testing.assert_array_equal(memory.present_T, [True, True, True, False, False])
        assert int(memory.length) == 4

    def test_a_token_sees_the_present_ones_up_to_itself_and_always_itself(self):
        memory = empty_memory(5, 2, 3, jnp.float64)
        _, (memory, first_MT) = self.appended(memory, 1, 2, jnp.array([False, True]))
        _, (memory, second_MT) = self.appended(memory, 2, 2, jnp.array([False, True]))
        np.testing.assert_array_equal(first_MT, [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
        np.testing.assert_array_equal(second_MT, [[0, 1, 1, 0, 0], [0, 1, 0, 1, 0]])

    def test_the_old_memory_is_as_it_was(self):
        memory = empty_memory(5, 2, 3, jnp.float64)
        self.appended(memory, 1, 2)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(memory))

    def test_more_tokens_than_slots_are_refused(self):
        memory = empty_memory(2, 2, 3, jnp.float64)
        _, (memory, _) = self.appended(memory, 1, 2)
        with pytest.raises(ValueError, match="append: 3 new tokens do not fit into a memory of 2"):
            self.appended(memory, 2, 3)

    @pytest.mark.parametrize("slots", (0, -1, 2.0))
    def test_a_memory_has_at_least_one_slot(self, slots):
        wording = f"empty_memory: slots must be an integer of at least 1, got {slots}"
        with pytest.raises(ValueError, match=wording):
            empty_memory(slots, 2, 3, jnp.float64)
