"""Every check says where, what was expected, what came, and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_jax import checks


class TestShapesAndDtypes:
    def test_rank(self):
        checks.rank("f", "x_TD", jnp.ones((2, 3)), 2, "(T, D)")
        with pytest.raises(ValueError) as error:
            checks.rank("f", "x_TD", jnp.ones(3), 2, "(T, D)")
        assert str(error.value) == (
            "f: x_TD must have 2 axes (T, D), got 1 axes (shape (3,)). Batches go through jax.vmap."
        )

    def test_rank_is_checked_while_tracing(self):
        with pytest.raises(ValueError, match="f: x must have 1 axes"):
            jax.eval_shape(lambda x: checks.rank("f", "x", x, 1, "(D)"), jnp.ones((2, 3)))

    @pytest.mark.parametrize("dtype", ("bfloat16", "float16", "float32", "float64"))
    def test_floating_takes_every_floating_dtype(self, dtype):
        checks.floating("f", "x", jnp.ones(2, dtype))

    @pytest.mark.parametrize("dtype", ("int32", "bool", "complex64"))
    def test_floating_refuses_the_others(self, dtype):
        with pytest.raises(TypeError, match=f"f: x must be floating point, got {dtype}. Convert"):
            checks.floating("f", "x", jnp.ones(2, dtype))

    def test_same_dtype(self):
        checks.same_dtype("f", x=jnp.ones(2), y=jnp.zeros(5))
        with pytest.raises(TypeError, match="must share one dtype, got x: float64, y: float32"):
            checks.same_dtype("f", x=jnp.ones(2), y=jnp.ones(2, jnp.float32))

    def test_same_shape(self):
        checks.same_shape("f", x=jnp.ones(2), y=jnp.zeros(2))
        with pytest.raises(ValueError, match=r"must share one shape, got x: \(2,\), y: \(3,\)"):
            checks.same_shape("f", x=jnp.ones(2), y=jnp.ones(3))

    def test_axis_size(self):
        checks.axis_size("f", "x", jnp.ones((2, 3)), 1, 3, "the width")
        with pytest.raises(ValueError) as error:
            checks.axis_size("f", "x", jnp.ones((2, 3)), 0, 3, "the width")
        assert str(error.value) == (
            "f: axis 0 of x must have 3 entries (the width), got 2 (shape (2, 3))."
        )


class TestNumbersAndNames:
    @pytest.mark.parametrize("value", (1, 7, np.int64(3)))
    def test_positive_int_accepts(self, value):
        checks.positive_int("f", "count", value)

    @pytest.mark.parametrize("value", (0, -1, 1.0, True, "1", None))
    def test_positive_int_refuses(self, value):
        with pytest.raises(ValueError, match=f"count must be an integer .* 1, got {value!r}"):
            checks.positive_int("f", "count", value)

    @pytest.mark.parametrize("value", (0, 0.0, 1e-9, np.float32(3)))
    def test_non_negative_accepts(self, value):
        checks.non_negative("f", "noise", value)

    @pytest.mark.parametrize("value", (-1, float("nan"), float("inf"), "1", None, True, np.True_))
    def test_non_negative_refuses(self, value):
        with pytest.raises(ValueError, match="f: noise must be a finite number of at least 0"):
            checks.non_negative("f", "noise", value)

    @pytest.mark.parametrize("value", (1, 1e-9, np.float32(3)))
    def test_positive_accepts(self, value):
        checks.positive("f", "rate", value)

    @pytest.mark.parametrize("value", (0, 0.0, -1, float("nan"), float("inf"), "1", None, True))
    def test_positive_refuses(self, value):
        with pytest.raises(ValueError, match="f: rate must be a finite number above 0"):
            checks.positive("f", "rate", value)

    def test_one_of(self):
        checks.one_of("f", "loop", "open", ("open", "closed"))
        with pytest.raises(ValueError) as error:
            checks.one_of("f", "loop", "ajar", ("open", "closed"))
        assert str(error.value) == "f: loop must be one of 'open', 'closed', got 'ajar'."


class TestValues:
    def test_values_are_concrete_outside_transformations_only(self):
        assert checks.is_concrete(jnp.ones(2)) and checks.is_concrete(np.ones(2))
        seen = []
        jax.jit(lambda x: seen.append(checks.is_concrete(x)))(jnp.ones(2))
        assert seen == [False]

    def test_a_zero_vector_is_refused(self):
        with pytest.raises(ValueError, match="f: z has length zero. No weight update changes"):
            checks.non_zero_rows("f", "z", jnp.zeros(3))

    def test_a_zero_row_is_named(self):
        rows = jnp.ones((2, 4, 3)).at[1, 2].set(0)
        with pytest.raises(ValueError, match=r"f: z has length zero at row \(1, 2\). .* BOS token"):
            checks.non_zero_rows("f", "z", rows)

    def test_what_devices_take_for_zero_is_zero(self):
        with pytest.raises(ValueError, match="f: z has length zero"):
            checks.non_zero_rows("f", "z", np.full(3, 1e-40, np.float32))

    def test_a_vector_without_entries_is_refused(self):
        with pytest.raises(ValueError, match=r"f: z is empty \(shape \(0,\)\)"):
            checks.non_zero_rows("f", "z", jnp.zeros(0))

    def test_non_zero_rows_pass_and_tracers_pass(self):
        checks.non_zero_rows("f", "z", jnp.ones(3))
        checks.non_zero_rows("f", "z", jnp.full((2, 3), 1e-300))
        checks.non_zero_rows("f", "z", jnp.eye(3, dtype=jnp.bfloat16))
        checks.non_zero_rows("f", "z", jnp.full(3, 1e-6, jnp.float16))
        jax.jit(lambda z: checks.non_zero_rows("f", "z", z))(jnp.zeros(3))


class TestLists:
    def test_a_list_is_no_array(self):
        for check in (
            lambda: checks.rank("f", "x", [1.0, 2.0], 1, "(D)"),
            lambda: checks.floating("f", "x", [1.0, 2.0]),
        ):
            with pytest.raises(TypeError, match=r"f: x must be an array, got a list.*asarray\(x\)"):
                check()


class TestMasks:
    def test_a_mask_is_booleans_one_each(self):
        checks.mask("f", "present_T", np.array([True, False]), 2, "one per token")
        with pytest.raises(TypeError, match="f: present_T must be a boolean mask, got dtype float"):
            checks.mask("f", "present_T", jnp.array([1.0, 0.0]), 2, "one per token")
        with pytest.raises(ValueError, match=r"must have 3 entries \(one per token\), got 2"):
            checks.mask("f", "present_T", jnp.array([True, False]), 3, "one per token")
        with pytest.raises(TypeError, match="got a list"):
            checks.mask("f", "present_T", [True, False], 2, "one per token")


class TestPlaces:
    def test_ids_increase_and_fit_the_sequence(self):
        checks.places("f", 3, jnp.array([0, 4, 9]), jnp.array([True, True, False]))
        checks.places("f", 3)
        for bad in ([2, 1, 0], [0, 0, 1], [-1, 0, 1]):
            with pytest.raises(ValueError, match="f: positions_T must be non-negative and strictl"):
                checks.places("f", 3, np.array(bad))
        with pytest.raises(ValueError, match=r"axis 0 of positions_T must have 3 entries"):
            checks.places("f", 3, jnp.arange(2))
        for dtype in (np.uint8, np.uint32, np.float32):
            with pytest.raises(TypeError, match="f: positions_T must hold signed integers, got"):
                checks.places("f", 3, np.arange(3, dtype=dtype))

    def test_padding_may_have_any_id(self):
        there = jnp.array([True, False, True])
        checks.places("f", 3, jnp.array([0, -7, 1]), there)
        with pytest.raises(ValueError, match="f: positions_T must be non-negative"):
            checks.places("f", 3, jnp.array([5, -7, 1]), there)

    def test_a_mask_is_boolean_and_as_long_as_the_sequence(self):
        for bad in (jnp.full(3, 2), jnp.ones(3)):
            with pytest.raises(TypeError, match="f: present_T must be a boolean mask, got dtype"):
                checks.places("f", 3, None, bad)
        with pytest.raises(ValueError, match=r"axis 0 of present_T must have 3 entries"):
            checks.places("f", 3, None, jnp.ones(4, bool))
        with pytest.raises(TypeError, match="f: positions_T must be an array, got a list"):
            checks.places("f", 3, [0, 1, 2])


class TestScalars:
    def test_a_positive_number_may_be_an_array_and_traced(self):
        for good in (0.5, np.float32(2), jnp.asarray(0.5)):
            checks.positive_scalar("f", "rate", good)
        jax.jit(lambda rate: checks.positive_scalar("f", "rate", rate))(-1.0)
        for bad in (0.0, jnp.asarray(-1.0), jnp.asarray(jnp.inf)):
            with pytest.raises(ValueError, match="f: rate must be a finite number above 0, got"):
                checks.positive_scalar("f", "rate", bad)

    def test_two_at_least(self):
        checks.at_least_two("f", "num_prompts", 2, "one is alone")
        with pytest.raises(ValueError, match="num_prompts must be at least 2, got 1: one is"):
            checks.at_least_two("f", "num_prompts", 1, "one is alone")


class TestIntegers:
    @pytest.mark.parametrize("values", ([1, 2], (3,), [], [jnp.int32(1)], np.array([2], np.uint64)))
    def test_integers_come_back_as_an_array(self, values):
        np.testing.assert_array_equal(checks.integers("f", "ids", values), np.asarray(values))

    @pytest.mark.parametrize(
        ("values", "got"),
        (
            ([1, True], r"bool \(True\)"),
            ([2, np.True_], r"bool \(np.True_\)"),
            ([True, False], "bool"),
            ([[1, True], [2, 3]], r"bool \(True\)"),
            ([1.0, 2], "float64"),
            (np.ones(2, np.float32), "float32"),
            (["a", "b"], r"str \('a'\)"),
            ("abc", "<U3"),
            (None, r"NoneType \(None\)"),
            ([None, 1], r"NoneType \(None\)"),
            ({1, 2}, r"set \({1, 2}\)"),
            ([[1, 2], [3]], r"list \(\[1, 2\]\)"),
        ),
    )
    def test_what_is_no_integer_is_shown(self, values, got):
        with pytest.raises(TypeError, match=f"f: ids must be integers, got {got}."):
            checks.integers("f", "ids", values)

    def test_integers_of_more_than_64_bits_are_integers(self):
        for values in ([2**70], [-1, 2**63]):
            assert checks.integers("f", "ids", values).tolist() == values
        with pytest.raises(ValueError, match="kept position 1180591620717411303424 is outside"):
            checks.kept_positions("f", [0, 2**70], 5)

    def test_traced_ones_are_known_by_their_dtype(self):
        jax.eval_shape(lambda ids: checks.integers("f", "ids", ids), jnp.arange(2))
        with pytest.raises(TypeError, match="f: ids must be integers, got float64"):
            jax.eval_shape(lambda ids: checks.integers("f", "ids", ids), jnp.ones(2))

    def test_one_whole_number(self):
        for good in (3, np.int8(3), jnp.int32(3), np.asarray(3)):
            assert checks.is_whole(good)
        for bad in (True, np.True_, 3.0, "3", None, [3], jnp.float32(3)):
            assert not checks.is_whole(bad)


class TestKeptPositions:
    @pytest.mark.parametrize("kept", ([0], [4], [0, 2, 4], (1, 3), np.array([2]), jnp.array([0])))
    def test_good_positions_come_back_as_int32(self, kept):
        got = checks.kept_positions("f", kept, 5)
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, np.asarray(kept))

    @pytest.mark.parametrize("kept, position", (([5], 5), ([0, 9], 9), ([-1], -1)))
    def test_a_position_outside_the_sequence(self, kept, position):
        message = (
            f"f: kept position {position} is outside the sequence: positions run from 0 to 4. "
            "Count from the left; negative indices do not wrap."
        )
        with pytest.raises(ValueError) as error:
            checks.kept_positions("f", kept, 5)
        assert str(error.value) == message

    @pytest.mark.parametrize("kept", ([2, 1], [1, 1], [0, 3, 2]))
    def test_positions_out_of_order_or_repeated(self, kept):
        with pytest.raises(ValueError, match="must be strictly increasing .* got \\["):
            checks.kept_positions("f", kept, 5)

    @pytest.mark.parametrize("kept", ([0, 1, 2], [0, 1, 2, 3]))
    def test_an_empty_removed_set(self, kept):
        with pytest.raises(ValueError, match="f: the removed set is empty: kept_K keeps . posit"):
            checks.kept_positions("f", kept, 3)

    @pytest.mark.parametrize("kept", (np.zeros((1, 1), int), np.zeros(0, int), 3, [], ()))
    def test_no_list_of_positions(self, kept):
        with pytest.raises(ValueError, match="must be a non-empty 1-D array of positions"):
            checks.kept_positions("f", kept, 5)

    def test_unsigned_positions_out_of_order(self):
        for dtype in (np.uint8, np.uint32, np.uint64):
            with pytest.raises(ValueError, match="must be strictly increasing .* got .8, 3"):
                checks.kept_positions("f", np.array([8, 3], dtype), 12)
            assert checks.kept_positions("f", np.array([3, 8], dtype), 12).dtype == jnp.int32

    def test_a_mask_is_told_its_positions(self):
        with pytest.raises(TypeError, match=r"got dtype bool. Of a mask, they are jnp.flatnonzero"):
            checks.kept_positions("f", [True, False], 5)

    @pytest.mark.parametrize("kept", ([0.0], [True, False], np.ones(2, np.float32)))
    def test_positions_that_are_no_integers(self, kept):
        with pytest.raises(TypeError, match="f: kept_K must hold integer positions, got dtype"):
            checks.kept_positions("f", kept, 5)

    def test_what_is_static_is_checked_while_tracing_too(self):
        positions = jnp.array([7, 7])
        jax.jit(lambda kept: checks.kept_positions("f", kept, 5))(positions)
        with pytest.raises(ValueError, match="the removed set is empty"):
            jax.jit(lambda kept: checks.kept_positions("f", kept, 2))(positions)
