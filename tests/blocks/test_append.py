"""New tokens go into a memory's next slots, and are seen there as far as they may be."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax.blocks.memory import append, empty_keys, newest, sees_memory, with_newest
from icl_jax.blocks.views import free_slots, occupy
from icl_jax.kernels.attention import mask
from tests.helpers import normal


class TestAppend:
    @staticmethod
    def appended(memory, slots, start, seed, num_new, present_M=None):
        key_MGF, value_MGF = normal(seed, num_new, 2, 3), normal(seed + 1, num_new, 2, 3)
        positions_M = jnp.arange(num_new, dtype=jnp.int32) + 10 * seed
        slots = occupy(slots, jnp.int32(start), positions_M, present_M)
        return (key_MGF, value_MGF, positions_M), append(memory, key_MGF, value_MGF, slots), slots

    def test_an_empty_memory_holds_nothing(self):
        memory, slots = empty_keys(5, 2, 3, jnp.bfloat16), free_slots(5)
        assert memory.key_TGF.shape == memory.value_TGF.shape == (5, 2, 3)
        assert memory.key_TGF.dtype == memory.value_TGF.dtype == jnp.bfloat16
        assert slots.positions_T.dtype == slots.start.dtype == jnp.int32
        assert slots.present_T.dtype == bool
        assert not any(np.any(leaf) for leaf in jax.tree.leaves((memory, slots)))

    def test_new_tokens_go_into_the_next_free_slots(self):
        memory, slots = empty_keys(5, 2, 3, jnp.float64), free_slots(5)
        first, memory, slots = self.appended(memory, slots, 0, 1, 2)
        second, memory, slots = self.appended(memory, slots, 2, 2, 2, jnp.array([True, False]))
        for got, *pieces in zip(
            (memory.key_TGF, memory.value_TGF, slots.positions_T), first, second, strict=True
        ):
            np.testing.assert_array_equal(got[:4], jnp.concatenate(pieces))
            assert not np.any(got[4:])
        np.testing.assert_array_equal(slots.present_T, [True, True, True, False, False])
        assert int(slots.start) + 2 == 4
        np.testing.assert_array_equal(slots.rows(2), [2, 3])
        positions_M, present_M = slots.newest(2)
        np.testing.assert_array_equal(positions_M, second[2])
        np.testing.assert_array_equal(present_M, [True, False])

    def test_a_token_sees_the_present_ones_up_to_itself_and_always_itself(self):
        memory, slots = empty_keys(5, 2, 3, jnp.float64), free_slots(5)
        present_M = jnp.array([False, True])
        _, memory, first = self.appended(memory, slots, 0, 1, 2, present_M)
        _, memory, second = self.appended(memory, first, 2, 2, 2, present_M)
        first_MT, second_MT = (mask(sees_memory(one, 2, None), 2, 5) for one in (first, second))
        np.testing.assert_array_equal(first_MT, [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
        np.testing.assert_array_equal(second_MT, [[0, 1, 1, 0, 0], [0, 1, 0, 1, 0]])

    @pytest.mark.parametrize("window", (None, 2))
    def test_fresh_tokens_see_of_each_other_what_they_would_see_in_the_memory(self, window):
        positions_M = jnp.array([0, 1, 3, 4], jnp.int32)
        fresh, placed = (occupy(free_slots(6), s, positions_M) for s in (0, jnp.int32(0)))
        assert fresh.fresh and not placed.fresh
        got_MM = mask(sees_memory(fresh, 4, window), 4, 4)
        want_MT = mask(sees_memory(placed, 4, window), 4, 6)
        np.testing.assert_array_equal(got_MM, want_MT[:, :4])
        assert not np.any(want_MT[:, 4:])

    def test_what_is_new_in_a_memory_makes_the_old_one_it(self):
        memory, slots = empty_keys(5, 2, 3, jnp.float64), free_slots(5)
        _, memory, slots = self.appended(memory, slots, 0, 1, 2)
        _, longer, slots = self.appended(memory, slots, 2, 2, 2)
        new = newest(longer, slots, 2)
        assert new.key_TGF.shape == new.value_TGF.shape == (2, 2, 3)
        chex.assert_trees_all_equal(with_newest(memory, new, slots.start), longer)
        stacked, rows = (jax.tree.map(lambda leaf: leaf[None, None], one) for one in (memory, new))
        got = with_newest(stacked, rows, slots.start)
        chex.assert_trees_all_equal(jax.tree.map(lambda leaf: leaf[0, 0], got), longer)

    def test_a_state_is_new_as_a_whole(self):
        state_S = normal(1, 4)
        assert newest(state_S, free_slots(5), 1) is state_S
        assert with_newest(normal(2, 4), state_S, 3) is state_S

    def test_the_old_memory_is_as_it_was(self):
        memory, slots = empty_keys(5, 2, 3, jnp.float64), free_slots(5)
        self.appended(memory, slots, 0, 1, 2)
        assert not any(np.any(leaf) for leaf in jax.tree.leaves((memory, slots)))

    def test_more_tokens_than_slots_are_refused(self):
        memory, slots = empty_keys(2, 2, 3, jnp.float64), free_slots(2)
        _, memory, slots = self.appended(memory, slots, 0, 1, 2)
        with pytest.raises(ValueError, match="occupy: 3 new tokens do not fit into a memory of 2"):
            self.appended(memory, slots, 2, 2, 3)

    @pytest.mark.parametrize("slots", (0, -1, 2.0))
    def test_a_memory_has_at_least_one_slot(self, slots):
        wording = f"empty_keys: slots must be an integer of at least 1, got {slots}"
        with pytest.raises(ValueError, match=wording):
            empty_keys(slots, 2, 3, jnp.float64)
        wording = f"free_slots: count must be an integer of at least 1, got {slots}"
        with pytest.raises(ValueError, match=wording):
            free_slots(slots)
