"""The output side: putting the change of a residual stream back after the MLP."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from icl_jax.patches.low_rank import as_matrix
from icl_jax.patches.output import (
    BiasPatch,
    DownPatch,
    apply_output,
    bias_patch,
    compact_down,
    down_change,
    down_patch,
    down_sum,
    down_update,
    wide,
    with_down_remainder,
)
from tests.helpers import assert_close, compiled, eps, normal, seeds


@given(seeds(), st.sampled_from(("float32", "float64")))
def test_the_patched_down_kernel_adds_the_residual_change(seed, dtype):
    hidden_H, change_D = normal(seed, 12, dtype=dtype), normal(seed + 1, 8, dtype=dtype)
    kernel_HD = normal(seed + 2, 12, 8, dtype=dtype)
    patch = down_patch(hidden_H, change_D)
    want = hidden_H @ kernel_HD + change_D
    patched_HD = kernel_HD + as_matrix(down_update(patch))
    assert_close(hidden_H @ patched_HD, want, 12, condition=10)
    assert_close(apply_output(hidden_H @ kernel_HD, hidden_H, patch), want, 12, condition=10)


@given(seeds())
def test_applying_a_down_patch_is_multiplying_with_its_matrix(seed):
    patch = down_patch(normal(seed, 12), normal(seed + 1, 8))
    other_H, output_D = normal(seed + 2, 12), normal(seed + 3, 8)
    want = output_D + other_H @ as_matrix(down_update(patch))
    assert_close(apply_output(output_D, other_H, patch), want, 12, condition=10)


def test_a_bias_patch_is_a_steering_vector():
    output_D, change_D = normal(0, 8), normal(1, 8)
    patch = bias_patch(change_D)
    np.testing.assert_array_equal(patch.delta_D, change_D)
    got = apply_output(output_D, normal(2, 12), patch)
    np.testing.assert_array_equal(got, output_D + change_D)


def test_no_other_change_of_the_down_kernel_is_shorter():
    hidden_H, change_D = normal(0, 12), normal(1, 8)
    update_HD = as_matrix(down_update(down_patch(hidden_H, change_D)))
    want = np.linalg.pinv(np.asarray(hidden_H)[None]) @ np.asarray(change_D)[None]
    assert_close(update_HD, want, 96)


def test_low_precision_strengths_are_summed_in_float32():
    hidden_H = normal(0, 2000, dtype=jnp.bfloat16)
    change_D = normal(1, 8, dtype=jnp.bfloat16)
    patch = down_patch(hidden_H, change_D)
    got = apply_output(jnp.zeros(8, jnp.bfloat16), hidden_H, patch)
    # Length 1: the reduction over 2000 entries runs in float32, only v and the result are rounded.
    assert_close(got, change_D, 1)


@given(seeds(), st.sampled_from(("bfloat16", "float32")), st.sampled_from((1e-2, 1.0, 1e2)))
def test_a_stream_is_rounded_once_to_what_the_full_run_stored(seed, dtype, size):
    hidden_H = normal(seed, 2000, dtype=dtype)
    target_D, output_D = (normal(seed + i, 64, dtype=dtype) for i in (1, 2))
    residual_D = (size * normal(seed + 3, 64, dtype="float32")).astype(dtype)
    ends_D = target_D, residual_D, output_D
    change_D = down_change(*ends_D)
    patch = jax.jit(with_down_remainder)(down_patch(wide(hidden_H), change_D), hidden_H, *ends_D)

    @jax.jit
    def reached(patch):
        total_D, low_D = down_sum(residual_D, output_D, hidden_H, patch)
        assert total_D.dtype == jnp.float32
        return (total_D + low_D).astype(dtype)

    missed_D = np.abs(wide(reached(patch)) - wide(target_D))
    assert np.all(missed_D <= np.finfo(np.float32).eps * np.abs(change_D))
    # The one rounding of ``r`` is seen where ``r`` is above the target, and in float32 only.
    assert not np.any(missed_D[np.abs(change_D) <= np.abs(wide(target_D))])
    if dtype == "bfloat16":
        for one in (patch, compact_down(patch)):
            np.testing.assert_array_equal(reached(one), target_D)
        # Three roundings to bfloat16 are not one.
        narrow = down_patch(hidden_H, patch.delta_D.astype(jnp.bfloat16))
        assert np.any(residual_D + apply_output(output_D, hidden_H, narrow) != target_D)


def test_vmap_is_a_loop_and_jit_is_eager():
    hidden_KH, change_KD, output_KD = normal(0, 3, 12), normal(1, 3, 8), normal(2, 3, 8)
    batched = compiled(jax.vmap(lambda o, h, c: apply_output(o, h, down_patch(h, c))))
    alone = [
        apply_output(output_KD[k], hidden_KH[k], down_patch(hidden_KH[k], change_KD[k]))
        for k in range(3)
    ]
    assert_close(batched(output_KD, hidden_KH, change_KD), jnp.stack(alone), 12)


def test_zero_hidden_activations_have_no_down_patch():
    with pytest.raises(ValueError, match="length zero"):
        down_patch(jnp.zeros(4), jnp.ones(3))
    assert np.all(np.isnan(jax.jit(down_patch)(jnp.zeros(4), jnp.ones(3)).v_H))


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"bias_patch: change_D must have 1 axes \(D\), got 2"):
        bias_patch(jnp.ones((2, 3)))
    with pytest.raises(TypeError, match="bias_patch: change_D must be floating point, got int32"):
        bias_patch(jnp.ones(3, jnp.int32))
    with pytest.raises(ValueError, match=r"down_patch: change_D must have 1 axes"):
        down_patch(jnp.ones(4), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"input_D must have 1 axes \(D\), got 2 axes"):
        down_patch(jnp.ones((2, 4)), jnp.ones(3))
    with pytest.raises(TypeError, match="hidden_H: float32, change_D: float64"):
        down_patch(jnp.ones(4, jnp.float32), jnp.ones(3))


def test_patches_are_pytrees_of_vectors_and_scalars():
    down = down_patch(normal(0, 4), normal(1, 3))
    assert [leaf.shape for leaf in jax.tree.leaves(down)] == [(4,), (3,), ()]
    assert isinstance(jax.tree.map(lambda x: x, down), DownPatch)
    assert isinstance(jax.tree.map(lambda x: x, bias_patch(normal(0, 3))), BiasPatch)
    assert eps("float64") < eps("float32") < eps("bfloat16")
