"""Records of arrays in one line."""

import jax
import jax.numpy as jnp
import pytest

from icl_jax.dynamics.anchored import anchored_trajectory
from icl_jax.dynamics.peel_off import peel_off_trajectory
from icl_jax.patches.low_rank import LowRank, outer
from icl_jax.patches.spectrum import singular_vectors
from icl_jax.patches.token import InputFactor, conditioning, input_factor
from icl_jax.shown import brief, count

DTYPES = {"float32": "f32", "bfloat16": "bf16", "float64": "f64", "int32": "i32", "bool": "bool"}


def rows(*shape):
    return jax.random.normal(jax.random.key(0), shape, jnp.float32)


def test_an_update_is_its_factors_shapes():
    assert repr(outer(rows(3), rows(4))) == "LowRank(left_RD=f32[1,3], right_RH=f32[1,4])"
    assert repr(input_factor(rows(3), 2 * rows(3))) == "InputFactor(v_D=f32[3], delta_D=f32[3])"


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_has_its_letters(dtype):
    assert brief(jnp.zeros((2, 3), dtype)) == f"{DTYPES[dtype]}[2,3]"


def test_numbers_that_stand_alone_are_written_and_none_is_left_out():
    numbers = conditioning(jnp.array([3.0, 4.0], jnp.float32), jnp.array([3.0, 0.0], jnp.float32))
    assert repr(numbers).startswith("Conditioning(kept_norm=3, relative_change=1.333, residual=")
    assert "None" not in repr(numbers)


def test_trajectories_and_spectra_are_short():
    inputs_MD, kernel_DH = rows(5, 4), rows(4, 6)
    for record in (
        anchored_trajectory(inputs_MD, kernel_DH),
        peel_off_trajectory(inputs_MD, kernel_DH),
        singular_vectors(outer(rows(3), rows(4))),
    ):
        assert len(repr(record)) < 320 and "Array" not in repr(record)


def test_a_record_can_be_printed_inside_jit_and_by_what_builds_trees():
    shown = []

    @jax.jit
    def inside(update):
        shown.append(repr(update))
        return update

    inside(outer(rows(3), rows(4)))
    assert shown == ["LowRank(left_RD=f32[1,3], right_RH=f32[1,4])"]
    assert repr(LowRank(None, None)) == "LowRank()"
    assert "object" in repr(InputFactor(object(), object()))
    shapes = jax.eval_shape(lambda: outer(jnp.ones(3), jnp.ones(4)))
    assert repr(shapes).startswith("LowRank(left_RD=f")


def test_counts_have_at_most_five_characters():
    counts = {0: "0", 999: "999", 1234: "1.23k", 134_515_008: "135M", 7_241_732_096: "7.24B"}
    assert {number: count(number) for number in counts} == counts
