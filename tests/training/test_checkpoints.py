"""Checkpoints come back bit for bit, the last few stay, and another state is refused by name."""

import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from icl_jax.records import WorkdirError
from icl_jax.training.checkpoints import Checkpoints
from icl_jax.training.step import TrainState


def make_state(width=3, dtype=jnp.float32):
    params = {
        "blocks": [{"kernel": jnp.arange(4.0 * width, dtype=dtype).reshape(4, width)}],
        "half": jnp.asarray([0.1, jnp.nan], jnp.bfloat16),
    }
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(0.1))
    return TrainState(jnp.asarray(7, jnp.int32), params, optimizer.init(params))


def test_a_state_comes_back_bit_for_bit_from_another_manager(tmp_path):
    state = make_state(dtype=jnp.float64)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        checkpoints.save(7, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 7
        restored = checkpoints.restore(7, jax.tree.map(jnp.zeros_like, state))
    chex.assert_trees_all_equal_structs(restored, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)
    for got, expected in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert np.asarray(got).tobytes() == np.asarray(expected).tobytes()


def test_the_last_few_stay(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in (10, 20, 30):
            checkpoints.save(step, state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["20", "30"]


def test_a_half_written_checkpoint_is_ignored_and_swept_away(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state)
    half = tmp_path / "20.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "10", half)
    (half / "commit_success.txt").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() == 10
        checkpoints.save(30, state)
        assert checkpoints.latest_step() == 30
    assert not half.exists()


def test_another_shape_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, make_state(width=3))
        with pytest.raises(WorkdirError) as caught:
            checkpoints.restore(7, make_state(width=5))
    message = str(caught.value)
    assert "params.blocks.0.kernel: float32[4,3] -> float32[4,5]" in message
    assert "half" not in message
    assert "start in another folder" in message


def test_another_dtype_is_refused_by_name(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, make_state(dtype=jnp.float64))
        with pytest.raises(WorkdirError, match=r"kernel: float64\[4,3\] -> float32\[4,3\]"):
            checkpoints.restore(7, make_state())


def test_another_structure_is_refused_by_name(tmp_path):
    state = make_state()
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(7, {"state": state})
        with pytest.raises(WorkdirError, match=r"state.step: int32\[\] -> absent"):
            checkpoints.restore(7, {"state": state.params})


def test_a_relative_folder_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Checkpoints(Path("here")) as checkpoints:
        checkpoints.save(1, make_state())
    assert (tmp_path / "here" / "1").is_dir()
