"""A sequence continued with a memory says what it says in one run."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.blocks.attention import Attention
from icl_jax.blocks.block import Block
from icl_jax.blocks.contextual import ContextualLayer
from icl_jax.blocks.delta import GatedDelta
from icl_jax.blocks.flax_block import FlaxBlock
from icl_jax.blocks.linear_attention import LinearAttention
from icl_jax.blocks.recurrent import GatedRecurrent, StateSpace
from icl_jax.blocks.rotary import Rotary, Scaling
from icl_jax.blocks.selective import SelectiveStateSpace
from icl_jax.blocks.softmax_attention import SoftmaxAttention
from icl_jax.blocks.views import free_slots, occupy
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
    "sloped": SoftmaxAttention(num_heads=2, slopes=(0.5, 0.1)),
    "output_gate": SoftmaxAttention(num_heads=2, output_gate=True),
    "sinks": SoftmaxAttention(num_heads=2, sinks=True, window=3),
    "everything": LAYERS["attention_grouped"],
    "linear": LinearAttention(num_heads=2, qk_norm="all", window=4, out_bias=True),
}
#: Everything that can go on after what it has read.
WITH_MEMORY: dict[str, ContextualLayer] = {
    **ATTENTIONS,
    "state_space": LAYERS["state_space"],
    "state_space_slow": StateSpace(slowest=0.999),
    "recurrent": LAYERS["recurrent"],
    "delta": LAYERS["delta"],
    "delta_without_convolution": GatedDelta(num_heads=2, key_width=2, taps=1),
    "selective": LAYERS["selective"],
    "selective_wide": SelectiveStateSpace(num_heads=3, key_width=4, value_width=5, taps=1),
    "recurrent_wide": GatedRecurrent(state_width=12),
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
    """Nothing remembered and nothing in the slots, for a layer of width 8."""
    return layer.empty_memory(slots, WIDTH, dtype), free_slots(slots)


def extended(call, stream_MD, state, start, positions_M, present_M=None):
    """The outputs (M, D) of new tokens from slot ``start`` on, and the state with them."""
    memory, slots = state
    slots = occupy(slots, start, positions_M, present_M)
    (output_MD,), (memory,) = call((stream_MD,), (memory,), (slots,), method="extend")
    return output_MD, (memory, slots)


def in_chunks(
    call, state, stream_TD, sizes, present_T=None, positions_T=POSITIONS_T, start=0, fresh=True
):
    """The outputs of chunks of these sizes, one after the other, and the state at the end.

    Args:
      start: the slot of the first token.
      fresh: whether a first chunk at slot 0 may say so (see ``Slots.fresh``); it may not if what
        stands before or between its tokens is padding.
    """
    outputs, row = [], 0
    for size in sizes:
        rows, slot = slice(row, row + size), start + row
        output_MD, state = extended(
            call,
            stream_TD[rows],
            state,
            slot if fresh else jnp.int32(slot),
            positions_T[rows],
            None if present_T is None else present_T[rows],
        )
        assert state[1].fresh == (fresh and slot == 0)
        outputs.append(output_MD)
        row += size
    return jax.tree.map(lambda *chunks: jnp.concatenate(chunks), *outputs), state


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
    @pytest.mark.wide(45)
    @pytest.mark.parametrize("name", WITH_MEMORY)
    @pytest.mark.parametrize("sizes", ((1, 1, 1, 1, 1, 1), (4, 2)))
    @pytest.mark.parametrize("fresh", (True, False), ids=("fresh", "from_memory"))
    def test_token_by_token_and_in_chunks(self, name, sizes, fresh):
        layer = WITH_MEMORY[name]
        assert layer.has_memory
        _, call = with_params(layer)
        want_TD = call(HIDDEN_TD, positions_T=POSITIONS_T)
        got_TD, (_, slots) = in_chunks(call, memory_for(layer, 6), HIDDEN_TD, sizes, fresh=fresh)
        assert_close(got_TD, want_TD, 60)
        assert int(slots.start) + sizes[-1] == 6 and np.all(slots.present_T)
        np.testing.assert_array_equal(slots.positions_T, POSITIONS_T)
        # What the memory brings is not nothing: the last chunk by itself says something else.
        last = slice(6 - sizes[-1], 6)
        alone_TD = call(HIDDEN_TD[last], positions_T=POSITIONS_T[last])
        assert relative_error(alone_TD, want_TD[last]) > 1e-2

    @given(
        st.sampled_from(sorted(WITH_MEMORY)),
        chunks(),
        presences(),
        st.sampled_from((0, 3)),
        seeds(),
    )
    def test_whatever_the_chunks_the_padding_and_the_room(self, name, sizes, present_T, free, seed):
        layer = WITH_MEMORY[name]
        _, call = with_params(layer)
        stream_TD = normal(seed, 6, WIDTH)
        want_TD = call(stream_TD, positions_T=POSITIONS_T, present_T=present_T)
        state = memory_for(layer, 6 + free)
        got_TD, (memory, slots) = in_chunks(
            call, state, stream_TD, sizes, present_T, fresh=present_T is None
        )
        assert_close(got_TD, want_TD, 60)
        there_T = jnp.ones(6, bool) if present_T is None else present_T
        np.testing.assert_array_equal(slots.present_T[:6], there_T)
        assert not np.any(slots.present_T[6:])
        if name in ATTENTIONS:
            assert memory.key_TGF.shape[0] == 6 + free and not np.any(memory.key_TGF[6:])
            assert not np.any(memory.value_TGF[6:])

    @pytest.mark.wide(3)
    @pytest.mark.parametrize("name", WITH_MEMORY)
    def test_absent_tokens_are_read_by_nobody(self, name):
        layer = WITH_MEMORY[name]
        _, call = with_params(layer)
        there = jnp.array([0, 2, 5])
        present_T = jnp.zeros(6, bool).at[there].set(True)
        spoilt_TD = jnp.where(present_T[:, None], HIDDEN_TD, 1e3)
        got_TD, _ = in_chunks(
            call, memory_for(layer, 6), spoilt_TD, (3, 2, 1), present_T, fresh=False
        )
        assert_close(got_TD[there], call(HIDDEN_TD[there], positions_T=POSITIONS_T[there]), 60)
        assert np.all(np.isfinite(got_TD))

    @pytest.mark.wide(3)
    @pytest.mark.parametrize("name", WITH_MEMORY)
    def test_a_fresh_prompt_may_be_padded_behind_and_continued(self, name):
        layer = WITH_MEMORY[name]
        _, call = with_params(layer)
        # Three tokens, two places of padding, then two more tokens.
        want_TD = call(HIDDEN_TD[:5], positions_T=POSITIONS_T[:5])
        padded_TD = jnp.concatenate([HIDDEN_TD[:3], jnp.full((2, WIDTH), 1e3)])
        positions_T = jnp.concatenate([POSITIONS_T[:3], POSITIONS_T[2:3], POSITIONS_T[2:3]])
        first_TD, state = extended(
            call, padded_TD, memory_for(layer, 7), 0, positions_T, jnp.arange(5) < 3
        )
        assert state[1].fresh and np.all(np.isfinite(first_TD))
        assert_close(first_TD[:3], want_TD[:3], 60)
        rest_TD, _ = in_chunks(
            call, state, HIDDEN_TD[3:5], (1, 1), positions_T=POSITIONS_T[3:5], start=5
        )
        assert_close(rest_TD, want_TD[3:], 60)

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
        state = memory_for(layer, 6)
        got_TD, (_, slots) = in_chunks(call, state, HIDDEN_TD, (4, 2), positions_T=wide_T)
        assert_close(got_TD, call(HIDDEN_TD, positions_T=wide_T), 60)
        assert slots.positions_T.dtype == jnp.int32

    @pytest.mark.parametrize("dtype", ("bfloat16", "float32"))
    def test_a_narrow_memory_serves_wider_arithmetic(self, dtype):
        layer = ATTENTIONS["rotary"]
        _, call = with_params(layer)
        state = memory_for(layer, 6, jnp.dtype(dtype))
        got_TD, (memory, _) = in_chunks(call, state, HIDDEN_TD, (4, 1, 1))
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
        def step(params, stream_1D, memory, slots):
            return layer.apply(
                {"params": params}, (stream_1D,), (memory,), (slots,), method="extend"
            )

        (memory, slots), rows = memory_for(layer, 8), []
        jitted = compiled(step)
        for t in range(6):
            slots = occupy(slots, jnp.int32(t), POSITIONS_T[t : t + 1])
            (row,), (memory,) = jitted(params, HIDDEN_TD[t : t + 1], memory, slots)
            rows.append(row)
        assert_close(jnp.concatenate(rows), call(HIDDEN_TD, positions_T=POSITIONS_T), 60)

    @pytest.mark.parametrize("name", ("everything", "state_space", "recurrent"))
    def test_prompts_of_a_batch_may_have_read_differently_many_tokens(self, name):
        layer = WITH_MEMORY[name]
        params, call = with_params(layer)
        states, want = [], []
        for length in (1, 4):
            _, state = in_chunks(call, memory_for(layer, 6), HIDDEN_TD, (length,))
            rest_MD, after = in_chunks(
                call, state, HIDDEN_TD[4:], (2,), positions_T=POSITIONS_T[4:], start=length
            )
            states.append((state[0], after[1]))
            want.append(rest_MD)

        def continued(memory, slots):
            return layer.apply(
                {"params": params}, (HIDDEN_TD[4:],), (memory,), (slots,), method="extend"
            )

        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
        (got_BMD,), _ = compiled(jax.vmap(continued))(*stacked)
        assert_close(got_BMD, jnp.stack(want), 60)
        np.testing.assert_array_equal(stacked[1].start + 2, [3, 6])
        assert relative_error(got_BMD[0], want[1]) > 1e-2

    @pytest.mark.wide(3)
    @pytest.mark.parametrize("name", WITH_MEMORY)
    def test_sequences_side_by_side_do_not_read_each_other(self, name):
        layer = WITH_MEMORY[name]
        _, call = with_params(layer)
        states = [
            in_chunks(call, memory_for(layer, size), stream_TD, (length,))[1]
            for size, length, stream_TD in ((6, 4, HIDDEN_TD), (8, 2, normal(2, 6, WIDTH)))
        ]
        reads = (HIDDEN_TD[4:], normal(3, 1, WIDTH))
        places = (
            occupy(states[0][1], jnp.int32(4), POSITIONS_T[4:]),
            occupy(states[1][1], jnp.int32(2), POSITIONS_T[2:3]),
        )
        memories = tuple(memory for memory, _ in states)
        together, longer = call(reads, memories, places, method="extend")
        for read_MD, memory, slots, output_MD, longer_one in zip(
            reads, memories, places, together, longer, strict=True
        ):
            (want_MD,), (want_memory,) = call((read_MD,), (memory,), (slots,), method="extend")
            assert_close(output_MD, want_MD, 60)
            assert_trees_close(longer_one, want_memory, 60)


class TestBlocks:
    @pytest.mark.wide(3)
    @pytest.mark.parametrize("wiring", WIRINGS)
    @pytest.mark.parametrize("name", ("everything", "state_space", "recurrent"))
    def test_the_first_half_of_a_block_continued_equals_the_whole(self, wiring, name):
        layer = WITH_MEMORY[name]
        block = Block(layer, MLPS["dense"], wiring, "rms")
        _, call = with_params(block)
        want = call(HIDDEN_TD, positions_T=POSITIONS_T, method="contextual")
        got, _ = in_chunks(call, memory_for(layer, 6), HIDDEN_TD, (4, 1, 1))
        assert_trees_close(got, want, 60)

    @pytest.mark.parametrize("name", ("rotary", "state_space", "recurrent"))
    def test_a_flax_block_continues_as_a_pure_function_of_its_parameters(self, name):
        layer = WITH_MEMORY[name]
        block = Block(layer, MLPS["dense"], "pre_norm", "rms")
        params, call = with_params(block)
        want = call(HIDDEN_TD, positions_T=POSITIONS_T, method="contextual")
        flax_block = FlaxBlock(block)
        assert flax_block.has_memory
        memory = flax_block.empty_memory(6, WIDTH, jnp.float64)
        slots = occupy(free_slots(6), 0, POSITIONS_T)
        (got,), (memory,) = flax_block.extend(params, (HIDDEN_TD,), (memory,), (slots,))
        assert_trees_close(got, want, 60)
        assert jax.tree.structure(memory) == jax.tree.structure(memory_for(layer, 6)[0])

    def test_a_layer_without_a_memory_says_so(self):
        class Pooling(ContextualLayer):
            def __call__(self, stream_TD, *, positions_T=None, present_T=None):
                return jnp.cumsum(stream_TD, axis=0)

        block = Block(Pooling(), MLPS["dense"])
        assert not FlaxBlock(block).has_memory
        _, call = with_params(block)
        wording = "Pooling has no memory to go on from. Use a causal layer that defines"
        with pytest.raises(TypeError, match=wording):
            FlaxBlock(block).empty_memory(6, WIDTH, jnp.float64)
        with pytest.raises(TypeError, match=wording):
            slots = occupy(free_slots(6), 0, POSITIONS_T)
            call((HIDDEN_TD,), (None,), (slots,), method="extend")

    def test_a_layer_that_reads_forwards_cannot_be_continued(self):
        for layer in (LAYERS["attention_bidirectional"], LAYERS["linear_bidirectional"]):
            assert not layer.has_memory
            _, call = with_params(layer)
            wording = f"{type(layer).__name__}.extend: a layer that reads forwards, too, cannot"
            with pytest.raises(ValueError, match=wording):
                in_chunks(call, memory_for(layer, 6), HIDDEN_TD, (6,))
